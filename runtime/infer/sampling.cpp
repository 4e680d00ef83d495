// SPDX-License-Identifier: Apache-2.0
#include "runtime/infer/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"

namespace cadre {
namespace {

struct Likelier {
  std::span<const float> logits;
  bool operator()(int32_t a, int32_t b) const { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; }
};

void likeliest_first(std::span<const float> logits, std::vector<int32_t>& ids) {
  std::ranges::sort(ids, Likelier{logits});
}

// The ids to choose among, likeliest first when some are left out.
std::vector<int32_t> kept_tokens(std::span<const float> logits, const Sampling& sampling) {
  const size_t all = sampling.num_ids > 0 ? static_cast<size_t>(sampling.num_ids) : logits.size();
  std::vector<int32_t> ids(std::min(all, logits.size()));
  std::iota(ids.begin(), ids.end(), 0);
  for (const int32_t id : sampling.more) {
    if (static_cast<size_t>(id) >= all && static_cast<size_t>(id) < logits.size()) ids.push_back(id);
  }
  const size_t wanted = sampling.temperature == 0.0 ? 1 : static_cast<size_t>(sampling.top_k);
  if (wanted == 0 || wanted >= ids.size()) return ids;
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(wanted), ids.end(), Likelier{logits});
  ids.resize(wanted);
  return ids;
}

// Each token of the text once; empty where nothing changes.
std::vector<float> with_penalty(std::span<const float> logits, double penalty, std::span<const int32_t> text) {
  if (penalty == 1.0 || text.empty()) return {};
  std::vector<float> penalised(logits.begin(), logits.end());
  for (const int32_t token : text) {
    const float logit = logits[static_cast<size_t>(token)];
    penalised[static_cast<size_t>(token)] = static_cast<float>(logit < 0.0F ? logit * penalty : logit / penalty);
  }
  return penalised;
}

}  // namespace

int32_t sample_token(std::span<const float> logits, const Sampling& sampling, int64_t position,
                     std::span<const int32_t> text) {
  if (!std::ranges::all_of(logits, [](float logit) { return std::isfinite(logit); })) {
    throw Error(ErrorKind::numerics, fmt::format("the logits of token {} are not finite", position),
                "the weights are damaged, or the model diverged in training");
  }
  const std::vector<float> penalised = with_penalty(logits, sampling.repetition_penalty, text);
  if (!penalised.empty()) logits = penalised;
  std::vector<int32_t> ids = kept_tokens(logits, sampling);
  if (ids.size() == 1) return ids.front();
  if (sampling.top_p < 1.0) likeliest_first(logits, ids);

  const float largest = logits[*std::ranges::min_element(ids, Likelier{logits})];
  std::vector<double> cumulative(ids.size());
  double sum = 0.0;
  for (size_t i = 0; i < ids.size(); ++i) {
    sum += std::exp((static_cast<double>(logits[ids[i]]) - largest) / sampling.temperature);
    cumulative[i] = sum;
  }
  if (sampling.top_p < 1.0) {
    const auto enough = std::ranges::lower_bound(cumulative, sampling.top_p * sum);
    const auto kept = static_cast<size_t>(enough - cumulative.begin()) + 1;
    cumulative.resize(std::min(kept, cumulative.size()));
    sum = cumulative.back();
  }
  const double drawn = sum * Random(sampling.seed, "sample", 0).uniform(static_cast<uint64_t>(position));
  const auto found = std::ranges::upper_bound(cumulative, drawn);
  return ids[std::min(static_cast<size_t>(found - cumulative.begin()), cumulative.size() - 1)];
}

double log_probability(std::span<const float> logits, int32_t token) {
  const double largest = std::ranges::max(logits);
  double denominator = 0.0;
  for (const float logit : logits) denominator += std::exp(static_cast<double>(logit) - largest);
  return static_cast<double>(logits[static_cast<size_t>(token)]) - (largest + std::log(denominator));
}

std::string StopStrings::put(std::string_view bytes) {
  for (const char byte : bytes) {
    if (is_over_) break;
    held_ += byte;
    size_t longest = 0;
    for (const std::string& string : strings_) {
      if (!string.empty() && held_.ends_with(string)) longest = std::max(longest, string.size());
    }
    if (longest == 0) continue;
    is_over_ = true;
    held_.resize(held_.size() - longest);
  }
  size_t kept = 0;
  for (const std::string& string : strings_) {
    const size_t most = is_over_ || string.empty() ? 0 : std::min(string.size() - 1, held_.size());
    for (size_t length = kept + 1; length <= most; ++length) {
      if (held_.ends_with(std::string_view(string).substr(0, length))) kept = length;
    }
  }
  std::string certain = held_.substr(0, held_.size() - kept);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopStrings::finish() { return std::exchange(held_, {}); }

}  // namespace cadre
