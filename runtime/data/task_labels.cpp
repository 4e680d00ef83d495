// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/task_labels.hpp"

#include <fmt/format.h>

#include "comm/base/check.hpp"
#include "runtime/config/task_config.hpp"
#include "runtime/data/token_file.hpp"
#include "runtime/tokenizer/open.hpp"

namespace cadre {

int32_t TaskLabeller::Sequence::add(int32_t token) {
  const std::optional<TaskType> task = reader_.read(labeller_->tokenizer_->piece(token));
  if (token == labeller_->end_of_text_) reader_.restart();
  return task ? static_cast<int32_t>(*task) : kNoTask;
}

std::vector<int32_t> TaskLabeller::label(std::span<const int32_t> tokens, int64_t sequence_length) const {
  const auto length = static_cast<size_t>(sequence_length);
  CADRE_ASSERT(length > 0 && tokens.size() % length == 0);
  std::vector<int32_t> labels;
  labels.reserve(tokens.size());
  for (size_t first = 0; first < tokens.size(); first += length) {
    Sequence sequence(*this);
    for (const int32_t token : tokens.subspan(first, length)) labels.push_back(sequence.add(token));
  }
  return labels;
}

std::optional<TaskLabeller> make_task_labeller(const RunConfig& config) {
  if (!config.task.recognise) return std::nullopt;
  const bool are_bytes = config.data.tokenizer == kByteTokenizer;
  CADRE_CHECK(!are_bytes || !is_token_file(config.data.path),
              fmt::format("task.recognise = true with data.path = {}, a token file, and data.tokenizer = \"bytes\"",
                          config.data.path),
              "keywords are found in text: name the tokenizer that made the tokens");
  return TaskLabeller(task_options(config.task), open_tokenizer(config.data.tokenizer), config.model.eos_token_id);
}

}  // namespace cadre
