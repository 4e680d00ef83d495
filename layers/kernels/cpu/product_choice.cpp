// SPDX-License-Identifier: Apache-2.0
#include "layers/kernels/product_choice.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <limits>

#include "comm/base/buffer.hpp"
#include "comm/base/check.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/gemm.hpp"
#include "layers/kernels/cpu/onednn_gemm.hpp"

namespace cadre {
namespace {

constexpr char kLetters[] = "bo";  // [GemmLibrary]
constexpr std::string_view kLayoutNames[] = {"nt", "nn", "tn"};
constexpr std::string_view kCopies = "copy";

size_t class_of(int64_t tokens) {
  return static_cast<size_t>(std::ranges::lower_bound(ProductChoice::kClassEnds, tokens) -
                             ProductChoice::kClassEnds.begin());
}

ProductChoice all_of(GemmLibrary library, bool copies) {
  ProductChoice choice;
  for (auto& classes : choice.libraries) classes.fill(library);
  choice.transposes.fill(copies);
  return choice;
}

}  // namespace

GemmLibrary ProductChoice::library(GemmLayout layout, int64_t tokens) const {
  return libraries[static_cast<size_t>(layout)][class_of(tokens)];
}

bool ProductChoice::transposed(int64_t tokens) const { return transposes[class_of(tokens)]; }

bool ProductChoice::keeps_copies() const { return std::ranges::find(transposes, true) != transposes.end(); }

std::string ProductChoice::text() const {
  std::string text;
  for (size_t layout = 0; layout < libraries.size(); ++layout) {
    text += fmt::format("{}=", kLayoutNames[layout]);
    for (const GemmLibrary library : libraries[layout]) text += kLetters[static_cast<size_t>(library)];
    text += ' ';
  }
  text += fmt::format("{}=", kCopies);
  for (const bool copy : transposes) text += copy ? '1' : '0';
  return text;
}

ProductChoice ProductChoice::parse(std::string_view text, std::string_view key) {
  ProductChoice choice;
  if (text == "openblas") return choice;
  const bool needs_onednn = text.find('o', text.find('=')) != std::string_view::npos || text.starts_with("onednn");
  CADRE_CHECK(!needs_onednn || has_onednn(), fmt::format("{} = \"{}\": this build has no oneDNN", key, text),
              "openblas, or auto");
  if (text == "onednn" || text == "onednn-packed") return all_of(GemmLibrary::onednn, text == "onednn-packed");
  // A text of the same form with every letter taken from the given one, which must come out the same.
  const auto letters_of = [&](std::string_view name) -> std::string_view {
    const size_t at = text.find(fmt::format("{}=", name));
    return at == std::string_view::npos ? "" : text.substr(at + name.size() + 1, kNumClasses);
  };
  for (size_t layout = 0; layout < choice.libraries.size(); ++layout) {
    const std::string_view letters = letters_of(kLayoutNames[layout]);
    std::ranges::transform(letters, choice.libraries[layout].begin(),
                           [](char c) { return c == 'o' ? GemmLibrary::onednn : GemmLibrary::openblas; });
  }
  std::ranges::transform(letters_of(kCopies), choice.transposes.begin(), [](char c) { return c == '1'; });
  CADRE_CHECK(
      choice.text() == text, fmt::format("{} = \"{}\" is no choice of products", key, text),
      "auto, openblas, onednn, onednn-packed, or what a run printed, such as \"nt=bboo nn=oooo tn=oooo copy=0111\"");
  return choice;
}

namespace {

constexpr std::array<int64_t, ProductChoice::kNumClasses> kTypicalTokens = {2, 16, 64, 256};
constexpr int64_t kWidth = 512;  // of the weights, which take turns so that none is in the first cache
constexpr int64_t kNumWeights = 4;
constexpr int kTrials = 15;
constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kClearlyFaster = 0.97;  // else the simpler way stays

class ProductTimer {
 public:
  ProductTimer() { std::fill_n(buffers_.as<float>(), buffers_.bytes() / sizeof(float), 1.0F); }

  // The shortest of some times of each library, in seconds. They take turns, so that other work on the machine meets both.
  std::array<double, 2> times(GemmLayout layout, int64_t tokens) {
    std::array<double, 2> best = {kNever, kNever};
    for (int trial = 0; trial < kTrials; ++trial) {
      for (const GemmLibrary library : {GemmLibrary::openblas, GemmLibrary::onednn}) {
        if (library == GemmLibrary::onednn && !has_onednn()) continue;
        double& shortest = best[static_cast<size_t>(library)];
        const auto begin = std::chrono::steady_clock::now();
        multiply(library, layout, tokens, trial % kNumWeights);
        shortest = std::min(shortest, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
      }
    }
    return best;
  }

 private:
  void multiply(GemmLibrary library, GemmLayout layout, int64_t tokens, int64_t weight) {
    const float* w = buffers_.as<float>() + weight * kWidth * kWidth;
    float* x = buffers_.as<float>() + kNumWeights * kWidth * kWidth;
    float* y = x + kTypicalTokens.back() * kWidth;
    if (layout == GemmLayout::tn) {
      float* dw = y + kTypicalTokens.back() * kWidth;
      return gemm(library, {kWidth, kWidth, tokens}, {x, kWidth, /*transposed=*/true}, {y, kWidth}, dw, kWidth);
    }
    gemm(library, {tokens, kWidth, kWidth}, {x, kWidth}, {w, kWidth, layout == GemmLayout::nt}, y, kWidth);
  }

  Buffer buffers_{static_cast<size_t>((kNumWeights + 1) * kWidth + 2 * kTypicalTokens.back()) * kWidth * sizeof(float)};
};

}  // namespace

ProductChoice measure_products() {
  ProductTimer timer;
  ProductChoice choice;
  for (size_t i = 0; i < ProductChoice::kNumClasses; ++i) {
    double seconds[3];
    for (const GemmLayout layout : {GemmLayout::nt, GemmLayout::nn, GemmLayout::tn}) {
      const auto at = static_cast<size_t>(layout);
      const auto [openblas, onednn] = timer.times(layout, kTypicalTokens[i]);
      const bool takes_onednn = onednn < kClearlyFaster * openblas;
      if (takes_onednn) choice.libraries[at][i] = GemmLibrary::onednn;
      seconds[at] = takes_onednn ? onednn : openblas;
    }
    choice.transposes[i] =
        seconds[static_cast<size_t>(GemmLayout::nn)] < kClearlyFaster * seconds[static_cast<size_t>(GemmLayout::nt)];
  }
  return choice;
}

std::string product_machine() {
  std::string name = "unknown CPU";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (!line.starts_with("model name")) continue;
    name = line.substr(line.find(':') + 2);
    break;
  }
  const char* isa = std::getenv("ONEDNN_MAX_CPU_ISA");
  return fmt::format("{}; {}; OpenBLAS {}; oneDNN {}{}{}", name, cpu_vector_target(), blas_core_name(),
                     has_onednn() ? onednn_version() : "none", isa == nullptr ? "" : " up to ",
                     isa == nullptr ? "" : isa);
}

}  // namespace cadre
