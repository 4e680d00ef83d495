// SPDX-License-Identifier: Apache-2.0
// Adapters in the form of PEFT: adapter_config.json and adapter_model.safetensors, whose tensors are named after the weights
// in the files of the model (adapter_name of layers/model/adapter.hpp). An expert has a name of its own; PEFT joins experts
// itself where transformers keeps them as one tensor. Adapters that PEFT trained there are read too.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "layers/model/adapter.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/checkpoint/safetensors.hpp"

namespace cadre {

// adapter_config.json of adapters on such a model in the directory `base`, for PEFT on the family's class of transformers 5. Its
// lora_dropout is 0: PEFT opens no adapters of experts with another, and uses it in training alone.
std::string adapter_config_json(const ModelConfig& model, const AdapterOptions& options, const std::string& base);

// Whether a directory holds adapters and no model.
bool is_adapter(const std::filesystem::path& directory);

// Adapters in a directory.
class StoredAdapter {
 public:
  // Throws ErrorKind::input on kinds of adapters other than low-rank additions, and on damaged files.
  explicit StoredAdapter(const std::filesystem::path& directory);

  const std::filesystem::path& directory() const { return directory_; }
  // The directory of the model they belong to, as adapter_config.json has it; "" where it has none.
  const std::string& base() const { return base_; }
  int64_t rank() const { return rank_; }
  double scale() const { return scale_; }  // of the products b a

  // Whether experts have adapters together, which can be merged but not trained on.
  bool has_joined_experts() const;

  // Throws unless each adapter belongs to a weight that the model in the directory `base` has.
  void check_base(const std::filesystem::path& base) const;

  // Adds the product of its adapter to a weight [rows,columns] of this name. False where it has none.
  bool merge(const std::string& weight, int64_t rows, int64_t columns, float* values);
  // The same for all weights of a store, which are f32, on the host or not.
  void merge(const ParameterStore& store);

 private:
  // The adapters of all experts of a layer, of one of the two parameters.
  struct Joined {
    std::string name = {};
    int64_t num_experts = 0;
    std::vector<float> a = {};
    std::vector<float> b = {};
  };

  bool has(const std::string& weight) const;
  bool has_own(const std::string& weight) const;
  std::optional<std::string> joined_name(const std::string& weight) const;
  bool merge_joined(const std::string& weight, int64_t rows, int64_t columns, float* values);
  std::vector<float> read(const std::string& name, const std::vector<int64_t>& shape);

  std::filesystem::path directory_;
  std::string base_;
  int64_t rank_ = 0;
  double scale_ = 1.0;
  int64_t gate_up_rank_ = 0;    // of joined experts
  bool joins_gate_up_ = false;  // where one of the two parameters has adapters: which
  Joined joined_;               // read last
  ShardedReader reader_;
};

// Adapters of experts as PEFT saves them on classes of transformers 5, which keep the E experts of a layer as two parameters:
// gate_up_proj [E,2F,H], with the rows of gate_proj first, and down_proj [E,H,F]. Of a parameter [E,N,K] with rank R
//   lora_A [E R,K] has row k of expert e in row e R + k, lora_B [N,R E] has its column k in column k E + e.
// PEFT wraps gate_up_proj first: where both have adapters, its own are those of experts.base_layer.

// A projection of an expert, by the name of its weight in files.
struct ExpertWeight {
  std::string layer;  // "base_model.model.model.layers.1.mlp.experts", as PEFT names where the adapters lie
  int64_t expert = 0;
  enum class Kind { gate, up, down } kind = Kind::gate;
};

// Nothing where the weight is not that of a routed expert.
std::optional<ExpertWeight> expert_weight(std::string_view name);

// "model.layers.1.mlp.experts." of a tensor of such adapters; nothing of other names.
std::optional<std::string> joined_experts_in(std::string_view tensor);

// The matrices of one expert from those of all: a [R,K] and b [N,R], of N rows from first_row on.
struct ExpertMatrices {
  std::vector<float> a, b;
};
ExpertMatrices matrices_of(const std::vector<float>& a, const std::vector<float>& b, int64_t expert,
                           int64_t num_experts, int64_t rank, int64_t width, int64_t first_row, int64_t num_rows);

}  // namespace cadre
