// SPDX-License-Identifier: Apache-2.0
// DeepSeek-V2 and V3 a second time: one process, plain loops over doubles, one sequence after the other, written from the
// formulas and sharing no code with the layers. The oracle of whole models.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <map>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "layers/model/config.hpp"

namespace cadre::test {

class DeepSeekReference {
 public:
  using Row = std::vector<double>;
  using Rows = std::vector<Row>;  // of one sequence
  using Weights = std::map<std::string, Row>;

  struct Routing {
    std::vector<std::vector<int>> ids;  // by token, best first
    Rows weights;
  };
  struct Output {
    Rows logits;
    double loss_sum = 0.0;              // of the tokens that have a next one
    std::vector<double> mtp_loss_sums;  // by module
    std::map<int, Rows> hidden;         // after each layer
    std::map<int, Routing> routing;
  };

  DeepSeekReference(ModelConfig config, Weights weights) : c_(std::move(config)), weights_(std::move(weights)) {}

  Output forward(const std::vector<int>& ids) {
    output_ = {};
    Rows h;
    for (const int id : ids) h.push_back(row_of(embedding(), id));
    for (int layer = 0; layer < c_.num_hidden_layers; ++layer) {
      h = block(layer, h);
      output_.hidden[layer] = h;
    }
    const Rows normed = norm_rows(h, "model.norm", c_.rms_norm_eps);
    for (const Row& row : normed) output_.logits.push_back(times(head(), row, c_.vocab_size));
    for (size_t t = 0; t + 1 < ids.size(); ++t) output_.loss_sum += cross_entropy(output_.logits[t], ids[t + 1]);
    predict_mtp(ids, normed);
    return output_;
  }

 private:
  const Row& weight(const std::string& name) const { return weights_.at(name); }
  const Row& embedding() const { return weight("model.embed_tokens.weight"); }
  const Row& head() const { return c_.tie_word_embeddings ? embedding() : weight("lm_head.weight"); }

  Row row_of(const Row& table, int row) const {
    return {table.begin() + row * c_.hidden_size, table.begin() + (row + 1) * c_.hidden_size};
  }

  // W x, W with `out` rows.
  static Row times(const Row& w, const Row& x, int64_t out) {
    Row y(static_cast<size_t>(out), 0.0);
    for (size_t o = 0; o < y.size(); ++o) {
      for (size_t i = 0; i < x.size(); ++i) y[o] += w[o * x.size() + i] * x[i];
    }
    return y;
  }

  Row norm(const Row& x, const std::string& name, double epsilon) const {
    double squares = 0.0;
    for (const double value : x) squares += value * value;
    const double factor = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + epsilon);
    Row y(x);
    for (size_t i = 0; i < y.size(); ++i) y[i] *= factor * weight(name + ".weight")[i];
    return y;
  }

  Rows norm_rows(const Rows& rows, const std::string& name, double epsilon) const {
    Rows result;
    for (const Row& row : rows) result.push_back(norm(row, name, epsilon));
    return result;
  }

  static double cross_entropy(const Row& logits, int target) {
    double sum = 0.0;
    for (const double logit : logits) sum += std::exp(logit - logits[static_cast<size_t>(target)]);
    return std::log(sum);
  }

  static double mscale(double factor, double m) { return factor <= 1.0 ? 1.0 : 0.1 * m * std::log(factor) + 1.0; }

  // The angle of pair i at a position, and what multiplies the pair.
  std::pair<double, double> turn(int64_t pair, int64_t position) const {
    const auto dim = static_cast<double>(c_.qk_rope_head_dim);
    const double theta = std::pow(c_.rope_theta, -2.0 * static_cast<double>(pair) / dim);
    const RopeScaling& s = c_.rope_scaling;
    if (s.type == "none") return {static_cast<double>(position) * theta, 1.0};
    const auto dim_of_turns = [&](double turns) {
      const double length = static_cast<double>(s.original_max_position_embeddings);
      return dim * std::log(length / (turns * 2.0 * std::numbers::pi)) / (2.0 * std::log(c_.rope_theta));
    };
    const double low = std::max(0.0, std::floor(dim_of_turns(s.beta_fast)));
    double high = std::min(dim - 1.0, std::ceil(dim_of_turns(s.beta_slow)));
    if (low == high) high += 0.001;
    const double ramp = std::min(1.0, std::max(0.0, (static_cast<double>(pair) - low) / (high - low)));
    const double smooth = 1.0 - ramp;
    const double frequency = theta / s.factor * (1.0 - smooth) + theta * smooth;
    return {static_cast<double>(position) * frequency, mscale(s.factor, s.mscale) / mscale(s.factor, s.mscale_all_dim)};
  }

  // Neighbours are complex numbers, times e^(i angle).
  Row turned(Row x, int64_t position) const {
    for (int64_t i = 0; i < c_.qk_rope_head_dim / 2; ++i) {
      const auto [angle, factor] = turn(i, position);
      const std::complex<double> z = std::complex<double>(x[2 * i], x[2 * i + 1]) * std::polar(factor, angle);
      x[2 * i] = z.real();
      x[2 * i + 1] = z.imag();
    }
    return x;
  }

  static Row part(const Row& x, int64_t first, int64_t count) { return {x.begin() + first, x.begin() + first + count}; }
  static Row joined(Row a, const Row& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  }
  static double dot(const Row& a, const Row& b) {
    double sum = 0.0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  }

  Rows attention(const std::string& prefix, const Rows& x) const {
    const int64_t heads = c_.num_attention_heads;
    const int64_t nope = c_.qk_nope_head_dim;
    const int64_t rope = c_.qk_rope_head_dim;
    const int64_t v = c_.v_head_dim;
    std::vector<Rows> q, k, values;  // [token][head]
    for (size_t t = 0; t < x.size(); ++t) {
      Row queries;
      if (c_.q_lora_rank > 0) {
        const Row latent = times(weight(prefix + ".q_a_proj.weight"), x[t], c_.q_lora_rank);
        queries = times(weight(prefix + ".q_b_proj.weight"), norm(latent, prefix + ".q_a_layernorm", 1e-6),
                        heads * (nope + rope));
      } else {
        queries = times(weight(prefix + ".q_proj.weight"), x[t], heads * (nope + rope));
      }
      const Row kv = times(weight(prefix + ".kv_a_proj_with_mqa.weight"), x[t], c_.kv_lora_rank + rope);
      const Row latent = norm(part(kv, 0, c_.kv_lora_rank), prefix + ".kv_a_layernorm", 1e-6);
      const Row key = turned(part(kv, c_.kv_lora_rank, rope), static_cast<int64_t>(t));
      const Row keys_values = times(weight(prefix + ".kv_b_proj.weight"), latent, heads * (nope + v));
      q.emplace_back(), k.emplace_back(), values.emplace_back();
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t at = h * (nope + rope);
        q[t].push_back(
            joined(part(queries, at, nope), turned(part(queries, at + nope, rope), static_cast<int64_t>(t))));
        k[t].push_back(joined(part(keys_values, h * (nope + v), nope), key));
        values[t].push_back(part(keys_values, h * (nope + v) + nope, v));
      }
    }
    double scale = 1.0 / std::sqrt(static_cast<double>(nope + rope));
    if (c_.rope_scaling.type == "yarn") {
      scale *= std::pow(mscale(c_.rope_scaling.factor, c_.rope_scaling.mscale_all_dim), 2.0);
    }
    Rows y;
    for (size_t t = 0; t < x.size(); ++t) {
      Row out;
      for (size_t h = 0; h < static_cast<size_t>(heads); ++h) {
        double sum = 0.0;
        Row mixed(static_cast<size_t>(v), 0.0);
        for (size_t s = 0; s <= t; ++s) {
          const double p = std::exp(scale * dot(q[t][h], k[s][h]));
          sum += p;
          for (size_t i = 0; i < mixed.size(); ++i) mixed[i] += p * values[s][h][i];
        }
        for (const double value : mixed) out.push_back(value / sum);
      }
      y.push_back(times(weight(prefix + ".o_proj.weight"), out, c_.hidden_size));
    }
    return y;
  }

  Row ffn(const std::string& prefix, const Row& x, int64_t width) const {
    const Row gate = times(weight(prefix + ".gate_proj.weight"), x, width);
    Row inner = times(weight(prefix + ".up_proj.weight"), x, width);
    for (size_t i = 0; i < inner.size(); ++i) inner[i] *= gate[i] / (1.0 + std::exp(-gate[i]));
    return times(weight(prefix + ".down_proj.weight"), inner, c_.hidden_size);
  }

  Row scores(const std::string& prefix, const Row& x) const {
    Row s = times(weight(prefix + ".gate.weight"), x, c_.n_routed_experts);
    double sum = 0.0;
    for (double& value : s) {
      value = c_.scoring_func == ScoreFunction::sigmoid ? 1.0 / (1.0 + std::exp(-value)) : std::exp(value);
      sum += value;
    }
    if (c_.scoring_func == ScoreFunction::softmax) {
      for (double& value : s) value /= sum;
    }
    return s;
  }

  // The scores that decide: with the bias, and -infinity outside the best groups.
  Row choices(const std::string& prefix, const Row& s) const {
    Row choice = s;
    if (c_.topk_method == TopkMethod::noaux_tc) {
      for (size_t e = 0; e < s.size(); ++e) choice[e] += weight(prefix + ".gate.e_score_correction_bias")[e];
    }
    if (c_.topk_method == TopkMethod::greedy) return choice;
    const auto size = static_cast<size_t>(c_.n_routed_experts / c_.n_group);
    std::vector<std::pair<double, int>> groups;
    for (int g = 0; g < c_.n_group; ++g) {
      Row sorted(choice.begin() + static_cast<int64_t>(g * size),
                 choice.begin() + static_cast<int64_t>((g + 1) * size));
      std::sort(sorted.rbegin(), sorted.rend());
      const bool two = c_.topk_method == TopkMethod::noaux_tc && size > 1;
      groups.emplace_back(-(sorted[0] + (two ? sorted[1] : 0.0)), g);
    }
    std::sort(groups.begin(), groups.end());
    for (auto group = groups.begin() + c_.topk_group; group != groups.end(); ++group) {
      for (size_t i = 0; i < size; ++i) {
        choice[static_cast<size_t>(group->second) * size + i] = -std::numeric_limits<double>::infinity();
      }
    }
    return choice;
  }

  Row mixture(int layer, const std::string& prefix, const Row& x) {
    const Row s = scores(prefix, x);
    const Row choice = choices(prefix, s);
    std::vector<std::pair<double, int>> order;
    for (size_t e = 0; e < s.size(); ++e) order.emplace_back(-choice[e], static_cast<int>(e));
    std::sort(order.begin(), order.end());
    std::vector<int> ids;
    Row weights;
    double sum = 1e-20;
    for (int64_t k = 0; k < c_.num_experts_per_tok; ++k) {
      ids.push_back(order[static_cast<size_t>(k)].second);
      weights.push_back(s[static_cast<size_t>(ids.back())]);
      sum += weights.back();
    }
    Row y(x.size(), 0.0);
    for (size_t k = 0; k < ids.size(); ++k) {
      weights[k] *= c_.routed_scaling_factor / (c_.norm_topk_prob && c_.num_experts_per_tok > 1 ? sum : 1.0);
      const Row out = ffn(prefix + ".experts." + std::to_string(ids[k]), x, c_.moe_intermediate_size);
      for (size_t i = 0; i < y.size(); ++i) y[i] += weights[k] * out[i];
    }
    if (c_.n_shared_experts > 0) {
      const Row shared = ffn(prefix + ".shared_experts", x, c_.n_shared_experts * c_.moe_intermediate_size);
      for (size_t i = 0; i < y.size(); ++i) y[i] += shared[i];
    }
    output_.routing[layer].ids.push_back(ids);
    output_.routing[layer].weights.push_back(weights);
    return y;
  }

  Rows block(int layer, Rows h) {
    const std::string prefix = "model.layers." + std::to_string(layer);
    const Rows attended = attention(prefix + ".self_attn", norm_rows(h, prefix + ".input_layernorm", c_.rms_norm_eps));
    const bool is_mixture =
        c_.n_routed_experts > 0 && layer >= c_.first_k_dense_replace && layer % c_.moe_layer_freq == 0;
    for (size_t t = 0; t < h.size(); ++t) {
      for (size_t i = 0; i < h[t].size(); ++i) h[t][i] += attended[t][i];
      const Row x = norm(h[t], prefix + ".post_attention_layernorm", c_.rms_norm_eps);
      const Row y = is_mixture ? mixture(layer, prefix + ".mlp", x) : ffn(prefix + ".mlp", x, c_.intermediate_size);
      for (size_t i = 0; i < h[t].size(); ++i) h[t][i] += y[i];
    }
    return h;
  }

  // Module k reads token i + k beside the state of token i and predicts token i + k + 1.
  void predict_mtp(const std::vector<int>& ids, Rows h) {
    for (int k = 1; k <= c_.num_nextn_predict_layers; ++k) {
      const int layer = static_cast<int>(c_.num_hidden_layers) + k - 1;
      const std::string prefix = "model.layers." + std::to_string(layer);
      Rows x;
      for (size_t i = 0; i + static_cast<size_t>(k) < ids.size(); ++i) {
        const Row next = norm(row_of(embedding(), ids[i + static_cast<size_t>(k)]), prefix + ".enorm", c_.rms_norm_eps);
        const Row both = joined(next, norm(h[i], prefix + ".hnorm", c_.rms_norm_eps));
        x.push_back(times(weight(prefix + ".eh_proj.weight"), both, c_.hidden_size));
      }
      h = block(layer, x);
      double sum = 0.0;
      for (size_t i = 0; i + static_cast<size_t>(k) + 1 < ids.size(); ++i) {
        const Row out = norm(h[i], prefix + ".shared_head.norm", c_.rms_norm_eps);
        sum += cross_entropy(times(head(), out, c_.vocab_size), ids[i + static_cast<size_t>(k) + 1]);
      }
      output_.mtp_loss_sums.push_back(sum);
    }
  }

  ModelConfig c_;
  Weights weights_;
  Output output_;
};

}  // namespace cadre::test
