// SPDX-License-Identifier: Apache-2.0
#include "launch/reference.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <functional>
#include <iterator>
#include <memory>

#include "comm/base/check.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

// Text for troff: no escape, no request, and a hyphen that can be copied.
std::string roff(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '\\') {
      result += "\\e";
    } else if (c == '-') {
      result += "\\-";
    } else {
      result += c;
    }
  }
  return result.starts_with('.') || result.starts_with('\'') ? "\\&" + result : result;
}

std::string dashed(std::string text) {
  std::ranges::replace(text, ' ', '-');
  return text;
}

std::string man_entry(const std::string& term, const std::string& text) {
  return fmt::format(".TP\n.B {}\n{}\n", roff(term), roff(text));
}

std::string option_entry(const Field& field) {
  const bool is_switch = std::holds_alternative<bool*>(field.member);
  std::string text = field.help;
  const std::string allowed = allowed_text(field);
  if (!is_switch && allowed != "text") text += "; " + allowed;
  const FieldValue value = value_of(field);
  if (!is_switch && value != FieldValue(std::string())) text += "; default: " + value_text(value);
  return man_entry("--" + field.name + (is_switch ? "" : " " + placeholder(field)), text);
}

std::string keys_text() {
  RunConfig defaults;
  std::string text =
      ".SH KEYS OF A RUN FILE\nA key stands in its section, and on the command line as SECTION.KEY=VALUE.\n";
  for (const Section& section : sections_of(defaults)) {
    text += fmt::format(".SS {}\n", section.name.empty() ? "top level" : "[" + section.name + "]");
    for (const Field& field : section.fields) {
      text += man_entry(fmt::format("{} = {}", field.name, value_text(value_of(field))),
                        fmt::format("{}; {}", field.help, allowed_text(field)));
    }
  }
  return text;
}

std::string page_of(const std::string& path, const std::string& summary, const std::string& synopsis,
                    const std::string& body) {
  std::string title = dashed("cadre " + path);
  if (path.empty()) title = "cadre";
  std::string upper = title;
  std::ranges::transform(upper, upper.begin(), [](unsigned char c) { return std::toupper(c); });
  return fmt::format(".TH {} 1 \"\" \"cadre {}\" \"Cadre\"\n.SH NAME\n{} \\- {}\n.SH SYNOPSIS\n.B {}\n{}", roff(upper),
                     CADRE_VERSION, roff(title), roff(summary), roff(synopsis), body);
}

std::string list_of_commands(const std::string& path, const std::vector<Command>& commands) {
  std::string text;
  for (const Command& command : commands) text += man_entry(path + command.name, command.summary);
  return text;
}

std::string see_also(const std::vector<std::string>& pages) {
  std::vector<std::string> names;
  for (const std::string& page : pages) names.push_back(roff(page) + "(1)");
  return fmt::format(".SH SEE ALSO\n{}\n", fmt::join(names, ", "));
}

constexpr const char* kExitStatus =
    ".SH EXIT STATUS\n0 done; 2 input; 3 environment; 4 timeout; 5 numerics; 6 lost rank; 7 peer; 70 internal error; "
    "75 "
    "restart; 128 + n: signal n.\n";

void add_page(const std::string& path, const Command& command, std::map<std::string, std::string>& files) {
  std::string body;
  std::string synopsis = "cadre " + path;
  for (const Field& argument : command.arguments) synopsis += ' ' + argument.name;
  if (command.overrides != nullptr) synopsis += " [key=value ...]";
  if (command.run) synopsis += " [options]";
  if (!command.parts.empty()) {
    if (!command.run) synopsis += " COMMAND [arguments] [options]";
    body += ".SH COMMANDS\n" + list_of_commands(path + " ", command.parts);
  }
  if (!command.arguments.empty()) body += ".SH ARGUMENTS\n";
  for (const Field& argument : command.arguments) body += man_entry(argument.name, argument.help);
  if (command.run) {
    body += ".SH OPTIONS\n";
    for (const ListOption& list : command.lists)
      body += man_entry("--" + list.name + " TEXT", list.help + "; repeatable");
    for (const Field& field : command.options) body += option_entry(field);
    body += man_entry("--help", "print help and exit");
  }
  if (path == "train") body += keys_text();
  body += kExitStatus;
  std::vector<std::string> others = {"cadre"};
  if (command.overrides != nullptr && path != "train") others.emplace_back("cadre-train");
  for (const Command& part : command.parts) others.push_back(dashed("cadre " + path + " " + part.name));
  body += see_also(others);
  files[fmt::format("man/man1/{}.1", dashed("cadre " + path))] = page_of(path, command.summary, synopsis, body);
  for (const Command& part : command.parts) add_page(path + " " + part.name, part, files);
}

// All commands and parts, "plan memory" for a part; parents first.
void each_command(const std::string& path, const std::vector<Command>& commands,
                  const std::function<void(const std::string&, const Command&)>& action) {
  for (const Command& command : commands) {
    action(path + command.name, command);
    each_command(path + command.name + " ", command.parts, action);
  }
}

std::vector<std::string> names_of(const std::vector<Command>& commands) {
  std::vector<std::string> names;
  for (const Command& command : commands) names.push_back(command.name);
  return names;
}

std::vector<std::string> option_names(const Command& command) {
  std::vector<std::string> names;
  for (const ListOption& list : command.lists) names.push_back("--" + list.name);
  for (const Field& field : command.options) names.push_back("--" + field.name);
  names.emplace_back("--help");
  return names;
}

std::vector<std::string> choices_of(const Field& field) {
  if (std::holds_alternative<bool*>(field.member)) return {"true", "false"};
  return field.allowed.choices;
}

struct Key {
  std::string name;
  std::string help;
  std::vector<std::string> choices;
};
std::vector<Key> all_keys() {
  RunConfig config;
  std::vector<Key> keys;
  for (const Section& section : sections_of(config)) {
    for (const Field& field : section.fields) {
      keys.push_back({key_prefix(section) + field.name, field.help, choices_of(field)});
    }
  }
  return keys;
}

// In single quotes of a shell.
std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

// For a description in _arguments and _describe, where : [ ] mean something.
std::string described(std::string text) {
  std::string result;
  for (const char c : text) {
    if (c == ':' || c == '[' || c == ']' || c == '\\') result += '\\';
    result += c;
  }
  return result;
}

std::string function_of(std::string path) {
  std::ranges::replace(path, ' ', '_');
  return "_cadre_" + path;
}

// `name) words` for each value with choices, of keys and, per command, of options.
std::string bash_values(const std::vector<Command>& commands) {
  std::string text;
  for (const Key& key : all_keys()) {
    if (!key.choices.empty()) text += fmt::format("    {}) echo '{}' ;;\n", key.name, fmt::join(key.choices, " "));
  }
  each_command("", commands, [&](const std::string& path, const Command& command) {
    for (const Field& field : command.options) {
      const bool has_value = !std::holds_alternative<bool*>(field.member);
      if (!has_value || field.allowed.choices.empty()) continue;
      text += fmt::format("    '{} --{}') echo '{}' ;;\n", path, field.name, fmt::join(field.allowed.choices, " "));
    }
  });
  return text;
}

std::string bash_completion(const std::vector<Command>& commands) {
  std::string words;
  std::string overrides;
  each_command("", commands, [&](const std::string& path, const Command& command) {
    std::vector<std::string> all = names_of(command.parts);
    if (command.run) std::ranges::copy(option_names(command), std::back_inserter(all));
    words += fmt::format("    '{}') echo '{}' ;;\n", path, fmt::join(all, " "));
    if (command.overrides != nullptr) overrides += fmt::format("{}'{}'", overrides.empty() ? "" : " | ", path);
  });
  std::vector<std::string> keys;
  for (const Key& key : all_keys()) keys.push_back(key.name + "=");
  return fmt::format(R"sh(# bash completion of cadre; made by the build: cadre reference
_cadre_words() {{
  case "$1" in
    '') echo '{} --help --version' ;;
{}  esac
}}
_cadre_values() {{
  case "$1" in
{}  esac
}}
_cadre() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} path='' i=1
  COMPREPLY=()
  while ((i < COMP_CWORD)) && [[ " $(_cadre_words "$path") " == *" ${{COMP_WORDS[i]}} "* && ${{COMP_WORDS[i]}} != -* ]]; do
    path+="${{path:+ }}${{COMP_WORDS[i]}}"
    i=$((i + 1))
  done
  if [[ $word == '=' || $before == '=' ]]; then  # bash takes key=value for three words
    local key=$before
    if [[ $word == '=' ]]; then word=''; else key=${{COMP_WORDS[COMP_CWORD - 2]}}; fi
    mapfile -t COMPREPLY < <(compgen -W "$(_cadre_values "$key")" -- "$word")
    ((${{#COMPREPLY[@]}} > 0)) || mapfile -t COMPREPLY < <(compgen -f -- "$word")
    return
  fi
  if [[ $before == --* && $word != -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$(_cadre_values "$path $before")" -- "$word")
    ((${{#COMPREPLY[@]}} == 0)) || return
  fi
  mapfile -t COMPREPLY < <(compgen -W "$(_cadre_words "$path")" -- "$word")
  [[ -n $path && $word != -* ]] || return
  case "$path" in
    {})
      local keys
      mapfile -t keys < <(compgen -W '{}' -- "$word")
      COMPREPLY+=("${{keys[@]}}")
      if [[ -n $word ]]; then compopt -o nospace 2>/dev/null; fi
      ;;
  esac
  mapfile -t -O "${{#COMPREPLY[@]}}" COMPREPLY < <(compgen -f -- "$word")
}}
complete -o filenames -F _cadre cadre
)sh",
                     fmt::join(names_of(commands), " "), words, bash_values(commands), overrides, fmt::join(keys, " "));
}

std::string zsh_completion(const std::vector<Command>& commands) {
  std::string keys;
  std::string values;
  for (const Key& key : all_keys()) {
    keys += "    " + quoted(described(key.name) + ":" + key.help) + "\n";
    if (!key.choices.empty())
      values += fmt::format("    {}) compadd -- {} ;;\n", key.name, fmt::join(key.choices, " "));
  }
  std::string functions;
  std::string cases;
  each_command("", commands, [&](const std::string& path, const Command& command) {
    std::string arguments;
    for (const ListOption& list : command.lists) {
      arguments += " \\\n    " + quoted(fmt::format("*--{}[{}]:TEXT:_files", list.name, described(list.help)));
    }
    for (const Field& field : command.options) {
      std::string value;
      if (!std::holds_alternative<bool*>(field.member)) {
        value = field.allowed.choices.empty() ? ":value:_files"
                                              : fmt::format(":value:({})", fmt::join(field.allowed.choices, " "));
      }
      arguments += " \\\n    " + quoted(fmt::format("--{}[{}]{}", field.name, described(field.help), value));
    }
    arguments += " \\\n    '--help[print help and exit]'";
    std::string parts;
    for (const Command& part : command.parts) parts += " " + quoted(described(part.name) + ":" + part.summary);
    const char* rest = command.overrides != nullptr ? "_cadre_keys_or_files" : "_files";
    functions += function_of(path) + "() {\n";
    if (!parts.empty()) {
      functions += fmt::format("  local -a parts=({})\n  if ((CURRENT == 2)); then _describe part parts; {}; fi\n",
                               parts, command.run ? ":" : "return");
      functions += "  case $words[2] in\n";
      for (const Command& part : command.parts) {
        functions += fmt::format("    {}) shift words; ((CURRENT--)); {}; return ;;\n", part.name,
                                 function_of(path + " " + part.name));
      }
      functions += "  esac\n";
    }
    if (command.run) functions += fmt::format("  _arguments{} \\\n    '*: :{}'\n", arguments, rest);
    functions += "}\n";
  });
  std::string names;
  for (const Command& command : commands) {
    names += " " + quoted(described(command.name) + ":" + command.summary);
    cases += fmt::format("  {}) {} ;;\n", command.name, function_of(command.name));
  }
  return fmt::format(R"sh(#compdef cadre
# zsh completion of cadre; made by the build: cadre reference
_cadre_keys_or_files() {{
  local -a keys=(
{}  )
  if [[ $PREFIX == *=* ]]; then
    local key=${{PREFIX%%=*}}
    compset -P '*='
    case $key in
{}    *) _files ;;
    esac
    return
  fi
  _describe key keys -q -S =
  _files
}}
{}
local -a commands=({})
if ((CURRENT == 2)); then
  _describe command commands
  return
fi
shift words
((CURRENT--))
case $words[1] in
{}esac
)sh",
                     keys, values, functions, names, cases);
}

}  // namespace

std::map<std::string, std::string> reference_files(const std::vector<Command>& commands) {
  std::map<std::string, std::string> files;
  std::vector<std::string> others;
  for (const Command& command : commands) {
    add_page(command.name, command, files);
    others.push_back("cadre-" + command.name);
  }
  files["man/man1/cadre.1"] =
      page_of("", "trains and runs mixture-of-experts models over MPI", "cadre COMMAND [arguments] [options]",
              ".SH COMMANDS\n" + list_of_commands("", commands) + kExitStatus + see_also(others));
  files["bash-completion/completions/cadre"] = bash_completion(commands);
  files["zsh/vendor-completions/_cadre"] = zsh_completion(commands);
  return files;
}

Command reference_command(const std::function<std::vector<Command>()>& commands) {
  const auto folder = std::make_shared<std::string>();
  return {.name = "reference",
          .summary = "writes man pages and the completion of bash and zsh into a folder",
          .arguments = {{"DIR", folder.get(), any(), "the folder, laid out as /usr/share"}},
          .run = [folder, commands](const Job& job) {
            if (job.rank() != 0) return;
            for (const auto& [path, text] : reference_files(commands())) {
              const fs::path file = fs::path(*folder) / path;
              std::error_code error;
              fs::create_directories(file.parent_path(), error);
              write_text_file(file, text);
            }
          }};
}

}  // namespace cadre
