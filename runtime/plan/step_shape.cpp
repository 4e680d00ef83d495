// SPDX-License-Identifier: Apache-2.0
#include "runtime/plan/step_shape.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "comm/base/check.hpp"
#include "comm/exchange/host_balance.hpp"
#include "layers/model/stage.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/plan/bucket_traffic.hpp"
#include "runtime/schedule/make_program.hpp"

namespace cadre {
namespace {

constexpr double kGiga = 1e9;
constexpr double kFloatBytes = sizeof(float);
// Weight gradients of experts are deferred matrix by matrix.
constexpr int kExpertWeightParts = 3;
// After the passes: gradient norm, balance of the routers.
constexpr double kTailSums = 2.0;

double product_s(double flops, double gflops) { return flops > 0.0 ? flops / (gflops * kGiga) : 0.0; }
double bytes_s(double bytes, double gigabytes) { return bytes > 0.0 ? bytes / (gigabytes * kGiga) : 0.0; }

class ShapeMaker {
 public:
  ShapeMaker(const RunConfig& config, const Topology& topology, const Machine& machine, const LoadSkew& skew)
      : config_(config), model_(config.model), topology_(topology), machine_(machine), skew_(skew) {
    CADRE_CHECK(model_.expert_kinds != ExpertKinds::projections,
                "model.expert_kinds = projections, allowed: the others",
                "the planner knows the exchanges of whole experts only");
    shape_.program = program_of(config);
    shape_.grid = Grid::make(topology.num_ranks(), static_cast<int>(config.parallel.pipeline),
                             static_cast<int>(config.parallel.expert));
    ranks_a_host_ = topology.num_ranks() / topology.num_hosts();
    const auto parts = [](int64_t whole, int64_t count) { return (whole + count - 1) / count; };
    const int64_t sequences = parts(parts(config.train.batch, config.train.micro_batches), shape_.grid.data);
    shape_.tokens = static_cast<double>(sequences * config.data.sequence_length);
    choose_exchange_times();
    shares_ = bucket_shares(config, shape_.grid, pipeline_routes(shape_.program.routes, config.parallel));
    recompute_ = recompute_of(config.train);
  }

  StepShape make() {
    for (int stage = 0; stage < shape_.program.num_stages; ++stage) make_stage(stage);
    const bool crosses = topology_.num_hosts() > 1 && shape_.grid.data >= ranks_a_host_;
    const LinkCost& hop = crosses ? machine_.network : machine_.host;
    shape_.link.rows_s = hop.time(0.0, row_bytes());
    shape_.message_s = hop.time(1.0, 0.0);
    const LinkCost& slowest = topology_.num_hosts() > 1 ? machine_.network : machine_.host;
    const double alpha = topology_.num_ranks() > 1 ? std::max(machine_.host.alpha_s, slowest.alpha_s) : 0.0;
    shape_.tail_latency_s = kTailSums * std::ceil(std::log2(topology_.num_ranks())) * alpha;
    shape_.link.piece_s = slowest.time(0.0, bytes_of_piece(std::max(2, shares_.front().shared_ranks)));
    shape_.link.burst_s = slowest.burst_s;
    shape_.link.contention = slowest.contention;
    shape_.flops_per_token = flops_per_token(model_, config_.data.sequence_length);
    shape_.tokens_of_step = static_cast<double>(config_.train.batch * config_.data.sequence_length);
    return std::move(shape_);
  }

 private:
  double row_bytes() const { return shape_.tokens * static_cast<double>(model_.hidden_size) * kFloatBytes; }
  bool exchanges() const { return shape_.grid.expert > 1; }

  void choose_exchange_times() {
    if (model_.n_routed_experts == 0) return;
    const int hosts = shape_.grid.expert / std::gcd(shape_.grid.expert, ranks_a_host_);
    const Topology group = Topology::uniform(hosts, shape_.grid.expert / hosts);
    const ExchangeWorkload workload = {
        .tokens = static_cast<int64_t>(shape_.tokens),
        .top_k = static_cast<int>(model_.num_experts_per_tok),
        .dispatch = {DType::f32, model_.hidden_size, wire_named(config_.exchange.dispatch_format)},
        .combine = {DType::f32, model_.hidden_size, wire_named(config_.exchange.combine_format)},
        .slot_order = config_.exchange.combine == "slot_order",
        .experts = static_cast<int>(model_.n_routed_experts),
        .most_hosts = model_.n_group > 1 ? static_cast<int>(model_.topk_group) : 0};
    const CostModel costs = {machine_.host, machine_.network, 1.0 / (machine_.dispatch * kGiga)};
    shape_.strategy = config_.exchange.strategy;
    if (shape_.strategy == "auto") {
      shape_.strategy = exchanges() ? predict(workload, group, costs).front().strategy : "flat";
    }
    if (shape_.strategy == kPluginStrategy) shape_.strategy = "flat";  // as far as one can know
    times_ = exchange_times(shape_.strategy, workload, group, costs);
    told_s_ = (hosts > 1 ? machine_.network.alpha_s : machine_.host.alpha_s) * (exchanges() ? 1.0 : 0.0);
  }

  void make_stage(int stage) {
    const StagePlace place = pipeline_routes(shape_.program.routes, config_.parallel).place_of(stage);
    const LayerRange layers = layers_of(model_, place);
    times_of_stage_ = {};
    skew_s_ = 0.0;
    next_exchange_ = 0;
    sums_experts_ = shares_[static_cast<size_t>(stage)].expert_ranks > 1;
    const int num_buckets = layers.last - layers.first + 2;
    enter(place);
    for (int layer = layers.first; layer < layers.last; ++layer) block_forward(layer, layer - layers.first + 1);
    leave_forward(place, num_buckets - 1);
    next_exchange_ = 0;
    leave_backward(place, num_buckets - 1);
    for (int layer = layers.last; layer-- > layers.first;) block_backward(layer, layer - layers.first + 1);
    embed_backward(place);
    StageTraffic traffic =
        traffic_of_stage(config_, shape_.grid, ranks_a_host_, machine_, shares_[static_cast<size_t>(stage)]);
    times_of_stage_.buckets = std::move(traffic.buckets);
    shape_.stages.push_back(std::move(times_of_stage_));
    shape_.skew_s.push_back(skew_s_);
    shape_.tail_s.push_back(traffic.tail_s);
  }

  // Forward.
  PassParts& forward() { return times_of_stage_.forward; }
  PassParts& backward() { return times_of_stage_.backward; }
  static void works(PassParts& parts, double seconds) {
    if (seconds > 0.0) parts.push_back({PartKind::compute, seconds});
  }
  static void later(PassParts& parts, double seconds) {
    if (seconds > 0.0) parts.push_back({PartKind::defer, seconds});
  }
  void later_of_experts(PassParts& parts, double seconds) const {
    if (seconds > 0.0) parts.push_back({sums_experts_ ? PartKind::defer : PartKind::defer_last, seconds});
  }
  int starts(PassParts& parts, const LinkTime& time, double factor = 1.0) {
    if (exchanges()) parts.push_back({PartKind::start, time.busy_s * factor, time.latency_s, next_exchange_});
    return next_exchange_++;
  }
  void awaits(PassParts& parts, int id) const {
    if (exchanges()) parts.push_back({PartKind::await, 0.0, 0.0, id});
  }

  void enter(const StagePlace& place) {
    forward().push_back({PartKind::await_values, 0.0, 0.0, 0});
    if (place.is_first()) works(forward(), 0.5 * bytes_s(row_bytes(), machine_.embedding));
  }
  void embed_backward(const StagePlace& place) {
    if (place.is_first()) works(backward(), 0.5 * bytes_s(row_bytes(), machine_.embedding));
    backward().push_back({PartKind::end_bucket, 0.0, 0.0, 0});
  }

  double attention_flops(const LayerElements& elements) const {
    return shape_.tokens *
           (2.0 * static_cast<double>(elements.attention) + attended_flops(model_, config_.data.sequence_length));
  }
  double flops_of(int64_t elements) const { return 2.0 * shape_.tokens * static_cast<double>(elements); }
  double adds_rows() const { return static_cast<double>(model_.num_experts_per_tok) + times_.row_copies; }
  // At the experts; the rest at the tokens.
  double adds_share() const { return static_cast<double>(model_.num_experts_per_tok) / adds_rows(); }
  double packed_bytes_of_rows() const { return row_bytes() * times_.row_copies; }
  double added_bytes() const { return row_bytes() * adds_rows(); }
  ProductRate expert_rate() const {
    const double rows = shape_.tokens * static_cast<double>(model_.num_experts_per_tok * shape_.grid.expert) /
                        static_cast<double>(model_.n_routed_experts);
    return machine_.experts_with(rows);
  }

  // No rank gets more than all rows.
  double row_skew_of(int64_t layer) const {
    return std::min(skew_.rows_of(layer), static_cast<double>(shape_.grid.expert) / times_.row_copies);
  }

  void block_forward(int64_t layer, int bucket) {
    PassParts& parts = forward();
    parts.push_back({PartKind::await_values, 0.0, 0.0, bucket});
    layer_forward(parts, layer);
  }

  void layer_forward(PassParts& parts, int64_t layer) {
    const LayerElements elements = layer_elements(model_, layer);
    works(parts, product_s(attention_flops(elements), machine_.attention.forward));
    if (elements.experts == 0) return works(parts, product_s(flops_of(elements.dense), machine_.dense.forward));
    const double skew = skew_.work_of(layer);
    const double row_skew = row_skew_of(layer);
    works(parts, product_s(flops_of(elements.router), machine_.router.forward));
    const int told = starts(parts, {0.0, told_s_});
    awaits(parts, told);
    if (config_.exchange.balance == "host") {  // ranks tell each other their counts first
      const int counted = starts(parts, {0.0, told_s_});
      awaits(parts, counted);
    }
    works(parts, bytes_s(packed_bytes_of_rows(), machine_.dispatch));
    const int rows = starts(parts, times_.dispatch, row_skew);
    works(parts, product_s(flops_of(elements.shared_experts), machine_.shared_experts.forward));
    awaits(parts, rows);
    const double experts = product_s(flops_of(elements.met_experts), expert_rate().forward);
    works(parts, experts * skew);
    skew_s_ += experts * (skew - 1.0);
    const double adding = bytes_s(added_bytes(), machine_.combine);
    works(parts, adding * adds_share());
    const int back = starts(parts, times_.combine, row_skew);
    awaits(parts, back);
    works(parts, adding * (1.0 - adds_share()) + product_s(flops_of(elements.dense), machine_.dense.forward));
  }

  void block_backward(int64_t layer, int bucket) {
    if (recompute_.whole_layer(layer)) layer_forward(backward(), layer);
    layer_backward(backward(), layer);
    backward().push_back({PartKind::end_bucket, 0.0, 0.0, bucket});
  }

  void layer_backward(PassParts& parts, int64_t layer) {
    const LayerElements elements = layer_elements(model_, layer);
    works(parts, product_s(flops_of(elements.dense), machine_.dense.input_grad));
    later(parts, product_s(flops_of(elements.dense), machine_.dense.weight_grad));
    if (elements.experts > 0) mixture_backward(parts, elements, layer);
    if (recompute_.mla_up) works(parts, product_s(flops_of(elements.mla_up), machine_.attention.forward));
    if (recompute_.attention) works(parts, product_s(attention_flops(elements), machine_.attention.forward));
    works(parts, product_s(attention_flops(elements), machine_.attention.input_grad));
    later(parts, product_s(attention_flops(elements), machine_.attention.weight_grad));
  }

  void mixture_backward(PassParts& parts, const LayerElements& elements, int64_t layer) {
    const double skew = skew_.work_of(layer);
    const double row_skew = row_skew_of(layer);
    const double packing = bytes_s(packed_bytes_of_rows(), machine_.combine_grad);
    works(parts, 0.5 * packing);
    const int rows = starts(parts, times_.dispatch, row_skew);
    works(parts, product_s(flops_of(elements.shared_experts), machine_.shared_experts.input_grad));
    later(parts, product_s(flops_of(elements.shared_experts), machine_.shared_experts.weight_grad));
    awaits(parts, rows);
    works(parts, 0.5 * packing);
    const int numbers = starts(parts, {0.0, told_s_});
    const double flops = flops_of(elements.met_experts);
    const ProductRate rate = expert_rate();
    works(parts, product_s(flops, rate.input_grad) * skew);
    for (int part = 0; part < kExpertWeightParts; ++part) {
      later_of_experts(parts, product_s(flops, rate.weight_grad) * skew / kExpertWeightParts);
    }
    skew_s_ += (product_s(flops, rate.input_grad) + product_s(flops, rate.weight_grad)) * (skew - 1.0);
    awaits(parts, numbers);
    works(parts, product_s(flops_of(elements.router), machine_.router.input_grad));
    later(parts, product_s(flops_of(elements.router), machine_.router.weight_grad));
    const double adding = bytes_s(added_bytes(), machine_.dispatch_grad);
    works(parts, adding * adds_share());
    const int back = starts(parts, times_.combine, row_skew);
    awaits(parts, back);
    works(parts, adding * (1.0 - adds_share()));
  }

  double head_flops() const { return flops_of(model_.vocab_size * model_.hidden_size); }
  // Of the product in front of the layer of an MTP module.
  double joined_flops() const { return flops_of(2 * model_.hidden_size * model_.hidden_size); }

  void leave_forward(const StagePlace& place, int bucket) {
    PassParts& parts = forward();
    parts.push_back({PartKind::await_values, 0.0, 0.0, bucket});
    if (!place.is_last()) return;
    works(parts, product_s(head_flops(), machine_.head.forward));
    for (int64_t module = 0; module < model_.num_nextn_predict_layers; ++module) {
      works(parts, product_s(joined_flops(), machine_.dense.forward));
      layer_forward(parts, model_.num_hidden_layers + module);
      works(parts, product_s(head_flops(), machine_.head.forward));
    }
  }

  void leave_backward(const StagePlace& place, int bucket) {
    PassParts& parts = backward();
    if (place.is_last()) {
      works(parts, product_s(head_flops(), machine_.head.input_grad));
      for (int64_t module = model_.num_nextn_predict_layers; module-- > 0;) {
        works(parts, product_s(head_flops(), machine_.head.input_grad));
        later(parts, product_s(head_flops(), machine_.head.weight_grad));
        layer_backward(parts, model_.num_hidden_layers + module);
        works(parts, product_s(joined_flops(), machine_.dense.input_grad));
        later(parts, product_s(joined_flops(), machine_.dense.weight_grad));
      }
      later(parts, product_s(head_flops(), machine_.head.weight_grad));
    }
    parts.push_back({PartKind::end_bucket, 0.0, 0.0, bucket});
  }

  const RunConfig& config_;
  const ModelConfig& model_;
  const Topology& topology_;
  const Machine& machine_;
  const LoadSkew& skew_;
  StepShape shape_;
  int ranks_a_host_ = 1;
  ExchangeTimes times_;
  double told_s_ = 0.0;  // small messages of an exchange
  StageTimes times_of_stage_;
  double skew_s_ = 0.0;
  int next_exchange_ = 0;
  bool sums_experts_ = false;  // of the stage
  std::vector<StageShares> shares_;
  Recompute recompute_;
};

// The slots that each rank computes of each expert, as in a micro-batch of very many.
BalancedRows rows_of_ranks(const std::vector<double>& counts, double total, int ranks, int sharing) {
  constexpr double kSlots = 1e12;
  const ExpertMap owners = ExpertMap::contiguous(static_cast<int>(counts.size()), ranks);
  std::vector<int64_t> slots(counts.size() * static_cast<size_t>(ranks), 0);  // all of the first source
  for (size_t expert = 0; expert < counts.size(); ++expert) {
    slots[expert] = static_cast<int64_t>(std::llround(counts[expert] / total * kSlots));
  }
  std::vector<int> host_of_rank;
  for (int rank = 0; rank < ranks; ++rank) host_of_rank.push_back(rank / sharing);
  return balance_rows(slots, owners, host_of_rank);
}

}  // namespace

int ranks_that_share(const RunConfig& config, int group, int ranks_a_host) {
  return config.exchange.balance == "host" ? std::gcd(group, ranks_a_host) : 1;
}

LoadSkew skew_of(const std::vector<int>& layers, const std::vector<std::vector<double>>& counts, int64_t top_k,
                 int ranks, int sharing) {
  LoadSkew skew;
  for (size_t row = 0; row < counts.size(); ++row) {
    const auto layer = static_cast<size_t>(layers[row]);
    if (skew.work.size() <= layer) {
      skew.work.resize(layer + 1, 1.0);
      skew.rows.resize(layer + 1, 1.0);
    }
    const double total = std::accumulate(counts[row].begin(), counts[row].end(), 0.0);
    if (total <= 0.0) continue;
    const auto experts = static_cast<double>(counts[row].size());
    const BalancedRows placed = rows_of_ranks(counts[row], total, ranks, sharing);
    const auto slots = static_cast<double>(std::accumulate(placed.rows.begin(), placed.rows.end(), int64_t{0}));
    double most_work = 0.0;
    double most_rows = 0.0;  // of a token
    for (int rank = 0; rank < ranks; ++rank) {
      double load = 0.0;
      double missed = 1.0;
      for (int replica = 0; replica < placed.map.num_replicas(); ++replica) {
        if (placed.map.replica_rank(replica) != rank) continue;
        const double share = static_cast<double>(placed.rows[static_cast<size_t>(replica)]) / slots;
        load += share;
        missed *= 1.0 - std::min(1.0, share * static_cast<double>(top_k));
      }
      most_work = std::max(most_work, load);
      most_rows = std::max(most_rows, 1.0 - missed);
    }
    skew.work[layer] = most_work * ranks;
    skew.rows[layer] = most_rows / (1.0 - std::pow(1.0 - static_cast<double>(top_k) / experts, experts / ranks));
  }
  return skew;
}

StepShape shape_step(const RunConfig& config, const Topology& topology, const Machine& machine, const LoadSkew& skew) {
  return ShapeMaker(config, topology, machine, skew).make();
}

}  // namespace cadre
