// SPDX-License-Identifier: Apache-2.0
// Routing in files: what `cadre score --routing` and log.routing write, read to be replayed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "layers/model/config.hpp"
#include "layers/router/replay.hpp"
#include "runtime/parallel/gather_results.hpp"

namespace cadre {

class RecordedRouting {
 public:
  // Reads layers.<N>.topk_indices I64 [T,K] of every mixture layer of `model`, MTP modules left out, for `num_tokens` tokens.
  // Empty: as many as are there. Throws on what is missing, of another shape, or no expert, and where a token visits one expert twice.
  RecordedRouting(const std::filesystem::path& path, const ModelConfig& model, std::optional<int64_t> num_tokens);

  int64_t num_tokens() const { return num_tokens_; }
  // Of tokens [first, first + count).
  Replay of_tokens(int64_t first, int64_t count) const;
  // One more token; empty: one that is not recorded.
  void append(Replay& replay, std::optional<int64_t> token) const;

 private:
  int64_t num_tokens_;
  std::map<int, std::vector<int32_t>> ids_;  // [T,K] by layer
};

// layers.<N>.topk_indices of tokens from `first_token` on; ids i32[T,K] in host memory.
ResultPiece routing_piece(int layer, const Tensor& ids, int64_t first_token, int64_t num_tokens);

// "replayed 96 choices of experts; without, 1.042 % would be others"
std::string describe(const ReplayCounts& counts);

}  // namespace cadre
