// SPDX-License-Identifier: Apache-2.0
// cadre train: the main job.
#include <fmt/format.h>

#include <memory>

#include "launch/banner.hpp"
#include "launch/command.hpp"
#include "layers/kernels/kernels.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/train/trainer.hpp"

namespace cadre {
namespace {

struct Options {
  std::string run_file;
  std::vector<std::string> overrides;
  int64_t ranks = 0;
  bool print_config = false;
};

void run_train(const Options& options, const Job& job) {
  const RunConfig config = load_run_config(options.run_file, options.overrides);
  check(config, job.num_ranks(options.ranks));
  if (options.print_config) {
    if (job.rank() == 0) fmt::print("{}", to_toml(config));
    return;
  }
  set_kernel_threads(static_cast<int>(config.compute.threads));
  job.on_ranks(options.ranks, [&](Communicator world) {
    print_banner(world, config);
    Trainer trainer(std::move(world), config);
    trainer.run();
  });
}

}  // namespace

Command train_command() {
  const auto options = std::make_shared<Options>();
  return {.name = "train",
          .summary = "trains a model as a run file says; goes on from the checkpoints that are there",
          .arguments = {{"RUN.toml", &options->run_file, any(), "the run file; launch/configs has some to start from"}},
          .overrides = &options->overrides,
          .options = {ranks_option(options->ranks),
                      {"print-config", &options->print_config, any(), "print the resolved configuration and stop"}},
          .more_help = [] { return "Keys of the run file, also as key=value:\n" + run_config_help(); },
          .run = [options](const Job& job) { run_train(*options, job); }};
}

}  // namespace cadre
