// SPDX-License-Identifier: Apache-2.0
// Token files of Megatron-LM (MMapIndexedDataset, version 1): PREFIX.bin holds the ids of all sequences one behind the other,
// PREFIX.idx, little-endian and packed:
//   9 bytes "MMIDIDX\0\0", uint64 version 1, uint8 type (4: int32, 8: uint16), uint64 S sequences, uint64 D + 1 of D documents,
//   int32[S] lengths in tokens, int64[S] first bytes in PREFIX.bin, int64[D + 1] first sequence of each document, then S.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/data/token_source.hpp"

namespace cadre {

struct IndexedFiles {
  std::string ids;    // PREFIX.bin
  std::string index;  // PREFIX.idx
};

// The two files that `path` names: PREFIX, PREFIX.bin or PREFIX.idx, where PREFIX.idx begins as such a file does. Opens no
// FIFO.
std::optional<IndexedFiles> find_indexed_files(const std::string& path);

// All ids as one run of tokens, read when they are wanted. Throws where the index is damaged or of another type, or where the
// sequences do not follow each other up to the end of the ids; of an index of more than 4 Mi sequences 1,024 of them are looked at.
TokenSource open_indexed_files(const IndexedFiles& files, int64_t vocab_size);

// Throws unless the first document ends with this token: those of a file all do, or none.
void check_documents_end_with(const IndexedFiles& files, int32_t token, int64_t vocab_size);

// Writes both files beside their names, and renames them when they are complete. A document is one sequence.
class IndexedFileWriter {
 public:
  // Ids are uint16 where `vocab_size` allows it. Throws where one of the files exists.
  IndexedFileWriter(const std::string& prefix, int64_t vocab_size);
  ~IndexedFileWriter();
  IndexedFileWriter(const IndexedFileWriter&) = delete;
  IndexedFileWriter& operator=(const IndexedFileWriter&) = delete;

  int64_t id_bytes() const { return id_bytes_; }
  // Appends documents of these lengths. Not called by two threads at once.
  void append(std::span<const int32_t> tokens, std::span<const int32_t> lengths);
  // Throws where a file cannot be written to its end; then none is left.
  IndexedFiles finish();

 private:
  void write_index(const std::string& path) const;

  IndexedFiles files_;
  int64_t id_bytes_;
  std::ofstream ids_;
  std::vector<int32_t> lengths_;
  bool is_finished_ = false;
};

}  // namespace cadre
