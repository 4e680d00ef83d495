// SPDX-License-Identifier: Apache-2.0
#include "runtime/config/run_file.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <toml++/toml.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <optional>
#include <sstream>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

struct Alias {
  std::string_view name;
  std::string_view key;
};
// For overrides only.
constexpr std::array<Alias, 2> kAliases = {{{"data", "data.path"}, {"steps", "train.steps"}}};

constexpr std::string_view kModelConfigKey = "model.config";

// The sections of a configuration, looked up by full name ("train.steps").
class KeyTable {
 public:
  explicit KeyTable(RunConfig& config) : sections_(sections_of(config)) {}

  // The field with this full name and the prefix of its name in messages. Throws when there is none.
  std::pair<const Field*, std::string> find(const std::string& key, const std::string& where) const {
    std::vector<std::string> known;
    for (const Section& section : sections_) {
      for (const Field& field : section.fields) {
        known.push_back(key_prefix(section) + field.name);
        if (known.back() == key) return {&field, fmt::format("{}: {}", where, key_prefix(section))};
      }
    }
    throw Error(ErrorKind::input, fmt::format("{}: unknown key {}", where, key), nearest_name_hint(key, known));
  }

  bool knows(const std::string& key) const {
    return std::ranges::any_of(sections_, [&](const Section& section) {
      return std::ranges::any_of(section.fields,
                                 [&](const Field& field) { return key_prefix(section) + field.name == key; });
    });
  }

  void expect_section(const std::string& name, const std::string& where) const {
    std::vector<std::string> known;
    for (const Section& section : sections_) known.push_back(section.name);
    CADRE_CHECK(std::ranges::find(known, name) != known.end(), fmt::format("{}: unknown section [{}]", where, name),
                nearest_name_hint(name, known));
  }

 private:
  std::vector<Section> sections_;
};

struct Override {
  std::string key;
  std::string text;
};

Override split_override(const std::string& argument) {
  const size_t equals = argument.find('=');
  CADRE_CHECK(equals != std::string::npos && equals > 0, fmt::format("command line: {} is not key=value", argument),
              "write for example train.steps=100");
  std::string key = argument.substr(0, equals);
  const auto alias = std::ranges::find(kAliases, key, &Alias::name);
  if (alias != kAliases.end()) key = alias->key;
  return {key, argument.substr(equals + 1)};
}

std::string position(const std::string& where, const toml::source_region& region) {
  return fmt::format("{}:{}", where, region.begin.line);
}

FieldValue value_of_node(const toml::node& node, const Field& field, const std::string& prefix) {
  if (const auto* value = node.as_boolean()) return value->get();
  if (const auto* value = node.as_integer()) return value->get();
  if (const auto* value = node.as_floating_point()) return value->get();
  if (const auto* value = node.as_string()) return value->get();
  std::ostringstream kind;
  kind << node.type();
  throw Error(ErrorKind::input,
              fmt::format("{}{} is of type {}, allowed: {}", prefix, field.name, kind.str(), allowed_text(field)),
              field.help);
}

void read_value(const std::string& key, const toml::node& node, const KeyTable& keys, const std::string& where) {
  const auto [field, prefix] = keys.find(key, position(where, node.source()));
  assign(*field, value_of_node(node, *field, prefix), prefix);
}

// Dotted keys are tables in a section: rope_scaling.factor.
void read_section(const std::string& prefix, const toml::table& section, const KeyTable& keys,
                  const std::string& where) {
  for (const auto& [name, node] : section) {
    const std::string key = fmt::format("{}.{}", prefix, name.str());
    const auto* inner = node.as_table();
    if (inner != nullptr && !keys.knows(key)) {
      read_section(key, *inner, keys, where);
    } else {
      read_value(key, node, keys, where);
    }
  }
}

void read_table(const toml::table& table, const KeyTable& keys, const std::string& where) {
  for (const auto& [name, node] : table) {
    const std::string key(name.str());
    const auto* section = node.as_table();
    if (!section) {
      read_value(key, node, keys, where);
      continue;
    }
    keys.expect_section(key, position(where, node.source()));
    read_section(key, *section, keys, where);
  }
}

toml::table parse_toml(std::string_view text, const std::string& where) {
  try {
    return toml::parse(text, where);
  } catch (const toml::parse_error& error) {
    throw Error(ErrorKind::input, fmt::format("{}: {}", position(where, error.source()), error.description()),
                "a run file is TOML: [section] and key = value lines, text in quotes");
  }
}

std::string read_file(const std::string& path, const char* hint) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  CADRE_CHECK(file && !text.fail(), fmt::format("{}: cannot read this file", path), hint);
  return text.str();
}

ModelConfig load_model_config(const std::string& path) {
  const std::string text = read_file(path, "model.config is the path of a Hugging Face config.json");
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  CADRE_CHECK(!json.is_discarded(), fmt::format("{}: not valid JSON", path), "expected a Hugging Face config.json");
  return model_config_from_json(json, path);
}

// The keys of [model] config lie below those that the file and the overrides give themselves.
std::optional<std::string> model_config_path(const toml::table& table, const std::vector<Override>& overrides) {
  auto path = table.at_path(kModelConfigKey).value<std::string>();
  for (const Override& override : overrides) {
    if (override.key == kModelConfigKey) path = override.text;
  }
  if (path && path->empty()) path.reset();
  return path;
}

std::string toml_text(const FieldValue& value) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    std::ostringstream quoted;
    const toml::value<std::string> node(*text);
    quoted << toml::toml_formatter(node, toml::format_flags::allow_unicode_strings);
    return quoted.str();
  }
  return value_text(value);
}

}  // namespace

RunConfig parse_run_config(std::string_view toml, const std::string& where, const std::vector<std::string>& arguments) {
  std::vector<Override> overrides;
  for (const std::string& argument : arguments) overrides.push_back(split_override(argument));
  const toml::table table = parse_toml(toml, where);

  RunConfig config;
  if (const auto path = model_config_path(table, overrides)) {
    config.model = load_model_config(*path);
    config.model_config_read = *path;
  }
  const KeyTable keys(config);
  read_table(table, keys, where);
  for (const Override& override : overrides) {
    const auto [field, prefix] = keys.find(override.key, "command line");
    assign_text(*field, override.text, prefix);
  }
  config.model_config.clear();
  fill_defaults(config.model);
  return config;
}

RunConfig load_run_config(const std::string& path, const std::vector<std::string>& overrides) {
  return parse_run_config(read_file(path, "give the path of a run file, for example launch/configs/quickstart.toml"),
                          path, overrides);
}

std::string to_toml(const RunConfig& config) {
  RunConfig copy = config;
  std::string text;
  for (const Section& section : sections_of(copy)) {
    if (!section.name.empty()) text += fmt::format("\n[{}]\n", section.name);
    for (const Field& field : section.fields) {
      const FieldValue value = value_of(field);
      // Empty text means not given.
      if (value != FieldValue(std::string())) text += fmt::format("{} = {}\n", field.name, toml_text(value));
    }
  }
  return text;
}

std::string run_config_help() {
  RunConfig defaults;
  std::string text;
  for (const Section& section : sections_of(defaults)) {
    if (!section.name.empty()) text += fmt::format("\n[{}]\n", section.name);
    for (const Field& field : section.fields) {
      text += fmt::format("  {:<24} {:<15} {:<33} {}\n", field.name, value_text(value_of(field)), allowed_text(field),
                          field.help);
    }
  }
  text += "\nShort on the command line:\n";
  for (const Alias& alias : kAliases) text += fmt::format("  {:<24}{}\n", alias.name, alias.key);
  return text;
}

}  // namespace cadre
