// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/unread_tensors.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <set>

#include "comm/base/check.hpp"
#include "layers/model/model.hpp"
#include "runtime/checkpoint/sharded.hpp"
#include "runtime/checkpoint/stored_values.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kLayers = "model.layers.";
constexpr std::string_view kMtpProjection = "eh_proj.weight";  // no other layer has one
constexpr std::string_view kHead = "lm_head.weight";
constexpr std::string_view kEmbedding = "model.embed_tokens.weight";

std::string name_in_layer(int64_t layer, std::string_view part) { return fmt::format("{}{}.{}", kLayers, layer, part); }

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

class Search {
 public:
  Search(const fs::path& checkpoint, const ModelConfig& config)
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
    const std::string expert = fmt::format("{}mlp.experts.{}.", layer, config_.n_routed_experts - 1);
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
  if (!name.starts_with(kLayers)) return std::nullopt;
  name.remove_prefix(kLayers.size());
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
  return Search(checkpoint, config).run();
}

}  // namespace cadre
