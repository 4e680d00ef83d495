// SPDX-License-Identifier: Apache-2.0
// The families of models that Cadre computes: for each model_type one row of differences, in a file of its own in families/. A
// row says which class of transformers computes the family, which keys of a ModelConfig that class follows, what a config.json
// means by keys that it leaves out, and the names of tensors.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "layers/model/config.hpp"
#include "layers/nn/attention.hpp"
#include "layers/nn/ffn.hpp"

namespace cadre {

enum class AttentionKind { multi_head, latent };

// Scores of experts and their selection. softmax: greedy; softmax_groups: greedy or group_limited_greedy; sigmoid_bias: by
// sigmoid + selection bias, with groups.
enum class GateForm { softmax, softmax_groups, sigmoid_bias };

// Whether the weights of the chosen experts are divided by their sum. several: where norm_topk_prob is set and there are several
// (DeepSeek's code); by_key: where norm_topk_prob is set; never; always.
enum class ScoreNorm { several, by_key, never, always };

// Biases of multi-head attention: of queries, keys and values, or of the last projection too. latent: those of latent attention.
enum class AttentionBias { none, qkv, qkv_o, latent };

// How PEFT (0.21) finds the projections of experts, which transformers 5 joins into two parameters a layer. modules: none are
// joined, the class comes with the files; renamed: PEFT takes gate_proj, up_proj and down_proj among its targets for these
// parameters, so that it no longer finds dense networks and shared experts by them; named: it renames nothing.
enum class ExpertTargets { modules, renamed, named };

struct TensorNames {
  std::string_view mixture = "mlp";            // model.layers.N.<mixture>.{gate,experts}
  FfnNames expert = {};                        // of a routed expert
  std::string_view shared = "shared_experts";  // model.layers.N.<mixture>.<shared>
  std::string_view shared_gate = {};           // model.layers.N.<mixture>.<shared_gate> [1,H], a sigmoid; empty: none
};

struct Family {
  std::string_view model_type;
  std::string_view architecture;  // its class
  AttentionKind attention = AttentionKind::multi_head;
  GateForm gate = GateForm::softmax;
  ScoreNorm score_norm = ScoreNorm::by_key;
  QkNorm qk_norm = QkNorm::none;             // where use_qk_norm is set
  bool has_qk_norm_key = false;              // use_qk_norm; else it is always there
  AttentionBias bias = AttentionBias::none;  // where attention_bias is set
  std::string_view bias_key = {};            // its name of attention_bias
  bool has_head_dim = false;                 // head_dim
  bool has_partial_rotary = false;           // partial_rotary_factor
  bool has_clip = false;                     // clip_qkv
  bool scales_scores = false;                // routed_scaling_factor
  bool has_yarn = true;                      // rope_scaling.type = yarn
  bool has_rope_interleave = false;          // rope_interleave
  bool has_moe_layer_freq = false;           // moe_layer_freq
  bool has_dense_layers = true;              // first_k_dense_replace; else intermediate_size is the width of an expert
  bool has_shared_experts = true;            // n_shared_experts
  bool has_mtp_modules = true;               // num_nextn_predict_layers
  bool refuses_other_keys = true;            // a config.json with keys that the class does not follow is refused
  std::string_view num_experts_key = {};     // its name of n_routed_experts
  std::string_view dense_layers_key = {};    // its form of first_k_dense_replace
  bool has_window_switch = false;            // sliding_window counts where use_sliding_window is set
  ExpertTargets expert_targets = ExpertTargets::renamed;
  TensorNames names = {};
  void (*set_defaults)(ModelConfig& config);  // keys that a config.json leaves out
};

// nullptr when no family has this model_type.
const Family* find_family(std::string_view model_type);
// Of a valid model_type.
const Family& family_of(const ModelConfig& config);
std::vector<std::string> model_types();

// Sizes of latent attention that DeepSeek's files mean when they leave them out.
void set_latent_defaults(ModelConfig& config);

// The rows.
const Family& deepseek_family();
const Family& deepseek_v2_family();
const Family& deepseek_v3_family();
const Family& kimi_k2_family();
const Family& glm4_moe_family();
const Family& glm4_moe_lite_family();
const Family& mixtral_family();
const Family& olmoe_family();
const Family& qwen2_moe_family();
const Family& qwen3_moe_family();

// The keys by which a model leaves what the class of its family computes; none where both are the same. Keys of training, such as
// the weights of losses, are not among them.
std::vector<std::string> keys_beyond(const Family& family, const ModelConfig& config);

// Under which name a model is saved: that of the published class that computes it, else one that other programs refuse.

// Key of a config.json: the model_type of the ModelConfig where the file names another family, whose class computes the model.
inline constexpr const char* kFamilyKey = "cadre_model_type";

// The family whose class computes the model: that of its model_type, but glm4_moe where DeepSeekMoE has the gate of V3.
struct Family;
const Family& saved_family(const ModelConfig& config);

// The keys by which the model leaves the mathematics of that class (keys_beyond in family.hpp).
std::vector<std::string> keys_beyond_class(const ModelConfig& config);

// "DeepseekV3ForCausalLM" and so on, or "CadreForCausalLM" where there are such keys.
std::string architecture_name(const ModelConfig& config);
// The model_type of a config.json: "deepseek_v3" and so on, or "cadre_deepseek_v3" where there are such keys.
std::string saved_model_type(const ModelConfig& config);
// The model_type of a ModelConfig from that of a config.json.
std::string model_type_of_saved(const std::string& saved);

}  // namespace cadre
