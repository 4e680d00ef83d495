// SPDX-License-Identifier: Apache-2.0
// The routing that `cadre score --routing` wrote, read to be replayed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <vector>

#include "layers/model/config.hpp"
#include "layers/router/replay.hpp"

namespace cadre {

class RecordedRouting {
 public:
  // Reads layers.<N>.topk_indices I64 [T,K] of every mixture layer of `model`, MTP modules left out, for `num_tokens` tokens.
  // Throws on what is missing, of another shape, or no expert, and where a token visits one expert twice.
  RecordedRouting(const std::filesystem::path& path, const ModelConfig& model, int64_t num_tokens);

  // Of tokens [first, first + count).
  Replay of_tokens(int64_t first, int64_t count) const;

 private:
  int64_t num_tokens_;
  std::map<int, std::vector<int32_t>> ids_;  // [T,K] by layer
};

}  // namespace cadre
