// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/stored_values.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <set>
#include <span>

#include "comm/base/check.hpp"
#include "comm/wire/fp8.hpp"
#include "layers/kernels/cpu/narrow.hpp"
#include "layers/model/family.hpp"
#include "layers/model/model.hpp"
#include "runtime/checkpoint/safetensors.hpp"

namespace cadre {
namespace {

int64_t num_blocks(int64_t extent) { return (extent + kFp8TileChannels - 1) / kFp8TileChannels; }

void widen_bf16(std::span<const std::byte> from, float* to) {
  for (size_t i = 0; i < from.size() / sizeof(bf16); ++i) {
    bf16 element;
    std::memcpy(&element, &from[i * sizeof element], sizeof element);
    to[i] = to_float(element);
  }
}

// IEEE 754 binary16: 5 bits of exponent, 10 of fraction. Every value is a float.
float from_half(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  float size = 0.0F;
  if (exponent == 31) {
    size = fraction == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  } else {
    size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                         : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -size : size;
}

void read_half(std::span<const std::byte> from, float* to) {
  for (size_t i = 0; i < from.size() / sizeof(uint16_t); ++i) {
    uint16_t element = 0;
    std::memcpy(&element, &from[i * sizeof element], sizeof element);
    to[i] = from_half(element);
  }
}

bool is_half(const TensorEntry& entry) { return entry.dtype_name == "F16"; }

}  // namespace

std::vector<int64_t> scale_shape(const std::vector<int64_t>& shape) {
  return {num_blocks(shape.at(0)), num_blocks(shape.at(1))};
}

StoredValues::StoredValues(ShardedReader& reader, const std::string& directory, std::string_view name)
    : values_(reader.at(name)) {
  const std::string file = (std::filesystem::path(directory) / reader.weight_map().find(name)->second).string();
  const std::optional<DType> dtype = entry().dtype;
  CADRE_CHECK(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::fp8 || is_half(entry()),
              fmt::format("{}: tensor {} has elements {}, expected F32, F16, BF16 or F8_E4M3", file, quote_name(name),
                          entry().dtype_name),
              "convert the weights first");
  if (dtype == DType::fp8) find_scales(reader, file);
}

void StoredValues::find_scales(ShardedReader& reader, const std::string& file) {
  const std::string name = entry().name + std::string(kScaleSuffix);
  CADRE_CHECK(entry().shape.size() == 2,
              fmt::format("{}: tensor {} is F8_E4M3 with shape [{}], expected a matrix", file, quote_name(entry().name),
                          fmt::join(entry().shape, ",")),
              "only matrices have scales by block");
  scales_.emplace(reader.at(name));
  const TensorEntry& found = scales_->entry;
  const std::vector<int64_t> wanted = scale_shape(entry().shape);
  CADRE_CHECK(found.dtype == DType::f32 && found.shape == wanted,
              fmt::format("{}: tensor {} is {}[{}], expected F32[{}], one scale for 128 x 128 values of {}", file,
                          quote_name(name), found.dtype_name, fmt::join(found.shape, ","), fmt::join(wanted, ","),
                          quote_name(entry().name)),
              "Cadre reads weight_block_size [128, 128]");
}

size_t StoredValues::count() const {
  return entry().bytes() / (is_half(entry()) ? sizeof(uint16_t) : size_of(*entry().dtype));
}

void StoredValues::read(float* to) const {
  if (values_.bytes.empty()) return;
  if (is_half(entry())) return read_half(values_.bytes, to);
  switch (*entry().dtype) {
    case DType::f32: std::memcpy(to, values_.bytes.data(), values_.bytes.size()); return;
    case DType::bf16: widen_bf16(values_.bytes, to); return;
    default: read_fp8(to);
  }
}

bool StoredValues::read_bf16(bf16* to) const {
  if (entry().dtype == DType::bf16) {
    if (!values_.bytes.empty()) std::memcpy(to, values_.bytes.data(), values_.bytes.size());
    return true;
  }
  std::vector<float> values(count());
  read(values.data());
  std::ranges::transform(values, to, to_bf16);
  return std::ranges::equal(values, std::span(to, values.size()), {}, {}, to_float);
}

bool StoredValues::read_fp8_codes(uint8_t* codes, float* scales) const {
  if (entry().dtype == DType::fp8) {
    if (values_.bytes.empty()) return true;
    std::memcpy(codes, values_.bytes.data(), values_.bytes.size());
    std::memcpy(scales, scales_->bytes.data(), scales_->bytes.size());
    return true;
  }
  std::vector<float> values(count());
  read(values.data());
  std::vector<float> multiples(values.size());
  const int64_t width = entry().shape[1];
  round_blocks_to_fp8(values.data(), entry().shape[0], width, Fp8Scale::fp32, multiples.data(), scales);
  std::ranges::transform(multiples, codes, to_fp8);
  bool keeps_all = true;
  for (size_t i = 0; keeps_all && i < values.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    const int64_t block = at / width / kFp8TileChannels * num_blocks(width) + at % width / kFp8TileChannels;
    keeps_all = from_fp8(codes[i]) * scales[block] == values[i];
  }
  return keeps_all;
}

void StoredValues::release() const noexcept {
  release_pages(values_.bytes);
  if (scales_) release_pages(scales_->bytes);
}

void StoredValues::read_fp8(float* to) const {
  const int64_t width = entry().shape[1];
  const auto* codes = reinterpret_cast<const uint8_t*>(values_.bytes.data());
  std::vector<float> scales(scales_->bytes.size() / sizeof(float));
  std::memcpy(scales.data(), scales_->bytes.data(), scales_->bytes.size());
  for (int64_t row = 0; row < entry().shape[0]; ++row) {
    const float* row_scales = scales.data() + row / kFp8TileChannels * num_blocks(width);
    for (int64_t i = 0; i < width; ++i) {
      to[row * width + i] = from_fp8(codes[row * width + i]) * row_scales[i / kFp8TileChannels];
    }
  }
}

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kLayersPrefix = "model.layers.";
constexpr std::string_view kMtpProjection = "eh_proj.weight";  // no other layer has one
constexpr std::string_view kHead = "lm_head.weight";
constexpr std::string_view kEmbedding = "model.embed_tokens.weight";

std::string name_in_layer(int64_t layer, std::string_view part) {
  return fmt::format("{}{}.{}", kLayersPrefix, layer, part);
}

// Of every rank, without MTP modules, with the names under which files hold a value once more.
std::set<std::string, std::less<>> names_of(ModelConfig config) {
  config.num_nextn_predict_layers = 0;
  std::set<std::string, std::less<>> names;
  Model model(config, make_expert_map(config, 1), 0);
  model.each_parameter([&](const Parameter& parameter) {
    for (const ParameterPart& part : parameter.parts) names.insert(part.name);
    names.insert(parameter.copies.begin(), parameter.copies.end());
  });
  return names;
}

class TensorSearch {
 public:
  TensorSearch(const fs::path& checkpoint, const ModelConfig& config)
      : checkpoint_(checkpoint), config_(config), reader_(checkpoint) {}

  std::vector<std::string> run() {
    check_size();
    known_ = names_of(config_);
    std::vector<std::string> unread;
    for (const auto& [name, file] : reader_.weight_map()) {
      if (known_.contains(name) || is_excepted(name)) continue;
      if (is_read(name)) refuse(name, file);
      const std::optional<int64_t> layer = layer_of(name);
      const std::string shown = layer ? name_in_layer(*layer, "*") : name;
      if (std::ranges::find(unread, shown) == unread.end()) unread.push_back(shown);
    }
    return unread;
  }

 private:
  // That the files have the last layer and its last expert, before names of many more are made.
  void check_size() const {
    const int64_t last = config_.num_hidden_layers - 1;
    const std::string layer = name_in_layer(last, "");
    CADRE_CHECK(has_prefix(layer),
                fmt::format("{}: config.json has num_hidden_layers = {}, the files hold no tensor {}*",
                            checkpoint_.string(), config_.num_hidden_layers, layer),
                "does it describe these weights?");
    const std::string expert =
        fmt::format("{}{}.experts.{}.", layer, family_of(config_).names.mixture, config_.n_routed_experts - 1);
    CADRE_CHECK(!is_moe_layer(config_, last) || has_prefix(expert),
                fmt::format("{}: config.json has n_routed_experts = {}, the files hold no tensor {}*",
                            checkpoint_.string(), config_.n_routed_experts, expert),
                "does it describe these weights?");
  }

  bool has_prefix(const std::string& prefix) const {
    const auto found = reader_.weight_map().lower_bound(prefix);
    return found != reader_.weight_map().end() && found->first.starts_with(prefix);
  }

  bool is_excepted(const std::string& name) {
    if (name.ends_with(".inv_freq")) return true;
    if (is_scale_name(name) && reader_.weight_map().contains(name.substr(0, name.size() - kScaleSuffix.size()))) {
      return true;
    }
    if (reader_.find(name)->bytes.empty()) return true;  // of shared experts that there are none of
    if (name == kHead && config_.tie_word_embeddings) return is_head_the_embedding();
    const int64_t layer = layer_of(name).value_or(-1);
    return layer >= config_.num_hidden_layers && reader_.weight_map().contains(name_in_layer(layer, kMtpProjection));
  }

  bool is_head_the_embedding() {
    const auto head = reader_.find(kHead);
    const auto embedding = reader_.find(kEmbedding);
    return head && embedding && std::ranges::equal(head->bytes, embedding->bytes);
  }

  // Whether it belongs to a module that the model has.
  bool is_read(const std::string& name) const {
    if (const std::optional<int64_t> layer = layer_of(name)) return *layer < config_.num_hidden_layers;
    return name == kHead || std::ranges::any_of(std::array{"model.norm.", "model.embed_tokens.", "lm_head."},
                                                [&](const char* module) { return name.starts_with(module); });
  }

  [[noreturn]] void refuse(const std::string& name, const std::string& file) const {
    throw Error(
        ErrorKind::input,
        fmt::format("{}: config.json has no place for tensor {}", (checkpoint_ / file).string(), quote_name(name)),
        name == kHead ? "tie_word_embeddings is true and this is not the embedding table"
                      : "the layer would be computed without it: does the config.json belong to these weights?");
  }

  const fs::path& checkpoint_;
  const ModelConfig& config_;
  std::set<std::string, std::less<>> known_;
  ShardedReader reader_;
};

}  // namespace

std::optional<int64_t> layer_of(std::string_view name) {
  if (!name.starts_with(kLayersPrefix)) return std::nullopt;
  name.remove_prefix(kLayersPrefix.size());
  int64_t layer = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  if (error != std::errc() || layer < 0 || end == name.data() + name.size() || *end != '.') return std::nullopt;
  return layer;
}

int64_t stored_mtp_modules(const fs::path& checkpoint, const ModelConfig& config) {
  if (config.num_nextn_predict_layers == 0) return 0;
  const ShardedReader reader(checkpoint);
  const bool is_there = reader.weight_map().contains(name_in_layer(config.num_hidden_layers, kMtpProjection));
  return is_there ? config.num_nextn_predict_layers : 0;
}

std::vector<std::string> unread_tensors(const fs::path& checkpoint, const ModelConfig& config) {
  return TensorSearch(checkpoint, config).run();
}

}  // namespace cadre
