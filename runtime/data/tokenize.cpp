// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/tokenize.hpp"

#include <fmt/format.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <fstream>
#include <limits>
#include <map>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/regular_file.hpp"
#include "runtime/data/documents.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBatchBytes = size_t{1} << 20;
constexpr int kBatchesAThread = 4;  // encoded, and not written
constexpr const char* kTokenizeHint = "give text files, JSON Lines (*.jsonl) or folders of them";

struct RawDocument {
  const fs::path* file;
  int64_t line;  // of JSON Lines; 0: the whole file
  std::string bytes;

  std::string where() const { return fmt::format("{}: line {}", file->string(), line); }
};

struct TextFile {
  fs::path path;
  fs::path folder;  // that it was found in; empty where it was named
};

// Reads files one after the other, in batches of a megabyte or of one larger document.
class RawReader {
 public:
  explicit RawReader(const std::vector<std::string>& paths) {
    for (const std::string& path : paths) {
      check_file_or_folder(path, "FILE");
      if (!fs::is_directory(path)) {
        files_.push_back({path, {}});
        continue;
      }
      FileList list = list_files(path);
      for (fs::path& file : list.files) files_.push_back({std::move(file), path});
      std::ranges::move(list.left_out, std::back_inserter(left_out));
    }
  }

  // Empty at the end.
  std::vector<RawDocument> next() {
    std::vector<RawDocument> batch;
    for (size_t bytes = 0; bytes < kBatchBytes && next_file_ < files_.size();) {
      const size_t before = batch.size();
      is_json_lines(files_[next_file_].path) ? read_line(batch) : read_text(batch);
      if (batch.size() > before) bytes += batch.back().bytes.size();
    }
    return batch;
  }

  std::vector<LeftOut> left_out;
  int64_t empty = 0;

 private:
  void read_line(std::vector<RawDocument>& batch) {
    const fs::path& path = files_[next_file_].path;
    if (!lines_.is_open()) {
      lines_.open(path, std::ios::binary);
      CADRE_CHECK(lines_, fmt::format("{}: cannot read this file", path.string()), kTokenizeHint);
      line_ = 0;
    }
    std::string line;
    if (std::getline(lines_, line)) {
      ++line_;
      if (line.find_first_not_of(" \t\r") != std::string::npos) batch.push_back({&path, line_, std::move(line)});
      return;
    }
    CADRE_CHECK(lines_.eof() && !lines_.bad(), fmt::format("{}: cannot read this file", path.string()), kTokenizeHint);
    lines_.close();
    lines_.clear();
    ++next_file_;
  }

  void read_text(std::vector<RawDocument>& batch) {
    const auto& [path, folder] = files_[next_file_++];
    std::ifstream file(path, std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    CADRE_CHECK(file.is_open() && !file.bad(), fmt::format("{}: cannot read this file", path.string()), kTokenizeHint);
    const bool is_text = bytes.find('\0') == std::string::npos;
    if (is_text && !bytes.empty()) return batch.push_back({&path, 0, std::move(bytes)});
    if (is_text) ++empty;
    CADRE_CHECK(is_text || !folder.empty(), fmt::format("{}: holds a zero byte, so it is not text", path.string()),
                kTokenizeHint);
    left_out.push_back({folder.empty() ? path.string() : path.lexically_relative(folder).string(),
                        is_text ? "empty" : "holds a zero byte, so it is not text"});
  }

  std::vector<TextFile> files_;
  size_t next_file_ = 0;
  std::ifstream lines_;
  int64_t line_ = 0;
};

struct EncodedBatch {
  std::vector<int32_t> tokens;
  std::vector<int32_t> lengths;
  int64_t bytes = 0;
  int64_t empty = 0;
};

// Threads take batches in turn, encode them side by side and write them in their order: the thread that finishes the batch to be
// written next also writes the finished batches behind it.
class ParallelTokenizer {
 public:
  ParallelTokenizer(const TokenizeOptions& options, const Tokenizer& tokenizer)
      : options_(options),
        tokenizer_(tokenizer),
        reader_(options.paths),
        writer_(options.out, std::max(tokenizer.vocab_size(), int64_t{options.end_of_text.value_or(-1)} + 1)) {}

  TokenizeSummary run() {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (int i = 1; i < options_.threads; ++i) threads.emplace_back([this] { work(); });
    work();
    for (std::thread& thread : threads) thread.join();
    if (failure_) std::rethrow_exception(failure_);
    summary_.files = writer_.finish();
    summary_.id_bytes = writer_.id_bytes();
    summary_.empty += reader_.empty;
    summary_.left_out = std::move(reader_.left_out);
    summary_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return std::move(summary_);
  }

 private:
  void work() {
    try {
      while (take_and_write()) continue;
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
    written_.notify_all();
  }

  bool take_and_write() {
    std::vector<RawDocument> documents;
    int64_t number = 0;
    if (!wait_for_room()) return false;
    {
      const std::lock_guard lock(reading_);
      documents = reader_.next();
      number = num_read_++;
    }
    if (documents.empty()) return false;
    EncodedBatch encoded = encode(documents);
    const std::lock_guard lock(mutex_);
    if (failure_) return false;
    encoded_.emplace(number, std::move(encoded));
    for (auto next = encoded_.begin(); next != encoded_.end() && next->first == num_written_;) {
      write(next->second);
      next = encoded_.erase(next);
    }
    written_.notify_all();
    return true;
  }

  // A slow batch holds up the writing of those behind it, of which only so many are kept. False when another thread has failed.
  bool wait_for_room() {
    std::unique_lock lock(mutex_);
    const auto most = static_cast<size_t>(kBatchesAThread * options_.threads);
    written_.wait(lock, [&] { return encoded_.size() < most || failure_; });
    return !failure_;
  }

  void write(const EncodedBatch& batch) {
    writer_.append(batch.tokens, batch.lengths);
    summary_.documents += std::ssize(batch.lengths);
    summary_.tokens += std::ssize(batch.tokens);
    summary_.bytes += batch.bytes;
    summary_.empty += batch.empty;
    ++num_written_;
  }

  EncodedBatch encode(const std::vector<RawDocument>& documents) const {
    EncodedBatch batch;
    for (const RawDocument& document : documents) {
      const bool is_whole = document.line == 0;
      const std::string field =
          is_whole ? "" : text_of_json_line(document.bytes, options_.text_field, document.where());
      const std::string& text = is_whole ? document.bytes : field;
      if (text.empty()) {
        ++batch.empty;
        continue;
      }
      const size_t before = batch.tokens.size();
      const std::vector<int32_t> ids = tokenizer_.encode(text);
      batch.tokens.insert(batch.tokens.end(), ids.begin(), ids.end());
      if (options_.end_of_text) batch.tokens.push_back(*options_.end_of_text);
      const size_t length = batch.tokens.size() - before;
      CADRE_CHECK(
          length <= std::numeric_limits<int32_t>::max(),
          fmt::format("{}: a document of {} tokens, allowed: at most 2^31 - 1", document.file->string(), length),
          "cut it in several");
      batch.lengths.push_back(static_cast<int32_t>(length));
      batch.bytes += static_cast<int64_t>(text.size());
    }
    return batch;
  }

  const TokenizeOptions& options_;
  const Tokenizer& tokenizer_;
  std::mutex reading_;
  RawReader reader_;
  int64_t num_read_ = 0;
  std::mutex mutex_;  // of all below
  std::condition_variable written_;
  IndexedFileWriter writer_;
  std::map<int64_t, EncodedBatch> encoded_;  // not written, by number
  int64_t num_written_ = 0;
  TokenizeSummary summary_;
  std::exception_ptr failure_;
};

}  // namespace

TokenizeSummary tokenize_files(const TokenizeOptions& options, const Tokenizer& tokenizer) {
  return ParallelTokenizer(options, tokenizer).run();
}

}  // namespace cadre
