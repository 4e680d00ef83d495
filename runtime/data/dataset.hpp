// SPDX-License-Identifier: Apache-2.0
// From the [data] section to tokens: opens what data.path names and holds some out for validation.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "layers/router/task.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/data/documents.hpp"
#include "runtime/data/order.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

// What was read, and what was not.
struct DataSummary {
  std::string path;
  int64_t files = 0;
  int64_t bytes = 0;                   // of the files
  int64_t tokens = 0;                  // with those between documents
  std::string between_documents = {};  // empty where there is one
  std::vector<LeftOut> left_out = {};
  std::string note = {};  // on the tokens, usually empty
};

// "data/books: 4 files, 1200 bytes, 1203 tokens, a newline between documents; left out: a.bin (holds a zero byte, ...)".
std::string describe(const DataSummary& summary);

struct OpenedTokens {
  TokenSource tokens;
  DataSummary summary;
};

struct Dataset {
  std::vector<DataPart> train;  // as data.mixture weighs them
  // data.validation, or the last floor(validation_fraction * tokens) of each; each window once a round
  std::vector<DataPart> validation;
  std::vector<DataSummary> summaries;
  std::optional<DataSummary> validation_summary;  // of data.validation
};

// Whether the configuration holds data out for evaluation.
bool holds_out_data(const DataConfig& config);

// "a.bin, b.bin (holds a zero byte, ...)", some of each reason by name.
std::string describe(const std::vector<LeftOut>& left_out);

// Whether the path names a token file, of llm.c or of Megatron-LM (indexed_file.hpp).
bool holds_tokens(const std::string& path);

// All tokens of a path: a token file when it begins like one, else text through the tokenizer, or, with `text_field`, the
// texts of JSON Lines. Between two documents of a folder or of JSON Lines stands the token `end_of_text`; where that is -1 a
// newline. A tokenizer with more tokens than the model's vocabulary throws.
OpenedTokens open_tokens(const std::string& path, const std::string& tokenizer, int64_t vocab_size,
                         int64_t end_of_text = -1, const std::string& text_field = "");

// All of data.path, or of data.mixture, in the format data.format. A part that is not even one window of sequence_length + 1
// tokens is an error; data.validation or else validation_fraction says what is held out. Of conversations a part is whole
// ones, packed (conversations.hpp).
Dataset open_dataset(const DataConfig& config, const ModelConfig& model);

// What that keeps in memory: about the bytes of its texts, and nothing of token files, which are read as they are needed.
size_t held_bytes(const DataConfig& config);

// The whole of data.validation alone, as Dataset::validation has it.
struct OpenedPart {
  DataPart part;
  DataSummary summary;
};
OpenedPart open_validation(const DataConfig& config, const ModelConfig& model);

// The same run with model.eos_token_id, where the configuration leaves it open, from the tokenizer, if that has such a
// token. Of bytes 0, which no text holds, ends the answers of conversations.
RunConfig with_end_of_text(RunConfig config);

// The task of each token, as a router takes it: what its text up to and including it says (recognise_task). No later token
// has a part in it, so that training, evaluation, scoring and generation give a token the same task. A text begins with its
// sequence, and again behind a token that ends a text.
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
