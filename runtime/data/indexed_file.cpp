// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/indexed_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string_view>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kIndexMagic("MMIDIDX\0\0", 9);
constexpr uint64_t kIndexVersion = 1;
constexpr uint8_t kInt32 = 4;
constexpr uint8_t kUint16 = 8;
constexpr int64_t kIndexHeaderBytes = 9 + 8 + 1 + 8 + 8;
constexpr int64_t kMostChecked = int64_t{4} << 20;
constexpr int64_t kChecked = 1024;
constexpr const char* kIndexHint = "expected PREFIX.bin and PREFIX.idx as Megatron-LM and cadre tokenize write them";
constexpr const char* kUnfinished = ".unfinished";

bool begins_as_index(const std::string& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return false;
  std::array<char, kIndexMagic.size()> begin{};
  std::ifstream file(path, std::ios::binary);
  return file.read(begin.data(), begin.size()) && std::string_view(begin.data(), begin.size()) == kIndexMagic;
}

// An index without its arrays.
class IndexFile {
 public:
  explicit IndexFile(const IndexedFiles& files)
      : name_(files.index), index_(files.index), ids_(std::make_shared<const SharedFile>(files.ids)) {
    const int64_t bytes = index_.size();
    CADRE_CHECK(bytes >= kIndexHeaderBytes,
                fmt::format("{}: {} bytes, allowed: at least the {} of a header", name_, bytes, kIndexHeaderBytes),
                kIndexHint);
    const auto version = at<uint64_t>(9);
    CADRE_CHECK(version == kIndexVersion, fmt::format("{}: version = {}, allowed: 1", name_, version), kIndexHint);
    const auto type = at<uint8_t>(17);
    CADRE_CHECK(type == kInt32 || type == kUint16,
                fmt::format("{}: type of ids = {}, allowed: 4 (int32) or 8 (uint16)", name_, type), kIndexHint);
    id_bytes_ = type == kInt32 ? 4 : 2;
    const auto sequences = at<uint64_t>(18);
    const auto documents = at<uint64_t>(26);
    const auto most = static_cast<uint64_t>(bytes);
    const bool fits = sequences <= most && documents <= most &&
                      most == static_cast<uint64_t>(kIndexHeaderBytes) + 12 * sequences + 8 * documents;
    CADRE_CHECK(fits,
                fmt::format("{}: {} bytes do not fit {} sequences and {} documents", name_, bytes, sequences,
                            documents == 0 ? 0 : documents - 1),
                "the file was cut off or written to; write it again");
    CADRE_CHECK(sequences >= 1, fmt::format("{}: no sequence in it", name_), kIndexHint);
    num_sequences_ = static_cast<int64_t>(sequences);
    num_documents_ = static_cast<int64_t>(documents) - 1;
  }

  int64_t id_bytes() const { return id_bytes_; }
  int64_t num_tokens() const { return ids_->size() / id_bytes_; }
  const std::shared_ptr<const SharedFile>& ids() const { return ids_; }

  void check_sequences() const {
    constexpr int64_t kBlock = 65536;
    const int64_t all = num_sequences_;
    if (all <= kMostChecked) {
      for (int64_t first = 0; first < all; first += kBlock) check_block(first, std::min(kBlock, all - first));
    } else {
      for (int64_t i = 0; i < kChecked; ++i) check_block((all - 1) / (kChecked - 1) * i, 1);
    }
    check_block(all - 1, 1);
    CADRE_CHECK(at<int64_t>(pointer_place(0)) == 0, fmt::format("{}: the first sequence begins behind byte 0", name_),
                kIndexHint);
  }

  // Tokens before the end of the first document.
  int64_t end_of_first_document() const {
    if (num_documents_ < 1) return num_tokens();
    const auto next = at<int64_t>(kIndexHeaderBytes + 12 * num_sequences_ + 8);
    CADRE_CHECK(next >= 1 && next <= num_sequences_,
                fmt::format("{}: its first document ends with sequence {}, allowed: integer in [1, {}]", name_, next,
                            num_sequences_),
                kIndexHint);
    return next == num_sequences_ ? num_tokens() : at<int64_t>(pointer_place(next)) / id_bytes_;
  }

 private:
  int64_t pointer_place(int64_t sequence) const { return kIndexHeaderBytes + 4 * num_sequences_ + 8 * sequence; }

  template <class T>
  T at(int64_t byte) const {
    T value = {};
    index_.read(byte, std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }

  // That each sequence ends where the next one begins, the last one with the file.
  void check_block(int64_t first, int64_t count) const {
    std::vector<int32_t> lengths(static_cast<size_t>(count));
    std::vector<int64_t> begins(static_cast<size_t>(count));
    index_.read(kIndexHeaderBytes + 4 * first, std::as_writable_bytes(std::span(lengths)));
    index_.read(pointer_place(first), std::as_writable_bytes(std::span(begins)));
    const bool is_last = first + count == num_sequences_;
    begins.push_back(is_last ? ids_->size() : at<int64_t>(pointer_place(first + count)));
    for (size_t i = 0; i < lengths.size(); ++i) {
      CADRE_CHECK(lengths[i] >= 0 && begins[i] >= 0 && begins[i] + int64_t{lengths[i]} * id_bytes_ == begins[i + 1],
                  fmt::format("{}: sequence {} has {} tokens from byte {} on, and the next one begins at byte {}",
                              name_, first + static_cast<int64_t>(i), lengths[i], begins[i], begins[i + 1]),
                  "sequences must follow each other and fill PREFIX.bin; write both files again");
    }
  }

  std::string name_;
  SharedFile index_;
  std::shared_ptr<const SharedFile> ids_;
  int64_t id_bytes_ = 0;
  int64_t num_sequences_ = 0;
  int64_t num_documents_ = 0;
};

}  // namespace

std::optional<IndexedFiles> find_indexed_files(const std::string& path) {
  const std::string extension = fs::path(path).extension();
  const bool has_extension = extension == ".bin" || extension == ".idx";
  const std::string prefix = has_extension ? path.substr(0, path.size() - extension.size()) : path;
  if (!begins_as_index(prefix + ".idx")) return std::nullopt;
  return IndexedFiles{prefix + ".bin", prefix + ".idx"};
}

TokenSource open_indexed_files(const IndexedFiles& files, int64_t vocab_size) {
  const IndexFile index(files);
  index.check_sequences();
  return {files.ids, nullptr, FileIds{index.ids(), 0, index.id_bytes()}, index.num_tokens(), vocab_size};
}

void check_documents_end_with(const IndexedFiles& files, int32_t token, int64_t vocab_size) {
  const IndexFile index(files);
  const int64_t end = index.end_of_first_document();
  int32_t last = -1;
  if (end > 0) open_indexed_files(files, vocab_size).read(end - 1, std::span(&last, 1));
  CADRE_CHECK(last == token,
              fmt::format("data.mask_documents = true with {}, whose first document ends with token {} and not with "
                          "model.eos_token_id = {}",
                          files.ids, last, token),
              "write it with an end-of-text token behind each document (Megatron-LM: --append-eod), or set "
              "data.mask_documents=false");
}

IndexedFileWriter::IndexedFileWriter(const std::string& prefix, int64_t vocab_size)
    : files_{prefix + ".bin", prefix + ".idx"},
      id_bytes_(vocab_size <= int64_t{std::numeric_limits<uint16_t>::max()} + 1 ? 2 : 4) {
  for (const std::string& file : {files_.ids, files_.index}) {
    CADRE_CHECK(!fs::exists(file), fmt::format("{} exists already", file), "name another prefix with --out");
  }
  ids_.open(files_.ids + kUnfinished, std::ios::binary | std::ios::trunc);
  CADRE_CHECK(ids_, fmt::format("{}{}: cannot be created: {}", files_.ids, kUnfinished, std::strerror(errno)),
              "name a prefix in a folder that can be written with --out");
}

IndexedFileWriter::~IndexedFileWriter() {
  if (is_finished_) return;
  std::error_code ignored;
  fs::remove(files_.ids + kUnfinished, ignored);
  fs::remove(files_.index + kUnfinished, ignored);
}

void IndexedFileWriter::append(std::span<const int32_t> tokens, std::span<const int32_t> lengths) {
  if (id_bytes_ == 2) {
    std::vector<uint16_t> narrow(tokens.begin(), tokens.end());
    ids_.write(reinterpret_cast<const char*>(narrow.data()), static_cast<std::streamsize>(2 * narrow.size()));
  } else {
    ids_.write(reinterpret_cast<const char*>(tokens.data()), static_cast<std::streamsize>(4 * tokens.size()));
  }
  CADRE_CHECK(ids_, fmt::format("{}{}: cannot be written: {}", files_.ids, kUnfinished, std::strerror(errno)),
              "is the disk full?");
  lengths_.insert(lengths_.end(), lengths.begin(), lengths.end());
}

void IndexedFileWriter::write_index(const std::string& path) const {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  const auto put = [&file](const auto& value) {
    file.write(reinterpret_cast<const char*>(&value), static_cast<std::streamsize>(sizeof value));
  };
  file.write(kIndexMagic.data(), static_cast<std::streamsize>(kIndexMagic.size()));
  put(kIndexVersion);
  put(id_bytes_ == 2 ? kUint16 : kInt32);
  put(static_cast<uint64_t>(lengths_.size()));
  put(static_cast<uint64_t>(lengths_.size() + 1));
  file.write(reinterpret_cast<const char*>(lengths_.data()), static_cast<std::streamsize>(4 * lengths_.size()));
  int64_t first_byte = 0;
  for (const int32_t length : lengths_) put(std::exchange(first_byte, first_byte + int64_t{length} * id_bytes_));
  for (int64_t document = 0; document <= static_cast<int64_t>(lengths_.size()); ++document) put(document);
  CADRE_CHECK(file.flush(), fmt::format("{}: cannot be written: {}", path, std::strerror(errno)), "is the disk full?");
}

IndexedFiles IndexedFileWriter::finish() {
  CADRE_CHECK(!lengths_.empty(), fmt::format("{} would hold no document", files_.ids), "give text that is not empty");
  CADRE_CHECK(ids_.flush(), fmt::format("{}{}: cannot be written: {}", files_.ids, kUnfinished, std::strerror(errno)),
              "is the disk full?");
  write_index(files_.index + kUnfinished);
  fs::rename(files_.ids + kUnfinished, files_.ids);
  fs::rename(files_.index + kUnfinished, files_.index);
  is_finished_ = true;
  return files_;
}

}  // namespace cadre
