// SPDX-License-Identifier: Apache-2.0
// From the [data] section to tokens: opens what data.path names and holds some out for validation.
#pragma once

#include <cstdint>

#include "runtime/config/run_config.hpp"
#include "runtime/data/token_source.hpp"

namespace cadre {

struct Dataset {
  TokenSource train;
  TokenSource validation;  // the last floor(validation_fraction * tokens)
};

// All tokens of data.path: a token file when it begins like one, else text through data.tokenizer. A tokenizer with more
// tokens than the model's vocabulary throws.
TokenSource open_tokens(const DataConfig& config, int64_t vocab_size);

// A part that is not even one window of sequence_length + 1 tokens is an error; a validation_fraction of 0 asks for no
// validation part.
Dataset open_dataset(const DataConfig& config, int64_t vocab_size);

}  // namespace cadre
