// SPDX-License-Identifier: Apache-2.0
// cadre eval: the loss on data that the model was not trained on, and how evenly its experts are used there.
#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <optional>

#include "launch/banner.hpp"
#include "launch/checkpoint_argument.hpp"
#include "launch/command.hpp"
#include "layers/kernels/kernels.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/observe/step_metrics.hpp"
#include "runtime/train/evaluate.hpp"

namespace cadre {
namespace {

struct EvalArguments {
  std::string checkpoint;
  std::string adapter;
  std::string data;
  std::string format;
  std::string chat_format;
  int64_t batches = TrainConfig().eval_batches;
  std::string dead_experts;
  std::string placement;
  ComputeArguments compute;
  int64_t ranks = 0;
};

void print_evaluation(const Evaluation& evaluation, const ModelConfig& model) {
  const std::vector<int> moe_layers = moe_layers_of(model);  // MTP modules, which are not evaluated, come last
  const bool all_count = evaluation.loss_weight == static_cast<double>(evaluation.num_tokens);
  fmt::print("loss {:.4f} nats a token, perplexity {:.3f}, over {} held-out tokens{}\n", evaluation.loss,
             std::exp(evaluation.loss), evaluation.num_tokens,
             all_count ? "" : fmt::format(", of which those that count weigh {:g}", evaluation.loss_weight));
  for (size_t i = 0; i < evaluation.expert_counts.size(); ++i) {
    const BalanceFigures figures = balance_figures(evaluation.expert_counts[i]);
    fmt::print("layer {:3} | experts cv {:.2f} maxvio {:.2f} entropy {:.3f} dead {} of {}\n", moe_layers[i], figures.cv,
               figures.max_vio, figures.entropy, figures.dead, evaluation.expert_counts[i].size());
  }
  if (model.router.dead_experts.empty()) return;
  fmt::print("{}", dead_experts_note(model, evaluation.rerouted,
                                     evaluation.num_tokens * static_cast<int64_t>(evaluation.expert_counts.size())));
}

void run_eval(const EvalArguments& options, const Job& job) {
  const ModelFiles files = find_model(options.checkpoint, options.adapter);
  const std::filesystem::path& checkpoint = files.checkpoint;
  RunConfig config = run_config_of(files);
  const std::string notes = checkpoint_notes(checkpoint);
  if (job.rank() == 0) fmt::print("{}", notes);
  take_data(options.data, config.data);
  if (!options.format.empty()) config.data.format = options.format;
  if (!options.chat_format.empty()) config.data.chat_format = options.chat_format;
  leave_out(options.dead_experts, config.model);
  config.parallel.placement = options.placement;
  apply(options.compute, config.compute);
  const auto [parts, summaries] = held_out(config);
  for (size_t i = 0; job.rank() == 0 && i < parts.size(); ++i) {
    fmt::print("data {}; {} held out\n", describe(summaries[i]), parts[i].tokens.num_tokens());
  }
  const BatchReader reader(parts, config.data.sequence_length, config.train.batch, static_cast<uint64_t>(config.seed));
  const std::optional<TaskLabeller> labeller = make_task_labeller(config);
  const WorkerOptions worker_options = inference_options(config);
  job.on_ranks(options.ranks, [&](const Communicator& world) {
    print_banner(world, config);
    const auto evaluate_with = [&](const std::string& weights) {
      WorkerOptions with = worker_options;
      with.compute.weights = weights;
      Worker worker(world.duplicate(world.name()), with);
      load_model(files, worker.store());
      return evaluate(worker, reader, config, options.batches, labeller ? &*labeller : nullptr);
    };
    const Evaluation evaluation = evaluate_with(config.compute.weights);
    if (world.rank() == 0) print_evaluation(evaluation, config.model);
    if (config.compute.weights != "fp32") {
      const double loss = evaluate_with("fp32").loss;
      if (world.rank() == 0) {
        fmt::print("with weights in fp32: loss {:.4f}, perplexity {:.3f}\n", loss, std::exp(loss));
      }
    }
    if (std::isfinite(evaluation.loss)) return;
    throw Error(ErrorKind::numerics, fmt::format("{}: the held-out loss is {}", checkpoint.string(), evaluation.loss),
                "a weight is not finite or an activation overflows: evaluate an earlier checkpoint");
  });
}

}  // namespace

Command eval_command() {
  const auto options = std::make_shared<EvalArguments>();
  return {.name = "eval",
          .summary = "measures the loss of a checkpoint on held-out data and the balance of its experts",
          .arguments = {checkpoint_argument(options->checkpoint)},
          .options =
              {{"data", &options->data, any(),
                "a text file, a folder of them, an llm.c token file or a file of conversations; reads all of it where "
                "the run has data.validation, else the last data.validation_fraction. Default: data of the run"},
               {"format", &options->format, one_of({"", "text", "conversations"}),
                "of the data, as data.format of a run; default: that of the run"},
               {"chat-format", &options->chat_format, one_of({"", "auto", "deepseek_v2", "deepseek_v3", "deepseek_r1"}),
                "of conversations, as data.chat_format of a run; default: that of the run"},
               {"batches", &options->batches, at_least(1),
                "largest number of batches of train.batch sequences; each held-out window counts once"},
               adapter_option(options->adapter),
               dead_experts_option(options->dead_experts),
               placement_option(options->placement),
               weights_option(options->compute),
               threads_option(options->compute),
               ranks_option(options->ranks)},
          .run = [options](const Job& job) { run_eval(*options, job); }};
}

}  // namespace cadre
