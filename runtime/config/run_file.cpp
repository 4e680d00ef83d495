// SPDX-License-Identifier: Apache-2.0
#include "runtime/config/run_file.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <toml++/toml.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <optional>
#include <sstream>
#include <tuple>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/console.hpp"
#include "comm/base/regular_file.hpp"
#include "runtime/config/key_synonyms.hpp"
#include "runtime/config/step_changes.hpp"

namespace cadre {
namespace {

struct Alias {
  std::string_view name;
  std::string_view key;
};
// For overrides only.
constexpr std::array<Alias, 2> kAliases = {{{"data", "data.path"}, {"steps", "train.steps"}}};

constexpr std::string_view kModelConfigKey = "model.config";
constexpr std::string_view kFromStep = "from_step";

std::string hint_or(std::string hint, const char* otherwise) { return hint.empty() ? otherwise : std::move(hint); }

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
    throw Error(ErrorKind::input, fmt::format("{}: unknown key {}", where, key),
                hint_or(key_hint(key, known), "cadre train --help lists all keys"));
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
                hint_or(nearest_name_hint(name, known), "cadre train --help lists all sections"));
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
              "example: train.steps=100");
  try {
    static_cast<void>(nlohmann::json(argument).dump());
  } catch (const nlohmann::json::exception&) {  // the run file that is saved with a run must be UTF-8
    std::string shown;
    for (const char c : argument)
      shown += (c & 0x80) != 0 ? fmt::format("\\x{:02x}", static_cast<unsigned char>(c)) : std::string(1, c);
    throw Error(ErrorKind::input, fmt::format("command line: {} is not UTF-8", shown),
                "rename the file or folder, or use a link");
  }
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
void read_section(const std::string& prefix, const toml::table& section, const KeyTable& keys, const std::string& where,
                  ErrorList& errors) {
  for (const auto& [name, node] : section) {
    const std::string key = fmt::format("{}.{}", prefix, name.str());
    const auto* inner = node.as_table();
    if (inner != nullptr && !keys.knows(key)) {
      read_section(key, *inner, keys, where, errors);
    } else {
      errors.collect([&, &node = node] { read_value(key, node, keys, where); });
    }
  }
}

// Keeps the values of [from_step.N] sections; each is checked as the key it is for.
class StepChanges {
 public:
  explicit StepChanges(RunConfig& config) : config_(config), keys_(scratch_) {}

  void read(const toml::table& table, const std::string& where) {
    for (const auto& [name, node] : table) {
      const auto* section = node.as_table();
      CADRE_CHECK(section != nullptr,
                  fmt::format("{}: from_step.{} is no section", position(where, node.source()), name.str()),
                  kRunFileHint);
      read(step_of(std::string(name.str()), position(where, node.source())), "", *section, where);
    }
  }

  // `from_step.N.KEY` with the text of a command line.
  void read(const Override& change) {
    const std::string rest = change.key.substr(kFromStep.size() + 1);
    const size_t dot = rest.find('.');
    CADRE_CHECK(dot != std::string::npos, fmt::format("command line: {} has no key", change.key), kRunFileHint);
    std::string key = rest.substr(dot + 1);
    if (const auto alias = std::ranges::find(kAliases, key, &Alias::name); alias != kAliases.end()) key = alias->key;
    const Field& field = find(key, "command line");
    assign_text(field, change.text, fmt::format("from_step.{}: ", rest.substr(0, dot)));
    set(step_of(rest.substr(0, dot), "command line"), key, value_of(field));
  }

 private:
  static constexpr const char* kRunFileHint = "[from_step.401] and below it key = value, as train.batch = 16";

  static int64_t step_of(const std::string& text, const std::string& where) {
    int64_t step = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, step);
    CADRE_CHECK(error == std::errc() && stop == end && step >= 1,
                fmt::format("{}: from_step.{}, allowed: integer >= 1", where, text), kRunFileHint);
    return step;
  }

  const Field& find(const std::string& key, const std::string& where) const {
    const auto [field, prefix] = keys_.find(key, where);
    CADRE_CHECK(may_change(key), fmt::format("{}: {} cannot change during a run", where, key),
                "allowed: keys of [model] that do not change the shapes of weights, data.sequence_length, and the keys "
                "of a step in [train]");
    return *field;
  }

  void read(int64_t step, const std::string& prefix, const toml::table& table, const std::string& where) {
    for (const auto& [name, node] : table) {
      const std::string key = prefix.empty() ? std::string(name.str()) : fmt::format("{}.{}", prefix, name.str());
      const auto* inner = node.as_table();
      if (inner != nullptr && !keys_.knows(key)) {
        read(step, key, *inner, where);
        continue;
      }
      const Field& field = find(key, position(where, node.source()));
      const std::string place = fmt::format("{}: ", position(where, node.source()));
      assign(field, value_of_node(node, field, place), place);
      set(step, key, value_of(field));
    }
  }

  void set(int64_t step, const std::string& key, const FieldValue& value) {
    const auto same = [&](const StepChange& change) { return change.step == step && change.key == key; };
    std::erase_if(config_.changes, same);
    config_.changes.push_back({step, key, value});
    std::ranges::sort(config_.changes, {},
                      [](const StepChange& change) { return std::tuple(change.step, change.key); });
  }

  RunConfig& config_;
  RunConfig scratch_;
  KeyTable keys_;
};

void read_table(const toml::table& table, const KeyTable& keys, StepChanges& changes, const std::string& where,
                ErrorList& errors) {
  for (const auto& [name, node] : table) {
    const std::string key(name.str());
    const auto* section = node.as_table();
    if (section != nullptr && key == kFromStep) {
      errors.collect([&] { changes.read(*section, where); });
      continue;
    }
    if (!section) {
      errors.collect([&, &node = node] { read_value(key, node, keys, where); });
      continue;
    }
    errors.collect([&, &node = node] {
      keys.expect_section(key, position(where, node.source()));
      read_section(key, *section, keys, where, errors);
    });
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
  expect_regular_file(path, hint);
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
  ErrorList errors;
  std::vector<Override> overrides;
  for (const std::string& argument : arguments) {
    errors.collect([&] { overrides.push_back(split_override(argument)); });
  }
  const toml::table table = parse_toml(toml, where);

  RunConfig config;
  if (const auto path = model_config_path(table, overrides)) {
    config.model = load_model_config(*path);
    config.model_config_read = *path;
  }
  const KeyTable keys(config);
  StepChanges changes(config);
  read_table(table, keys, changes, where, errors);
  for (const Override& override : overrides) {
    errors.collect([&] {
      if (override.key.starts_with(std::string(kFromStep) + ".")) return changes.read(override);
      const auto [field, prefix] = keys.find(override.key, "command line");
      assign_text(*field, override.text, prefix);
    });
  }
  errors.raise();
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
  int64_t step = 0;
  for (const StepChange& change : config.changes) {
    if (change.step != step) text += fmt::format("\n[{}.{}]\n", kFromStep, change.step);
    step = change.step;
    text += fmt::format("{} = {}\n", change.key, toml_text(change.value));
  }
  return text;
}

std::string key_of_option(std::string_view option) {
  option.remove_prefix(std::min(option.find_first_not_of('-'), option.size()));
  std::string name(option);
  std::ranges::replace(name, '-', '_');
  if (const auto alias = std::ranges::find(kAliases, name, &Alias::name); alias != kAliases.end()) {
    return std::string(alias->key);
  }
  if (std::string key = key_called(name); !key.empty()) return key;
  RunConfig config;
  for (const Section& section : sections_of(config)) {
    for (const Field& field : section.fields) {
      if (field.name == name || key_prefix(section) + field.name == name) return key_prefix(section) + field.name;
    }
  }
  return "";
}

namespace {

// A value as text that leaves room for its key in 100 columns; a long one ends in "...".
std::string short_value(const FieldValue& value) {
  constexpr size_t kMostBytes = 60;
  std::string text = value_text(value);
  if (text.size() <= kMostBytes) return text;
  size_t end = kMostBytes;
  while ((static_cast<unsigned char>(text[end]) & 0xc0U) == 0x80U) --end;  // between characters of UTF-8
  return text.substr(0, end) + "...";
}

}  // namespace

std::string run_config_help() {
  RunConfig defaults;
  std::string text;
  for (const Section& section : sections_of(defaults)) {
    text += section.name.empty() ? "" : fmt::format("\n[{}]\n", section.name);
    for (const Field& field : section.fields) {
      text += help_entry(fmt::format("{} = {}", field.name, short_value(value_of(field))),
                         fmt::format("{}; {}", field.help, allowed_text(field)));
    }
  }
  text += "\n" + help_entry("[from_step.N]",
                            "values from step N on, such as train.batch = 16: keys of [model] that do not change the "
                            "shapes of weights, data.sequence_length, and batch, micro_batches, learning_rate, "
                            "weight_decay and the like of [train]");
  text += "\nShort forms on the command line:\n";
  for (const Alias& alias : kAliases) text += help_entry(std::string(alias.name), std::string(alias.key));
  return text;
}

}  // namespace cadre
