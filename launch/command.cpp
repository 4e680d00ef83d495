// SPDX-License-Identifier: Apache-2.0
#include "launch/command.hpp"

#include <boost/program_options.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "comm/base/check.hpp"
#include "comm/base/console.hpp"
#include "runtime/checkpoint/safetensors_header.hpp"
#include "runtime/config/run_file.hpp"

namespace cadre {
namespace {

namespace po = boost::program_options;

constexpr unsigned kHelpWidth = 100;
constexpr const char* kPlaced = "placed";  // where the parser collects the words without --

std::string option_help(const Field& field) {
  const std::string allowed = allowed_text(field);
  return allowed == "text" ? field.help : fmt::format("{}; {}", field.help, allowed);
}

void add_option(po::options_description& options, const Field& field) {
  if (std::holds_alternative<bool*>(field.member)) {
    options.add_options()(field.name.c_str(), po::bool_switch(std::get<bool*>(field.member)), field.help.c_str());
    return;
  }
  auto* value = po::value<std::string>()->value_name(placeholder(field))->notifier([field](const std::string& text) {
    assign_text(field, text, "--");
  });
  if (value_of(field) != FieldValue(std::string())) {
    value->default_value(std::visit([](const auto& now) { return fmt::format("{}", now); }, value_of(field)));
  }
  options.add_options()(field.name.c_str(), value, option_help(field).c_str());
}

po::options_description options_of(const Command& command) {
  po::options_description options("Options", kHelpWidth, kHelpWidth / 2);
  for (const ListOption& list : command.lists) {
    auto* value = po::value<std::vector<std::string>>(list.values)->composing()->value_name("TEXT");
    options.add_options()(list.name.c_str(), value, (list.help + "; repeatable").c_str());
  }
  for (const Field& field : command.options) add_option(options, field);
  options.add_options()("help", po::bool_switch(), "print this help and exit");
  return options;
}

std::string help_of(const Command& command) {
  std::ostringstream text;
  text << "Usage: cadre " << command.name;
  for (const Field& argument : command.arguments) text << ' ' << argument.name;
  if (command.files) text << ' ' << command.files->name << "...";
  if (command.overrides != nullptr) text << " [key=value ...]";
  text << " [options]\n" << command.summary << "\n\n";
  for (const Field& argument : command.arguments) text << help_entry(argument.name, argument.help, 24);
  if (command.files) text << help_entry(command.files->name + "...", command.files->help, 24);
  text << (command.arguments.empty() && !command.files ? "" : "\n") << options_of(command);
  if (command.more_help) text << '\n' << command.more_help();
  return text.str();
}

// Of `cadre` itself or, with `path` "plan ", of the parts of a command.
std::string help_of(const std::string& path, const std::string& summary, const std::vector<Command>& commands) {
  std::string text = fmt::format("Usage: cadre {}COMMAND [arguments] [options]\n{}\n\n", path, summary);
  for (const Command& command : commands) text += help_entry(command.name, command.summary, 12);
  return text + fmt::format("\n  cadre {}COMMAND --help   its arguments and options\n", path);
}

std::string before_hint(const std::string& hint, const std::string& see) {
  return hint.empty() ? see : fmt::format("{}; {}", hint, see);
}

std::string see_help(const Command& command) { return fmt::format("see cadre {} --help", command.name); }

po::variables_map parse(const Command& command, const po::options_description& visible,
                        const std::vector<std::string>& words) {
  po::options_description all;
  all.add(visible).add_options()(kPlaced, po::value<std::vector<std::string>>());
  po::positional_options_description placed;
  placed.add(kPlaced, -1);
  namespace style = po::command_line_style;
  const int long_options = style::allow_long | style::long_allow_adjacent | style::long_allow_next;
  po::variables_map values;
  try {
    po::store(po::command_line_parser(words).options(all).positional(placed).style(long_options).run(), values);
  } catch (const po::unknown_option& error) {
    const std::string& name = error.get_option_name();
    const std::string key = command.overrides != nullptr ? key_of_option(name) : "";
    std::vector<std::string> known;
    for (const auto& option : visible.options()) known.push_back("--" + option->long_name());
    throw Error(ErrorKind::input, fmt::format("unknown option {}", name),
                before_hint(key.empty() ? nearest_name_hint(name, known) : fmt::format("write {}=VALUE", key),
                            see_help(command)));
  } catch (const po::error& error) {
    throw Error(ErrorKind::input, fmt::format("command line: {}", error.what()), see_help(command));
  }
  return values;
}

void take_placed(const Command& command, const std::vector<std::string>& words) {
  const size_t num_arguments = command.arguments.size();
  for (size_t i = 0; i < num_arguments; ++i) {
    const Field& argument = command.arguments[i];
    CADRE_CHECK(i < words.size(), fmt::format("cadre {}: {} is missing", command.name, argument.name),
                fmt::format("{}; {}", argument.help, see_help(command)));
    assign_text(argument, words[i], "");
  }
  if (command.files) {
    CADRE_CHECK(words.size() > num_arguments, fmt::format("cadre {}: {} is missing", command.name, command.files->name),
                fmt::format("{}; {}", command.files->help, see_help(command)));
    return command.files->values->assign(words.begin() + static_cast<std::ptrdiff_t>(num_arguments), words.end());
  }
  if (words.size() <= num_arguments) return;
  CADRE_CHECK(command.overrides != nullptr,
              fmt::format("cadre {}: unexpected argument: {}", command.name, words[num_arguments]), see_help(command));
  command.overrides->assign(words.begin() + static_cast<std::ptrdiff_t>(num_arguments), words.end());
}

void check_utf8(const std::string& name, const std::string& value) {
  CADRE_CHECK(is_utf8(value), fmt::format("{} is not UTF-8: {}", name, quote_name(value)),
              "names in run files, checkpoints and reports must be UTF-8: rename the file");
}

// All that may be written into a file; prompts may be any bytes.
void check_names(const Command& command) {
  const auto check_fields = [](const std::vector<Field>& fields, const char* before) {
    for (const Field& field : fields) {
      if (const auto* text = std::get_if<std::string*>(&field.member)) check_utf8(before + field.name, **text);
    }
  };
  check_fields(command.arguments, "");
  check_fields(command.options, "--");
  if (command.files) {
    for (const std::string& word : *command.files->values) check_utf8(command.files->name, word);
  }
  if (command.overrides == nullptr) return;
  for (const std::string& word : *command.overrides) check_utf8("key=value", word);
}

void print(const Job& job, const std::string& text) {
  if (job.rank() != 0) return;
  fmt::print("{}", text);
  require_stdout();
}

void run_command(const Command& command, const std::vector<std::string>& words, const Job& job) {
  const po::options_description options = options_of(command);
  po::variables_map values = parse(command, options, words);
  if (values["help"].as<bool>()) return print(job, help_of(command));
  po::notify(values);
  for (const auto& [name, value] : values) {
    if (command.given != nullptr && !value.defaulted()) command.given->insert(name);
  }
  take_placed(command,
              values.count(kPlaced) > 0 ? values[kPlaced].as<std::vector<std::string>>() : std::vector<std::string>());
  check_names(command);
  command.run(job);
  if (command.output_is_result && job.rank() == 0) require_stdout();
}

// `words` begin with the name of one of `commands`, which all stand behind `path`.
void run_one_of(const std::string& path, const std::string& summary, const std::vector<Command>& commands,
                const std::vector<std::string>& words, const Job& job) {
  const std::string see_all = fmt::format("see cadre {}--help", path);
  CADRE_CHECK(!words.empty(), fmt::format("cadre {}COMMAND: no command given", path), see_all);
  const std::string& name = words.front();
  if (name == "--help" || name == "-h" || name == "help") {
    return print(job, help_of(path, summary, commands) + (path.empty() ? "  cadre --version\n" : ""));
  }
  const auto found = std::ranges::find(commands, name, &Command::name);
  std::vector<std::string> known;
  for (const Command& other : commands) known.push_back(other.name);
  CADRE_CHECK(found != commands.end(), fmt::format("unknown command {}{}", path, name),
              before_hint(nearest_name_hint(name, known), see_all));
  Command command = *found;
  command.name = path + name;
  const std::vector<std::string> rest = {words.begin() + 1, words.end()};
  const bool names_part =
      !rest.empty() && std::ranges::find(command.parts, rest.front(), &Command::name) != command.parts.end();
  if (command.run && !names_part) return run_command(command, rest, job);
  run_one_of(command.name + " ", command.summary, command.parts, rest, job);
}

}  // namespace

std::string placeholder(const Field& field) {
  if (std::holds_alternative<int64_t*>(field.member)) return "N";
  return std::holds_alternative<double*>(field.member) ? "X" : "TEXT";
}

void run_command_line(const std::vector<Command>& commands, const std::vector<std::string>& words, const Job& job) {
  if (!words.empty() && words.front() == "--version") return print(job, fmt::format("cadre {}\n", CADRE_VERSION));
  run_one_of("", "Trains and runs mixture-of-experts models over MPI. Runs alone or under mpirun or srun.", commands,
             words, job);
}

}  // namespace cadre
