// SPDX-License-Identifier: Apache-2.0
// The task of each token, as a router takes it: what its text up to and including it says (recognise_task). No later token
// has a part in it, so that training, evaluation, scoring and generation give a token the same task. A text begins with its
// sequence, and again behind a token that ends a text.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "layers/moe/task.hpp"
#include "runtime/config/data_mixture.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

class TaskLabeller {
 public:
  TaskLabeller(TaskOptions options, std::shared_ptr<const Tokenizer> tokenizer, int64_t end_of_text)
      : options_(std::move(options)), tokenizer_(std::move(tokenizer)), end_of_text_(end_of_text) {}

  // A sequence that grows. The labeller must live as long.
  class Sequence {
   public:
    explicit Sequence(const TaskLabeller& labeller) : labeller_(&labeller), reader_(labeller.options_) {}
    // The TaskType of this token, as a number; kNoTask while no keyword was read, so that nothing draws it anywhere.
    int32_t add(int32_t token);

   private:
    const TaskLabeller* labeller_;
    TaskReader reader_;
  };

  // Of whole sequences of one length.
  std::vector<int32_t> label(std::span<const int32_t> tokens, int64_t sequence_length) const;

 private:
  TaskOptions options_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  int64_t end_of_text_;
};

// What task.recognise asks for, with the tokenizer of the run; none where it is off. Throws where tokens have no text: those
// of a token file without data.tokenizer.
std::optional<TaskLabeller> make_task_labeller(const RunConfig& config);

}  // namespace cadre
