// SPDX-License-Identifier: Apache-2.0
// The texts that `cadre generate` is asked to go on with, and what each asks of the router.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/config/run_config.hpp"
#include "runtime/infer/generate.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

struct RequestOptions {
  std::vector<std::string> prompts;
  std::string prompts_file;
  std::string complexity;  // of all prompts, or with commas of each
  std::string task;
  int64_t samples = 1;
  Sampling sampling;  // of the first sample; each further one has the next seed
};

struct Requests {
  std::vector<std::string> prompts;
  std::vector<TextRequest> texts;  // a prompt with its samples, then the next
  int64_t top_k = 0;               // experts a token that the model needs for all of them
  std::vector<std::string> notes;
};

// All of --prompt, then the lines of the file: UTF-8, with or without a byte order mark, line ends of Unix or Windows; empty
// lines are passed over. Throws where there is no prompt, and where a complexity or task does not exist.
Requests make_requests(const RequestOptions& options, const RunConfig& config, const Tokenizer& tokenizer);

// The model with room for `top_k` experts a token. What a token of fewer experts computes does not change.
ModelConfig with_top_k(ModelConfig model, int64_t top_k);

// What a prompt asks for, and what in it says so, in lines.
std::string explain(const std::string& prompt, const RunConfig& config, const RequestFacts& facts);

}  // namespace cadre
