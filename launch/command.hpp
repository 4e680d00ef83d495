// SPDX-License-Identifier: Apache-2.0
// What a command of `cadre` is: one table of arguments and options, which the parser and --help are both made from, and
// what to run. Each command lies in a file of its own; main.cpp lists them.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "comm/base/fields.hpp"
#include "launch/job.hpp"

namespace cadre {

// An option that may be given several times: --name TEXT --name TEXT.
struct ListOption {
  std::string name;
  std::vector<std::string>* values;
  std::string help;
};

struct Command {
  std::string name;
  std::string summary;                            // one line
  std::vector<Field> arguments = {};              // by place, all required; named as help shows them
  std::vector<std::string>* overrides = nullptr;  // takes key=value arguments too
  std::vector<Field> options = {};                // --name VALUE; a bool is a switch
  std::vector<ListOption> lists = {};
  std::optional<ListOption> files = {};         // arguments behind the others, at least one; named as help shows them
  std::set<std::string>* given = nullptr;       // receives the names of the options on the command line
  std::function<std::string()> more_help = {};  // what --help says at the end
  std::function<void(const Job&)> run = {};
  bool output_is_result = true;  // it fails when stdout cannot be written
  // `cadre NAME PART ...`: commands of their own. A command that can run has them beside its own arguments; else all from
  // `arguments` on is empty.
  std::vector<Command> parts = {};
};

Command train_command();
Command eval_command();
Command generate_command();
Command experts_command();
Command export_command();
Command inspect_command();
Command score_command();
Command tokenize_command();
Command bench_command();
Command report_command();
Command doctor_command();

// The parts of `cadre plan`: each works out in one process what a run would do, without running it; cluster measures.
Command plan_cluster_command();
Command plan_dispatch_command();
Command plan_memory_command();
Command plan_placement_command();
Command plan_schedule_command();
Command plan_search_command();
Command plan_step_command();

// Runs the command that `words` (without the name of the program) ask for, or prints help or version, on rank 0. Every
// rank calls it. Throws on words that no command takes.
void run_command_line(const std::vector<Command>& commands, const std::vector<std::string>& words, const Job& job);

// What stands for the value of an option: "N", "X" or "TEXT".
std::string placeholder(const Field& field);

// Prints the report of a traced run, and writes RUN_DIR/report.json and RUN_DIR/report.html. The traces of all ranks must be there.
void show_report(const std::string& run_dir);

}  // namespace cadre
