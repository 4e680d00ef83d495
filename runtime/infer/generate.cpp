// SPDX-License-Identifier: Apache-2.0
#include "runtime/infer/generate.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr size_t kNoToken = static_cast<size_t>(-1);

void check(const ModelConfig& config, const std::vector<TextRequest>& texts, int64_t max_new) {
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto length = static_cast<int64_t>(texts[i].prompt.size());
    const std::string which = texts.size() == 1 ? "" : fmt::format(" {} of {}", i + 1, texts.size());
    CADRE_CHECK(length >= 1, fmt::format("the prompt{} is empty, allowed: at least one token", which),
                "give it some text to go on with");
    CADRE_CHECK(max_new <= config.max_position_embeddings - length,
                fmt::format("{} new tokens after a prompt of {}, allowed: at most {} together", max_new, length,
                            config.max_position_embeddings),
                "max_position_embeddings of the model; ask for fewer new tokens or shorten the prompt");
  }
}

int64_t longest(const std::vector<TextRequest>& texts) {
  size_t length = 0;
  for (const TextRequest& text : texts) length = std::max(length, text.prompt.size());
  return static_cast<int64_t>(length);
}

// Tokens that were chosen for a text, and where wanted their log-probabilities.
struct Made {
  std::vector<int32_t> tokens;
  std::vector<double> log_probabilities;
};

// A text and how far it is. The rank that reads it knows all of this, the others how many tokens it has and whether it is over.
struct Text {
  std::vector<int32_t> tokens;  // prompt and what was made
  std::vector<int32_t> drafts;  // of what comes next
  int64_t num_read = 0;
  int64_t num_made = 0;
  bool is_over = false;
  std::vector<int32_t> tasks = {};  // of the first tokens, as far as they have been asked for
  std::optional<TaskLabeller::Sequence> labels = {};
  std::optional<StopStrings> stop = {};  // where there are any
};

class Generation {
 public:
  Generation(Worker& worker, const std::vector<TextRequest>& requests, const GenerateOptions& options, const Emit& emit)
      : worker_(worker),
        requests_(requests),
        options_(options),
        emit_(emit),
        num_slots_(std::min(options.batch, static_cast<int64_t>(requests.size()))),
        decoder_(worker, slots_of_rank(), longest(requests) + options.max_new, options.cache, options.replay),
        num_drafts_(options.speculate ? decoder_.num_drafts() : 0),
        end_tokens_(options.end_tokens.value_or(end_tokens(worker.model().config()))),
        in_slot_(static_cast<size_t>(num_slots_), kNoToken) {
    for (const TextRequest& request : requests) {
      texts_.push_back({.tokens = request.prompt, .drafts = {}});
      if (!options.stop_strings.empty()) texts_.back().stop.emplace(options.stop_strings);
    }
    statistics_.log_probabilities.resize(requests.size());
    statistics_.drafted.resize(static_cast<size_t>(num_drafts_));
    statistics_.accepted.resize(static_cast<size_t>(num_drafts_));
  }

  GenerateStatistics run() {
    for (fill_slots(); std::ranges::any_of(in_slot_, [](size_t text) { return text != kNoToken; }); fill_slots()) {
      ++worker_.lane().position.step;
      const int64_t begin_ns = trace_clock_ns();
      const std::vector<Made> made = go_on();
      share(made);
      if (options_.rebalancer != nullptr) {
        const double pass_ms = static_cast<double>(trace_clock_ns() - begin_ns) * 1e-6;
        options_.rebalancer->after_pass(pass_ms, decoder_.take_slots(), passes_left());
      }
      if (num_drafts_ > 0) draft();
    }
    sum(statistics_.drafted);
    sum(statistics_.accepted);
    std::vector<int64_t> routed = {decoder_.routed().tokens, decoder_.routed().rerouted};
    sum(routed);
    statistics_.routed = {routed[0], routed[1]};
    std::vector<int64_t> replayed = {decoder_.replayed().choices, decoder_.replayed().differing};
    sum(replayed);
    statistics_.replayed = {replayed[0], replayed[1]};
    return statistics_;
  }

 private:
  // Slot s of all is slot s / ranks of rank s % ranks.
  int64_t num_ranks() const { return worker_.expert_group().size(); }
  int64_t slots_of_rank() const { return (num_slots_ - worker_.expert_group().rank() + num_ranks() - 1) / num_ranks(); }
  size_t text_in(size_t own_slot) const {
    return in_slot_[own_slot * static_cast<size_t>(num_ranks()) + static_cast<size_t>(worker_.expert_group().rank())];
  }
  size_t num_own_slots() const { return static_cast<size_t>(slots_of_rank()); }

  // At most, where no draft is right.
  int64_t passes_left() const {
    int64_t tokens = 0;
    for (const Text& text : texts_) tokens += text.is_over ? 0 : options_.max_new - text.num_made;
    return (tokens + num_slots_ - 1) / num_slots_;
  }

  void fill_slots() {
    for (size_t& text : in_slot_) {
      if (text == kNoToken && next_text_ < texts_.size()) text = next_text_++;
    }
  }

  // All own texts read what they have not read, and their drafts; what was made of each.
  std::vector<Made> go_on() {
    std::vector<Reading> readings(num_own_slots());
    for (size_t slot = 0; slot < readings.size(); ++slot) {
      if (text_in(slot) == kNoToken) continue;
      const Text& text = texts_[text_in(slot)];
      Reading& reading = readings[slot];
      reading.first = text.num_read;
      reading.tokens.assign(text.tokens.begin() + text.num_read, text.tokens.end());
      reading.tokens.insert(reading.tokens.end(), text.drafts.begin(), text.drafts.end());
      reading.num_logits = static_cast<int64_t>(text.drafts.size()) + 1;
      reading.tasks = tasks_to_read(text_in(slot));
      reading.num_experts = requests_[text_in(slot)].facts.num_experts;
      if (options_.replay != nullptr) {
        reading.num_recorded = options_.replay->num_tokens() / static_cast<int64_t>(texts_.size());
        reading.first_recorded = static_cast<int64_t>(text_in(slot)) * reading.num_recorded;
      }
    }
    const Tensor logits = decoder_.read(readings);
    std::vector<Made> made(readings.size());
    int64_t row = 0;
    for (size_t slot = 0; slot < readings.size(); ++slot) {
      if (text_in(slot) == kNoToken) continue;
      made[slot] = choose(text_in(slot), logits.rows(row, readings[slot].num_logits));
      row += readings[slot].num_logits;
    }
    return made;
  }

  // Of the tokens that a text has not read, and of its drafts.
  std::vector<int32_t> tasks_to_read(size_t index) {
    Text& text = texts_[index];
    const size_t num_known = text.tokens.size() + text.drafts.size();
    const auto first = static_cast<std::ptrdiff_t>(text.num_read);
    if (const int32_t task = requests_[index].facts.task; task != kNoTask) {
      return std::vector<int32_t>(num_known - static_cast<size_t>(first), task);
    }
    if (options_.labeller == nullptr) return {};
    if (!text.labels) text.labels.emplace(*options_.labeller);
    while (text.tasks.size() < text.tokens.size())
      text.tasks.push_back(text.labels->add(text.tokens[text.tasks.size()]));
    std::vector<int32_t> tasks(text.tasks.begin() + first, text.tasks.end());
    if (text.drafts.empty()) return tasks;
    TaskLabeller::Sequence ahead = *text.labels;  // drafts may be wrong
    for (const int32_t draft : text.drafts) tasks.push_back(ahead.add(draft));
    return tasks;
  }

  // The next tokens of a text: as many as its drafts are right, and the one behind them.
  Made choose(size_t index, const Tensor& logits) {
    Text& text = texts_[index];
    Made chosen;
    std::vector<int32_t>& made = chosen.tokens;
    std::vector<int32_t> known;  // that a penalty is for
    if (requests_[index].sampling.repetition_penalty != 1.0) known = text.tokens;
    for (size_t i = 0; i <= text.drafts.size(); ++i) {
      const auto position = static_cast<int64_t>(text.tokens.size() + i);
      const std::span<const float> row = {logits.data<float>() + static_cast<int64_t>(i) * logits.dim(1),
                                          static_cast<size_t>(logits.dim(1))};
      made.push_back(sample(index, row, position, known));
      if (options_.log_probabilities) chosen.log_probabilities.push_back(log_probability(row, made.back()));
      known.push_back(made.back());
      if (i == text.drafts.size() || ends_text(made.back())) break;
      ++statistics_.drafted[i];
      if (made.back() != text.drafts[i]) break;
      ++statistics_.accepted[i];
    }
    return chosen;
  }

  int32_t sample(size_t text, std::span<const float> logits, int64_t position, std::span<const int32_t> known) const {
    return sample_token(logits, requests_[text].sampling, position, known);
  }

  // Every rank learns what was made, so that all agree on which texts go on.
  void share(const std::vector<Made>& made) {
    const auto width = static_cast<size_t>(num_drafts_) + 2;  // how many, and they
    std::vector<int32_t> board(in_slot_.size() * width, 0);
    std::vector<double> log_board(options_.log_probabilities ? board.size() : 0, 0.0);
    for (size_t slot = 0; slot < made.size(); ++slot) {
      const size_t of_all =
          slot * static_cast<size_t>(num_ranks()) + static_cast<size_t>(worker_.expert_group().rank());
      const auto first = static_cast<std::ptrdiff_t>(of_all * width) + 1;
      board[of_all * width] = static_cast<int32_t>(made[slot].tokens.size());
      std::ranges::copy(made[slot].tokens, board.begin() + first);
      std::ranges::copy(made[slot].log_probabilities, log_board.begin() + (log_board.empty() ? 0 : first));
    }
    board = worker_.await(worker_.expert_group().all_reduce(std::move(board), ReduceOp::sum));
    if (options_.log_probabilities) {
      log_board = worker_.await(worker_.expert_group().all_reduce(std::move(log_board), ReduceOp::sum));
    }
    for (size_t slot = 0; slot < in_slot_.size(); ++slot) {
      if (in_slot_[slot] == kNoToken) continue;
      const auto count = static_cast<size_t>(board[slot * width]);
      const size_t first = slot * width + 1;
      const size_t num_logs = log_board.empty() ? 0 : count;
      const bool is_over = append(in_slot_[slot], std::span(board).subspan(first, count),
                                  std::span(log_board).subspan(log_board.empty() ? 0 : first, num_logs));
      if (is_over) in_slot_[slot] = kNoToken;
    }
  }

  // True when the text is over.
  bool append(size_t index, std::span<const int32_t> made, std::span<const double> log_probabilities) {
    Text& text = texts_[index];
    text.num_read = static_cast<int64_t>(text.tokens.size() + made.size()) - 1;
    text.drafts.clear();
    bool is_over = false;
    for (size_t i = 0; i < made.size(); ++i) {
      const int32_t token = made[i];
      is_over = ends_text(token);
      if (is_over) break;
      if (!log_probabilities.empty()) statistics_.log_probabilities[index].push_back(log_probabilities[i]);
      text.tokens.push_back(token);
      emit(index, token);
      if (text.stop) text.stop->put(options_.piece(token));
      is_over = ++text.num_made == options_.max_new || (text.stop && text.stop->is_over());
      if (is_over) break;
    }
    text.is_over = is_over;
    if (is_over) emit(index, std::nullopt);
    return is_over;
  }

  void emit(size_t text, std::optional<int32_t> token) const {
    if (options_.emits_on_all_ranks || worker_.expert_group().rank() == 0) emit_(text, token);
  }

  void draft() {
    std::vector<std::span<const int32_t>> known(num_own_slots());
    for (size_t slot = 0; slot < known.size(); ++slot) {
      if (text_in(slot) != kNoToken) known[slot] = texts_[text_in(slot)].tokens;
    }
    std::vector<std::vector<int32_t>> drafts =
        decoder_.draft(known, [this](size_t slot, std::span<const float> logits, int64_t position) {
          return sample(text_in(slot), logits, position, texts_[text_in(slot)].tokens);
        });
    for (size_t slot = 0; slot < known.size(); ++slot) {
      if (text_in(slot) == kNoToken) continue;
      Text& text = texts_[text_in(slot)];
      const auto wanted = static_cast<size_t>(options_.max_new - text.num_made - 1);
      drafts[slot].resize(std::min(drafts[slot].size(), wanted));
      text.drafts = std::move(drafts[slot]);
    }
  }

  void sum(std::vector<int64_t>& counts) const {
    counts = worker_.await(worker_.expert_group().all_reduce(std::move(counts), ReduceOp::sum));
  }

  bool ends_text(int32_t token) const { return std::ranges::find(end_tokens_, token) != end_tokens_.end(); }

  Worker& worker_;
  const std::vector<TextRequest>& requests_;
  const GenerateOptions& options_;
  const Emit& emit_;
  int64_t num_slots_;
  Decoder decoder_;
  int num_drafts_;
  std::vector<int32_t> end_tokens_;
  std::vector<size_t> in_slot_;  // of all ranks: which text
  std::vector<Text> texts_;
  size_t next_text_ = 0;
  GenerateStatistics statistics_;
};

}  // namespace

GenerateStatistics generate(Worker& worker, const std::vector<TextRequest>& texts, const GenerateOptions& options,
                            const Emit& emit) {
  check(worker.model().config(), texts, options.max_new);
  CADRE_ASSERT(options.stop_strings.empty() || options.piece);
  if (options.replay != nullptr) {
    const auto count = static_cast<int64_t>(texts.size());
    CADRE_CHECK(options.replay->num_tokens() % count == 0,
                fmt::format("the routing of {} tokens is to be replayed, allowed: a multiple of the {} texts",
                            options.replay->num_tokens(), count),
                "equally many tokens of each text, one text after the other");
  }
  return Generation(worker, texts, options, emit).run();
}

TextStream::TextStream(size_t num_texts, std::function<void(std::string_view)> sink)
    : sink_(std::move(sink)), texts_(num_texts) {}

void TextStream::add(size_t text, std::string_view bytes) {
  texts_[text].waiting += texts_[text].characters.put(bytes);
  write();
}

void TextStream::end(size_t text) {
  texts_[text].waiting += texts_[text].characters.finish() + "\n";
  texts_[text].is_over = true;
  write();
}

void TextStream::write() {
  for (; current_ < texts_.size(); ++current_) {
    const std::string characters = std::exchange(texts_[current_].waiting, {});
    if (!characters.empty()) sink_(characters);
    if (!texts_[current_].is_over) return;
  }
}

}  // namespace cadre
