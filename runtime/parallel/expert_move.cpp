// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/expert_move.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"
#include "runtime/checkpoint/state_holders.hpp"

namespace cadre {
namespace {

// Sections of a stream: moments may be read at once, values once they are gathered, gradients of a layer once they are summed;
// the last layer is the first.
constexpr size_t kMoments = 0;
constexpr size_t kValues = 1;
constexpr size_t kFirstGradients = 2;

// What travels has the time of a step, and each test that finds nothing takes some of it.
constexpr int64_t kTestIntervalNs = 500'000;

// What belongs to a parameter.
enum class Part : uint8_t { value, first, second, gradient };

uint64_t key_of(const std::string& name, Part part) {
  static constexpr const char* kSuffix[] = {".value", ".first", ".second", ".grad"};
  return hash_name(name + kSuffix[static_cast<size_t>(part)]);
}

struct HeldTensor {
  Tensor memory;
  size_t section;
};

using Visit = std::function<void(Part, const Tensor&, size_t section)>;

// The mixture layers of the model that are on this rank, and what is known of them.
class State {
 public:
  State(Worker& worker, const Optimizer& optimizer)
      : worker_(worker), optimizer_(optimizer), layers_(moe_layers_of(worker.model().config())) {
    for (size_t i = 0; i < optimizer.moments().size(); ++i) moments_[optimizer.moments()[i].parameter] = i;
  }

  size_t num_sections() const { return kFirstGradients + layers_.size(); }

  // Of a parameter of layer layers_[mixture]; a gradient where this rank keeps its moments, as then it has the sum.
  void each_part(const Parameter& parameter, size_t mixture, const Visit& visit) const {
    if (parameter.placement != Placement::expert) return;
    visit(Part::value, parameter.value, kValues);
    const auto found = moments_.find(&parameter);
    if (found == moments_.end()) return;
    const Optimizer::Moments& moments = optimizer_.moments()[found->second];
    visit(Part::first, moments.first, kMoments);
    if (moments.second.defined()) visit(Part::second, moments.second, kMoments);
    if (!parameter.frozen) visit(Part::gradient, parameter.grad, kFirstGradients + layers_.size() - 1 - mixture);
  }

  MoeLayer* mixture(size_t index) const {
    Stage* const stage = worker_.model().stage_with(layers_[index]);
    return stage == nullptr ? nullptr : &stage->block(layers_[index]).moe();
  }
  int layer(size_t mixture) const { return layers_[mixture]; }
  size_t num_mixtures() const { return layers_.size(); }

  bool is_ready(size_t section) const {
    if (section == kMoments) return true;
    const GradientReduction& gradients = worker_.gradients();
    if (section == kValues) return gradients.has_values();
    const int layer = layers_[layers_.size() - 1 - (section - kFirstGradients)];
    const Stage& stage = *worker_.model().stage_with(layer);
    return gradients.has_expert_sums(stage.place().index, stage.bucket_of(layer));
  }

  // Of a parameter that has moments here.
  size_t index_of(const Parameter& parameter) const { return moments_.at(&parameter); }
  Worker& worker() const { return worker_; }

 private:
  Worker& worker_;
  const Optimizer& optimizer_;
  std::vector<int> layers_;
  std::unordered_map<const Parameter*, size_t> moments_;  // their index
};

// Experts that some rank of `after` holds and the same rank of `before` does not.
std::vector<bool> moving(const ExpertMap& before, const ExpertMap& after) {
  std::vector<bool> moves(static_cast<size_t>(after.num_experts()));
  for (int rank = 0; rank < after.num_ranks(); ++rank) {
    for (const int expert : after.experts_of(rank)) {
      if (!std::ranges::binary_search(before.experts_of(rank), expert)) moves[static_cast<size_t>(expert)] = true;
    }
  }
  return moves;
}

}  // namespace

// A tensor of an expert that comes.
struct ExpertMove::Arrival {
  uint64_t key;
  Part part;
  Parameter* parameter;  // whose it is from the switch on
  size_t moments;        // of that parameter, for moments
  Tensor memory;         // where it belongs by then
  size_t section;
  std::byte* at = nullptr;  // where it arrives
};

struct ExpertMove::Arrivals {
  std::vector<Arrival> tensors;                             // by section
  std::vector<std::pair<Parameter*, std::string>> renamed;  // and the name that each gets
  Buffer memory = {};                                       // of those that have no spare memory
  int64_t moved_bytes = 0;                                  // over all ranks, when all has travelled
};

// Who gives what to whom is gathered first; then the streams run.
class ExpertMove::Travel : public PendingOperation {
 public:
  Travel(Worker& worker, Optimizer& optimizer, const Communicator& group, const ExpertMaps& maps,
         std::shared_ptr<Arrivals> arrivals, const StreamOptions& pieces)
      : group_(group),
        optimizer_(optimizer),
        state_(worker, optimizer),
        arrivals_(std::move(arrivals)),
        pieces_(pieces) {
    look_at_experts(maps);
    std::vector<uint64_t> message = {held_.size()};
    for (const auto& [key, tensor] : held_) message.push_back(key);
    for (const Arrival& arrival : arrivals_->tensors) message.push_back(arrival.key);
    lists_.emplace(start_gather_lists(group_, std::move(message)));
  }

  bool test() override {
    const int64_t now_ns = trace_clock_ns();
    if (now_ns - tested_ns_ < kTestIntervalNs) return false;
    const bool done = move_on();
    tested_ns_ = trace_clock_ns();
    return done;
  }

  std::string missing() const override {
    if (!total_) return std::as_const(*lists_).request().missing();
    return streams_.done() ? std::as_const(*total_).request().missing() : streams_.missing();
  }
  // Messages are abandoned for themselves.
  void abandon() noexcept override {
    streams_ = Request();
    total_.reset();
    lists_.reset();
  }
  bool outlives_job() const override { return false; }

 private:
  bool move_on() {
    if (!lists_->request().test()) return false;
    if (!total_) begin_streams();
    if (!streams_.test() || !total_->request().test()) return false;
    arrivals_->moved_bytes = total_->value();
    return true;
  }

  void look_at_experts(const ExpertMaps& maps) {
    const int rank = state_.worker().groups().expert_rank();
    for (size_t mixture = 0; mixture < state_.num_mixtures(); ++mixture) {
      MoeLayer* const moe = state_.mixture(mixture);
      if (moe == nullptr) continue;
      const ExpertMap& before = moe->expert_map();
      const ExpertMap& after = maps.of(state_.layer(mixture));
      const std::vector<bool> moves = moving(before, after);
      const std::span<const int> here = before.experts_of(rank);
      for (size_t i = 0; i < here.size(); ++i) {
        if (!moves[static_cast<size_t>(here[i])]) continue;
        moe->each_parameter_of_expert(static_cast<int>(i), [&](const Parameter& parameter) {
          state_.each_part(parameter, mixture, [&](Part part, const Tensor& tensor, size_t section) {
            held_[key_of(parameter.name(), part)] = {tensor, section};
          });
        });
      }
      moe->each_successor(after, rank, [&](Parameter& parameter, const std::string& name) {
        arrivals_->renamed.emplace_back(&parameter, name);
        state_.each_part(parameter, mixture, [&](Part part, const Tensor& tensor, size_t section) {
          const bool is_moment = part == Part::first || part == Part::second;
          arrivals_->tensors.push_back(
              {key_of(name, part), part, &parameter, is_moment ? state_.index_of(parameter) : 0, tensor, section});
        });
      });
    }
    std::ranges::stable_sort(arrivals_->tensors, {}, &Arrival::section);
  }

  void begin_streams() {
    std::vector<std::vector<uint64_t>> held;
    std::vector<std::vector<uint64_t>> wanted;
    for (const std::vector<uint64_t>& list : lists_->value()) {
      CADRE_CHECK_PEER(!list.empty() && list.front() < list.size(), "a rank holds more experts than it names");
      const auto middle = list.begin() + 1 + static_cast<std::ptrdiff_t>(list.front());
      held.emplace_back(list.begin() + 1, middle);
      wanted.emplace_back(middle, list.end());
    }
    const std::vector<std::vector<int>> givers = givers_of(wanted, held);
    CADRE_CHECK(!givers.empty(), "an expert that should move is on no rank");

    Tracer& tracer = state_.worker().job().tracer();
    const TraceActivity activity(tracer, TraceKind::compute,
                                 {.step = state_.worker().lanes().lane().position.step, .phase = "expert move"});
    std::vector<IncomingStream> in = incoming(givers[static_cast<size_t>(group_.rank())]);
    int64_t received = 0;
    for (const Arrival& arrival : arrivals_->tensors) received += static_cast<int64_t>(arrival.memory.bytes());
    total_.emplace(group_.all_reduce(received, ReduceOp::sum));
    total_->request().hide();
    ParameterStore& store = state_.worker().store();
    const auto keeper = std::make_shared<std::vector<std::shared_ptr<const void>>>();
    *keeper = {store.value_owner(Placement::expert), store.grad_owner(), optimizer_.moment_owner(),
               arrivals_->memory.share()};
    streams_ = exchange_streams(group_, outgoing(wanted, givers), std::move(in), store.memory(), keeper, pieces_);
  }

  std::vector<IncomingStream> incoming(const std::vector<int>& givers) {
    place_arrivals();
    std::map<int, IncomingStream> streams;
    for (size_t i = 0; i < givers.size(); ++i) {
      const Arrival& arrival = arrivals_->tensors[i];
      streams[givers[i]].parts.emplace_back(arrival.at, arrival.memory.bytes());
    }
    std::vector<IncomingStream> all;
    for (auto& [peer, stream] : streams) all.push_back({peer, std::move(stream.parts)});
    return all;
  }

  // Moments on the host arrive where they stay.
  void place_arrivals() {
    const bool on_host = state_.worker().store().memory().is_on_host();
    size_t bytes = 0;
    for (Arrival& arrival : arrivals_->tensors) {
      const bool is_moment = arrival.part == Part::first || arrival.part == Part::second;
      if (is_moment && on_host) {
        arrival.at = optimizer_.take_spare(arrival.memory.bytes());
      } else {
        bytes += whole_cache_lines(arrival.memory.bytes());
      }
    }
    arrivals_->memory = Buffer(bytes);
    std::byte* next = arrivals_->memory.data();
    for (Arrival& arrival : arrivals_->tensors) {
      if (arrival.at != nullptr) continue;
      arrival.at = next;
      next += whole_cache_lines(arrival.memory.bytes());
    }
  }

  std::vector<OutgoingStream> outgoing(const std::vector<std::vector<uint64_t>>& wanted,
                                       const std::vector<std::vector<int>>& givers) const {
    std::vector<OutgoingStream> streams;
    for (size_t rank = 0; rank < wanted.size(); ++rank) {
      OutgoingStream stream = {static_cast<int>(rank), {}, [this](size_t section) { return state_.is_ready(section); }};
      for (size_t i = 0; i < wanted[rank].size(); ++i) {
        if (givers[rank][i] != group_.rank()) continue;
        const HeldTensor& tensor = held_.at(wanted[rank][i]);
        stream.parts.push_back({{tensor.memory.raw(), tensor.memory.bytes()}, tensor.section});
      }
      if (!stream.parts.empty()) streams.push_back(std::move(stream));
    }
    return streams;
  }

  const Communicator& group_;
  Optimizer& optimizer_;
  State state_;
  std::shared_ptr<Arrivals> arrivals_;
  StreamOptions pieces_;
  std::map<uint64_t, HeldTensor> held_;
  std::optional<Pending<std::vector<std::vector<uint64_t>>>> lists_;
  std::optional<Pending<int64_t>> total_;
  Request streams_;
  int64_t tested_ns_ = 0;
};

ExpertMove::ExpertMove(Worker& worker, Optimizer& optimizer, const Communicator& group, ExpertMaps maps,
                       const StreamOptions& pieces)
    : worker_(worker), optimizer_(optimizer), maps_(std::move(maps)), arrivals_(std::make_shared<Arrivals>()) {
  worker.gradients().complete_experts_early(true);
  auto travel = std::make_unique<Travel>(worker, optimizer, group, maps_, arrivals_, pieces);
  travel_ = Request(worker.job(), fmt::format("moving experts (rank {} of {})", group.rank(), group.size()),
                    std::move(travel));
  travel_.hide();
  worker.poller().watch(travel_, Poller::Kind::other);
}

ExpertMove::~ExpertMove() {
  for (auto& [parameter, grad] : grads_) parameter->grad = grad;
  worker_.poller().unwatch(travel_);
  worker_.gradients().complete_experts_early(false);
}

int64_t ExpertMove::finish() {
  worker_.lane().enter("moving experts");
  worker_.await(travel_);
  worker_.poller().unwatch(travel_);
  worker_.kernels().synchronize();
  worker_.relocate(maps_);
  for (const auto& [parameter, name] : arrivals_->renamed) {
    CADRE_ASSERT(parameter->name() == name);
    ++parameter->version;
  }
  for (const Arrival& arrival : arrivals_->tensors) take(arrival);
  return arrivals_->moved_bytes;
}

void ExpertMove::take(const Arrival& arrival) {
  Memory& memory = worker_.store().memory();
  if (arrival.part == Part::value || !memory.is_on_host()) {
    return memory.write(arrival.memory.raw(), arrival.at, arrival.memory.bytes());
  }
  switch (arrival.part) {
    case Part::first: return optimizer_.replace_first(arrival.moments, arrival.at);
    case Part::second: return optimizer_.replace_second(arrival.moments, arrival.at);
    default: break;
  }
  grads_.emplace_back(arrival.parameter, arrival.memory);
  arrival.parameter->grad = arrival.memory.with_memory(arrival.at, arrival.memory.dtype());
}

}  // namespace cadre
