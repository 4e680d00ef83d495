// SPDX-License-Identifier: Apache-2.0
// Outputs of experts at inference, kept for when the same expert gets the same rows again: a prompt that is read twice.
// What is found is what was computed, bit for bit: the key is the expert, the version of its weights and the rows of the
// whole batch, because a product may round a row differently among other rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

#include "layers/tensor/tensor.hpp"

namespace cadre {

class ExpertCache {
 public:
  // Keeps at most that many bytes of rows and outputs; what was not used for longest goes first.
  explicit ExpertCache(size_t capacity_bytes) : capacity_bytes_(capacity_bytes) {}

  // Fills y with what the expert made of x, if that is known. x, y [R,H]; `version` moves on when a weight changes.
  bool find(const void* expert, uint64_t version, const Tensor& x, const Tensor& y);
  // Remembers it; too large a batch is not. What the expert made with other weights is forgotten.
  void keep(const void* expert, uint64_t version, const Tensor& x, const Tensor& y);

  // Rows that were looked for, those of them that were found, bytes held now.
  int64_t rows_looked_for() const { return rows_looked_for_; }
  int64_t rows_found() const { return rows_found_; }
  size_t bytes() const { return bytes_; }

 private:
  struct Entry {
    const void* expert;
    uint64_t version;
    uint64_t hash;
    std::vector<std::byte> x;
    std::vector<std::byte> y;
  };
  using Entries = std::list<Entry>;  // used last in front

  Entries::iterator lookup(const void* expert, uint64_t version, uint64_t hash, const Tensor& x);
  void forget(Entries::iterator entry);
  void forget_other_versions(const void* expert, uint64_t version);

  size_t capacity_bytes_;
  Entries entries_;
  std::unordered_multimap<uint64_t, Entries::iterator> by_hash_;
  std::unordered_map<const void*, uint64_t> version_of_;  // that an expert was last kept with
  size_t bytes_ = 0;
  int64_t rows_looked_for_ = 0;
  int64_t rows_found_ = 0;
};

}  // namespace cadre
