// SPDX-License-Identifier: Apache-2.0
// cadre experts: looks at the experts of a checkpoint, makes twice as many or fewer of them. One process works, whatever
// the number of ranks that wrote the checkpoint or will go on with it.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "comm/transport/local.hpp"
#include "launch/checkpoint_argument.hpp"
#include "launch/command.hpp"
#include "layers/kernels/kernels.hpp"
#include "layers/router/task.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/stored_values.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/experts/merge.hpp"
#include "runtime/experts/stored_model.hpp"
#include "runtime/train/evaluate.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

struct ExpertsArguments {
  std::string checkpoint;
  std::string out;
  std::string data;
  int64_t tokens = 512;  // of the probe
  int64_t experts = 0;
  int64_t top_k = 0;
  double noise = GrowOptions().noise;
  int64_t seed = 0;
};

// The run that wrote the checkpoint, with its own grid of ranks.
RunConfig config_of(const ExpertsArguments& options, const fs::path& checkpoint) {
  RunConfig config = run_config_of(checkpoint);
  fmt::print("{}", checkpoint_notes(checkpoint));
  config.model.num_nextn_predict_layers = stored_mtp_modules(checkpoint, config.model);
  const fs::path run_file = checkpoint / "run.toml";
  if (fs::exists(run_file)) config.parallel = load_run_config(run_file.string(), {}).parallel;
  take_data(options.data, config.data);
  CADRE_CHECK(!moe_layers_of(config.model).empty(), fmt::format("{} has no experts", checkpoint.string()),
              "the model needs n_routed_experts >= 1");
  return config;
}

// Calls body(checkpoint, configuration, model) on the one rank of a job of its own.
template <class Body>
void with_model(const ExpertsArguments& options, const Job& job, Body&& body) {
  if (job.rank() != 0) return;
  const fs::path checkpoint = find_checkpoint(options.checkpoint);
  const RunConfig config = config_of(options, checkpoint);
  run_local_ranks(job.context(), 1, [&](std::unique_ptr<Transport> transport) {
    StoredModel model(Communicator(std::move(transport), "world"), config);
    model.load(checkpoint);
    body(model);
  });
}

// The same for a second model, while the first one lives.
template <class Body>
void with_other_model(const RunConfig& config, Body&& body) {
  run_local_ranks(1, [&](std::unique_ptr<Transport> transport) {
    StoredModel model(Communicator(std::move(transport), "world"), config);
    body(model);
  });
}

BatchReader reader_of(const RunConfig& config, int64_t num_sequences) {
  return {held_out(config).parts, config.data.sequence_length, num_sequences, static_cast<uint64_t>(config.seed)};
}

std::vector<LayerSurvey> survey(const ExpertsArguments& options, StoredModel& model) {
  const int64_t num_sequences = std::max<int64_t>(1, options.tokens / model.config().data.sequence_length);
  return survey_experts(model, reader_of(model.config(), num_sequences), num_sequences);
}

void print_survey(const LayerSurvey& survey) {
  fmt::print("layer {}\n{:>8}{:>12}{:>10}{:>10}{:>12}\n", survey.layer, "expert", "norm", "load", "nearest",
             "similarity");
  for (int expert = 0; expert < survey.num_experts(); ++expert) {
    int nearest = -1;
    for (int other = 0; other < survey.num_experts(); ++other) {
      const bool nearer = nearest < 0 || survey.similarity_of(expert, other) > survey.similarity_of(expert, nearest);
      if (other != expert && nearer) nearest = other;
    }
    const auto at = static_cast<size_t>(expert);
    fmt::print("{:>8}{:>12.4f}{:>10}", expert, survey.norms[at], survey.load[at]);
    fmt::print("{:>10}{:>12}\n", nearest < 0 ? "-" : fmt::format("{}", nearest),
               nearest < 0 ? "-" : fmt::format("{:.4f}", survey.similarity_of(expert, nearest)));
  }
}

std::string task_name(size_t task, size_t num_tasks) {
  if (task + 1 == num_tasks) return "none";
  return task < kNumTaskTypes ? std::string(name_of(static_cast<TaskType>(task))) : fmt::format("{}", task);
}

// With expert_history: what each expert did so far, by task. Experts without slots are left out.
void print_history(const std::vector<std::vector<ExpertHistory>>& history) {
  if (history.empty()) return;
  fmt::print("{:>12}{:>8}{:>10}{:>12}{:>12}{:>10}\n", "task", "expert", "slots", "quality", "success", "factor");
  for (size_t task = 0; task < history.size(); ++task) {
    for (size_t expert = 0; expert < history[task].size(); ++expert) {
      const ExpertHistory& found = history[task][expert];
      if (found.slots == 0) continue;
      fmt::print("{:>12}{:>8}{:>10}{:>12.2f}{:>11.1f}%{:>10.4f}\n", task_name(task, history.size()), expert,
                 found.slots, found.record.quality, 100.0 * found.record.success, found.factor);
    }
  }
}

void run_show(const ExpertsArguments& options, const Job& job) {
  with_model(options, job, [&](StoredModel& model) {
    for (const LayerSurvey& layer : survey(options, model)) {
      print_survey(layer);
      print_history(model.worker().model().stage_with(layer.layer)->block(layer.layer).moe().router().history());
    }
  });
}

fs::path out_folder(const ExpertsArguments& options) {
  CADRE_CHECK(!options.out.empty(), "--out is missing", "name a new folder for the run that continues from the result");
  return options.out;
}

void print_saved(const StoredModel& model, const fs::path& path, int64_t step) {
  fmt::print("saved {}\ncontinue with: cadre train {} steps=N, N above {}\n", path.string(),
             (fs::path(model.config().out) / "run.toml").string(), step);
}

void run_grow(const ExpertsArguments& options, const Job& job) {
  const fs::path out = out_folder(options);
  const GrowOptions grow = {
      .top_k = options.top_k, .noise = options.noise, .seed = static_cast<uint64_t>(options.seed)};
  with_model(options, job, [&](StoredModel& model) {
    with_other_model(grown_config(model.config(), grow), [&](StoredModel& grown) {
      grow_experts(model, grown, grow);
      const ModelConfig& before = model.config().model;
      const ModelConfig& after = grown.config().model;
      fmt::print("experts {} -> {}, of a token {} -> {}, noise {} of the root mean square in every second one\n",
                 before.n_routed_experts, after.n_routed_experts, before.num_experts_per_tok, after.num_experts_per_tok,
                 grow.noise);
      print_saved(grown, grown.save(out, model.manifest()), model.manifest().step);
    });
  });
}

void print_loss(const LayerLoss& loss) {
  fmt::print("layer {}: least similarity of merged experts {:.4f}, outputs changed by {:.2f} %\n", loss.layer,
             loss.least_similarity, 100.0 * loss.output_change);
  for (size_t e = 0; e < loss.sums.size(); ++e) {
    if (loss.sums[e].parts.size() == 1) continue;
    std::string parts;
    for (const ExpertSum::Part& part : loss.sums[e].parts)
      parts += fmt::format(" {} (load {})", part.expert, part.weight);
    fmt::print("  expert {} was{}\n", e, parts);
  }
}

void run_merge(const ExpertsArguments& options, const Job& job) {
  const fs::path out = out_folder(options);
  const MergeOptions merge = {.experts = options.experts, .top_k = options.top_k};
  with_model(options, job, [&](StoredModel& model) {
    with_other_model(merged_config(model.config(), merge), [&](StoredModel& merged) {
      for (const LayerLoss& loss : merge_experts(model, merged, survey(options, model))) print_loss(loss);
      const BatchReader reader = reader_of(model.config(), model.config().train.batch);
      const auto labeller = make_task_labeller(model.config());
      const TaskLabeller* tasks = labeller ? &*labeller : nullptr;
      fmt::print("loss of a held-out batch {:.4f} -> {:.4f} nats a token\n",
                 evaluate(model.worker(), reader, model.config(), 1, tasks).loss,
                 evaluate(merged.worker(), reader, merged.config(), 1, tasks).loss);
      print_saved(merged, merged.save(out, model.manifest()), model.manifest().step);
    });
  });
}

using Run = void (*)(const ExpertsArguments&, const Job&);

Command part(const char* name, const char* summary, const std::shared_ptr<ExpertsArguments>& options,
             std::vector<Field> fields, Run run) {
  return {.name = name,
          .summary = summary,
          .arguments = {checkpoint_argument(options->checkpoint)},
          .options = std::move(fields),
          .run = [options, run](const Job& job) { run(*options, job); }};
}

}  // namespace

Command experts_command() {
  const auto options = std::make_shared<ExpertsArguments>();
  const Field out = {"out", &options->out, any(), "new folder for the run that continues from the result"};
  const Field data = {"data", &options->data, any(),
                      "text or tokens that the experts are measured on; default: the training data"};
  const Field tokens = {"tokens", &options->tokens, at_least(1), "number of tokens; every expert runs on all of them"};
  const Field top_k = {"top-k", &options->top_k, at_least(0), ""};
  Field grown_top_k = top_k;
  grown_top_k.help = "experts per token of the result; 0: twice as many, which leaves outputs equal";
  Field merged_top_k = top_k;
  merged_top_k.help = "experts per token of the result; 0: as before";
  return {.name = "experts",
          .summary = "shows, doubles or merges the experts of a checkpoint",
          .parts = {part("show", "norm, load, nearest neighbour and history of each expert", options, {data, tokens},
                         run_show),
                    part("grow", "replaces each expert by two", options,
                         {out,
                          grown_top_k,
                          {"noise", &options->noise, at_least(0),
                           "noise in every second expert / root mean square of its weights"},
                          {"seed", &options->seed, at_least(0), "seed of the noise"}},
                         run_grow),
                    part("merge", "merges experts with similar outputs", options,
                         {out,
                          {"experts", &options->experts, at_least(0), "experts per layer of the result; 0: half"},
                          merged_top_k,
                          data,
                          tokens},
                         run_merge)}};
}

}  // namespace cadre
