// SPDX-License-Identifier: Apache-2.0
#include "launch/reference.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <memory>

#include "comm/base/check.hpp"
#include "launch/completion.hpp"
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

}  // namespace

std::string placeholder(const Field& field) {
  if (std::holds_alternative<int64_t*>(field.member)) return "N";
  return std::holds_alternative<double*>(field.member) ? "X" : "TEXT";
}

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
