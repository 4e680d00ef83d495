// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/manifest.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <charconv>

#include "comm/base/check.hpp"
#include "comm/base/regular_file.hpp"
#include "runtime/checkpoint/file.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kOwnChecksum = "xxh64";
constexpr const char* kManifestHint = "use an older checkpoint, or fetch this one again";

std::string checksum_of(const json& content) {
  const std::string text = content.dump();
  Digester digester;
  digester.append(std::as_bytes(std::span(text)));
  return hex(digester.digest().xxh64);
}

uint64_t from_hex(const std::string& text) {
  uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value, 16);
  CADRE_CHECK(parsed.ec == std::errc{} && parsed.ptr == end && text.size() == 16,
              fmt::format("the checksum {} is not 16 hexadecimal digits", json(text).dump()));
  return value;
}

// Relative and without "..", so that it stays inside the checkpoint.
bool is_inside(const fs::path& name) {
  return !name.empty() && name.is_relative() && std::ranges::find(name, fs::path("..")) == name.end();
}

}  // namespace

void to_json(json& content, const Manifest& manifest) {
  json files = json::object();
  for (const auto& [name, digest] : manifest.files) {
    files[name] = {{"bytes", digest.bytes}, {"xxh64", hex(digest.xxh64)}};
  }
  content = {{"format_version", manifest.format_version},
             {"cadre_version", manifest.cadre_version},
             {"step", manifest.step},
             {"seed", manifest.seed},
             {"tokens_seen", manifest.tokens_seen},
             {"world_size", manifest.world_size},
             {"trained", manifest.trained},
             {"skipped_steps", manifest.skipped_steps},
             {"config_hash", manifest.config_hash},
             {"files", std::move(files)}};
  if (manifest.updates) content["updates"] = *manifest.updates;
  if (!manifest.data) return;
  const DataPosition& data = *manifest.data;
  content["data"] = {{"pass", data.pass},         {"window", data.window},
                     {"seed", data.seed},         {"sequence_length", data.sequence_length},
                     {"tokens", data.num_tokens}, {"fingerprint", hex(data.fingerprint)}};
}

void from_json(const json& content, Manifest& manifest) {
  content.at("format_version").get_to(manifest.format_version);
  content.at("cadre_version").get_to(manifest.cadre_version);
  content.at("step").get_to(manifest.step);
  content.at("seed").get_to(manifest.seed);
  content.at("tokens_seen").get_to(manifest.tokens_seen);
  content.at("world_size").get_to(manifest.world_size);
  manifest.trained = content.value("trained", "all");
  manifest.skipped_steps = content.value("skipped_steps", std::vector<int64_t>());
  content.at("config_hash").get_to(manifest.config_hash);
  manifest.updates.reset();
  if (content.contains("updates")) manifest.updates = content.at("updates").get<UpdateCounts>();
  manifest.data.reset();
  if (const auto data = content.find("data"); data != content.end()) {
    manifest.data = {data->at("pass").get<int64_t>(),   data->at("window").get<int64_t>(),
                     data->at("seed").get<uint64_t>(),  data->at("sequence_length").get<int64_t>(),
                     data->at("tokens").get<int64_t>(), from_hex(data->at("fingerprint").get<std::string>())};
    CADRE_CHECK(manifest.data->pass >= 0 && manifest.data->window >= 0,
                fmt::format("data.pass = {}, data.window = {}, allowed: integers >= 0", manifest.data->pass,
                            manifest.data->window));
  }
  manifest.files.clear();
  for (const auto& [name, digest] : content.at("files").items()) {
    CADRE_CHECK(is_inside(name), fmt::format("the file name {} leads out of the checkpoint", json(name).dump()));
    manifest.files[name] = {digest.at("bytes").get<uint64_t>(), from_hex(digest.at("xxh64").get<std::string>())};
  }
}

void write_manifest(const fs::path& directory, const Manifest& manifest) {
  json content = manifest;
  content[kOwnChecksum] = checksum_of(content);
  write_text_file(directory / kManifestFile, content.dump(2) + "\n");
}

Manifest read_manifest(const fs::path& directory) {
  const fs::path path = directory / kManifestFile;
  json content = read_json_file(path);
  try {
    const int version = content.at("format_version").get<int>();
    CADRE_CHECK(version >= 1 && version <= Manifest::kFormatVersion,
                fmt::format("{} has format version {}; this Cadre reads 1 to {}", path.string(), version,
                            Manifest::kFormatVersion),
                "use the version of Cadre that wrote it, or a newer one");
    const auto checksum = content.at(kOwnChecksum).get<std::string>();
    content.erase(kOwnChecksum);
    CADRE_CHECK(checksum_of(content) == checksum,
                fmt::format("{} is damaged: its content does not match its own checksum", path.string()),
                kManifestHint);
    return content.get<Manifest>();
  } catch (const json::exception& error) {
    throw Error(ErrorKind::input, fmt::format("{} is not a manifest of a checkpoint: {}", path.string(), error.what()),
                kManifestHint);
  }
}

std::map<std::string, FileDigest> digest_files(const fs::path& directory) {
  std::map<std::string, FileDigest> files;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    const std::string name = entry.path().lexically_relative(directory).generic_string();
    if (entry.is_regular_file() && name != kManifestFile) files[name] = digest_file(entry.path());
  }
  return files;
}

void verify_file(const fs::path& directory, const std::string& name, const FileDigest& wanted, Verify how) {
  const fs::path path = directory / name;
  expect_regular_file(path, kManifestHint);
  const uint64_t bytes = fs::file_size(path);
  CADRE_CHECK(bytes == wanted.bytes,
              fmt::format("{} is damaged: it has {} bytes, the manifest says {}", path.string(), bytes, wanted.bytes),
              kManifestHint);
  if (how == Verify::lengths) return;
  const FileDigest found = digest_file(path);
  CADRE_CHECK(found == wanted,
              fmt::format("{} is damaged: its checksum is {}, the manifest says {}", path.string(), hex(found.xxh64),
                          hex(wanted.xxh64)),
              kManifestHint);
}

Manifest verify_checkpoint(const fs::path& directory, Verify how) {
  Manifest manifest = read_manifest(directory);
  for (const auto& [name, digest] : manifest.files) verify_file(directory, name, digest, how);
  return manifest;
}

}  // namespace cadre
