// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/documents.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <set>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/regular_file.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr const char* kKindHint = "data is a text file, a folder of text files, or an llm.c token file";

const char* file_kind_name(fs::file_type type) {
  switch (type) {
    case fs::file_type::fifo: return "a FIFO";
    case fs::file_type::socket: return "a socket";
    case fs::file_type::character:
    case fs::file_type::block: return "a device";
    default: return "of an unknown kind";
  }
}

// One number for each file, whatever its names.
std::pair<dev_t, ino_t> identity(const fs::path& path) {
  struct stat status = {};
  CADRE_CHECK(::stat(path.c_str(), &status) == 0, fmt::format("{}: cannot be looked at", path.string()), kKindHint);
  return {status.st_dev, status.st_ino};
}

class Walk {
 public:
  explicit Walk(fs::path root) : root_(std::move(root)) {}

  // Links wait until all that is there without them is known.
  FileList run() {
    seen_.insert(identity(root_));
    enter(root_);
    while (!links_.empty()) {
      std::vector<fs::path> links = std::exchange(links_, {});
      std::ranges::sort(links);
      for (const fs::path& link : links) follow(link);
    }
    std::ranges::sort(list_.files, {}, [](const fs::path& path) { return path.native(); });
    std::ranges::sort(list_.left_out, {}, &LeftOut::path);
    return std::move(list_);
  }

 private:
  void enter(const fs::path& folder) {
    std::error_code error;
    std::vector<fs::path> names;
    for (fs::directory_iterator it(folder, error); !error && it != fs::directory_iterator(); it.increment(error)) {
      names.push_back(it->path());
    }
    CADRE_CHECK(!error, fmt::format("{}: cannot list this folder: {}", folder.string(), error.message()), kKindHint);
    std::ranges::sort(names);
    for (const fs::path& path : names) {
      const fs::file_type type = fs::symlink_status(path, error).type();
      if (type == fs::file_type::symlink) {
        links_.push_back(path);
      } else {
        take(path, type);
      }
    }
  }

  void follow(const fs::path& link) {
    std::error_code error;
    const fs::file_type type = fs::status(link, error).type();
    const fs::path target = fs::read_symlink(link, error);
    CADRE_CHECK(type != fs::file_type::not_found && type != fs::file_type::none,
                fmt::format("{}: a symbolic link to {}, which leads to no file", link.string(), target.string()),
                "bring back what it names, or remove the link");
    through_link_ = true;
    take(link, type);
  }

  void take(const fs::path& path, fs::file_type type) {
    const bool is_folder = type == fs::file_type::directory;
    if (!is_folder && type != fs::file_type::regular) return leave_out(path, file_kind_name(type));
    const bool is_new = seen_.insert(identity(path)).second;
    if (!is_new && (through_link_ || is_folder)) {
      return leave_out(path, fmt::format("a link to a {} that is read once", is_folder ? "folder" : "file"));
    }
    if (is_folder) return enter(path);
    list_.files.push_back(path);
  }

  void leave_out(const fs::path& path, std::string why) {
    list_.left_out.push_back({path.lexically_relative(root_).string(), std::move(why)});
  }

  fs::path root_;
  FileList list_;
  std::set<std::pair<dev_t, ino_t>> seen_;
  std::vector<fs::path> links_;
  bool through_link_ = false;
};

constexpr const char* kDocumentsHint = "data.path is a text file, a folder of text files, or an llm.c token file";

// Appends; the file may be changing, so its size is not asked for.
void read_document(const fs::path& path, std::string& bytes) {
  std::ifstream file(path, std::ios::binary);
  std::array<char, size_t{1} << 16> part;
  while (file.read(part.data(), part.size()) || file.gcount() > 0) {
    bytes.append(part.data(), static_cast<size_t>(file.gcount()));
  }
  CADRE_CHECK(file.eof() && !file.bad(), fmt::format("{}: cannot read this file", path.string()),
              "every rank reads the data: check that it is there on every host, and its permissions");
}

bool is_binary(std::string_view bytes) { return bytes.find('\0') != std::string_view::npos; }

Documents read_folder(const fs::path& folder, std::string_view separator) {
  FileList list = list_files(folder);
  Documents documents;
  documents.left_out = std::move(list.left_out);
  for (const fs::path& path : list.files) {
    const size_t end = documents.text.size();
    if (documents.size() > 0) documents.text += separator;
    const size_t begin = documents.text.size();
    read_document(path, documents.text);
    const std::string_view document = std::string_view(documents.text).substr(begin);
    if (!document.empty() && !is_binary(document)) {
      documents.begin.push_back(begin);
      continue;
    }
    documents.left_out.push_back({path.lexically_relative(folder).string(),
                                  document.empty() ? "empty" : "holds a zero byte, so it is not text"});
    documents.text.resize(end);
  }
  std::ranges::sort(documents.left_out, {}, &LeftOut::path);
  return documents;
}

Documents read_single(const fs::path& path) {
  Documents documents;
  read_document(path, documents.text);
  CADRE_CHECK(!is_binary(documents.text), fmt::format("{}: holds a zero byte, so it is not text", path.string()),
              kDocumentsHint);
  if (!documents.text.empty()) documents.begin.push_back(0);
  return documents;
}

constexpr const char* kJsonLinesHint =
    R"(a line is an object such as {"text": "..."}; data.text_field names the field)";

}  // namespace

FileList list_files(const fs::path& folder) { return Walk(folder).run(); }

void check_file_or_folder(const fs::path& path, const char* key) {
  std::error_code error;
  const fs::file_type type = fs::status(path, error).type();
  const bool is_there = type != fs::file_type::not_found && type != fs::file_type::none;
  CADRE_CHECK(is_there,
              fmt::format("{} = {} does not exist{}", key, path.string(),
                          fs::is_symlink(path, error) ? ": a symbolic link that leads to no file" : ""),
              kKindHint);
  CADRE_CHECK(type == fs::file_type::regular || type == fs::file_type::directory,
              fmt::format("{} = {} is {}, allowed: a file or a folder", key, path.string(), file_kind_name(type)),
              kKindHint);
}

std::string_view Documents::document(size_t index) const {
  const size_t end = index + 1 < size() ? begin[index + 1] - separator_bytes : text.size();
  return std::string_view(text).substr(begin[index], end - begin[index]);
}

Documents read_documents(const std::string& path, std::string_view separator) {
  check_file_or_folder(path, "data.path");
  Documents documents = fs::is_directory(path) ? read_folder(path, separator) : read_single(path);
  documents.separator_bytes = separator.size();
  std::string named;
  for (const LeftOut& file : documents.left_out) named += fmt::format("; {}: {}", file.path, file.why);
  CADRE_CHECK(documents.size() > 0, fmt::format("data.path = {} holds no text{}", path, named), kDocumentsHint);
  return documents;
}

bool is_json_lines(const std::filesystem::path& path) {
  const std::string extension = path.extension();
  return extension == ".jsonl" || extension == ".ndjson" || extension == ".json";
}

std::string text_of_json_line(std::string_view line, const std::string& field, const std::string& where) {
  auto object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  CADRE_CHECK(object.is_object(), fmt::format("{}: not a JSON object in UTF-8", where), kJsonLinesHint);
  const auto found = object.find(field);
  CADRE_CHECK(found != object.end() && found->is_string(),
              fmt::format("{}: {} is {}, allowed: a string", where, field,
                          found == object.end() ? "missing" : "a JSON " + std::string(found->type_name())),
              kJsonLinesHint);
  return std::move(found->get_ref<std::string&>());
}

Documents read_json_lines(const std::string& path, const std::string& field, std::string_view separator) {
  expect_regular_file(path, kJsonLinesHint);
  std::ifstream file(path, std::ios::binary);
  Documents documents;
  documents.separator_bytes = separator.size();
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string text = text_of_json_line(line, field, fmt::format("{}: line {}", path, number));
    if (text.empty()) continue;
    if (documents.size() > 0) documents.text += separator;
    documents.begin.push_back(documents.text.size());
    documents.text += text;
  }
  CADRE_CHECK(file.eof() && !file.bad(), fmt::format("{}: cannot be read", path), kJsonLinesHint);
  CADRE_CHECK(documents.size() > 0, fmt::format("{}: no text in it", path), kJsonLinesHint);
  return documents;
}

}  // namespace cadre
