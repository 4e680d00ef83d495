// SPDX-License-Identifier: Apache-2.0
// From the [data] section to tokens: opens what data.path names and holds some out for validation.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/config/run_config.hpp"
#include "runtime/data/file_list.hpp"
#include "runtime/data/order.hpp"

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
  std::vector<DataPart> train;       // as data.mixture weighs them
  std::vector<DataPart> validation;  // the last floor(validation_fraction * tokens) of each, each window once a round
  std::vector<DataSummary> summaries;
};

// All tokens of a path: a token file when it begins like one, else text through the tokenizer. Between two documents of
// a folder stands the token `end_of_text`; where that is -1 a newline. A tokenizer with more tokens than the model's
// vocabulary throws.
OpenedTokens open_tokens(const std::string& path, const std::string& tokenizer, int64_t vocab_size,
                         int64_t end_of_text = -1);

// All of data.path, or of data.mixture. A part that is not even one window of sequence_length + 1 tokens is an error; a validation_fraction of 0 asks for no
// validation part.
Dataset open_dataset(const DataConfig& config, const ModelConfig& model);

// The same run with model.eos_token_id, where the configuration leaves it open, from the tokenizer, if that has such a
// token. Bytes have none.
RunConfig with_end_of_text(RunConfig config);

}  // namespace cadre
