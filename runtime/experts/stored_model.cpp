// SPDX-License-Identifier: Apache-2.0
#include "runtime/experts/stored_model.hpp"

#include <cmath>
#include <utility>

#include "comm/base/check.hpp"
#include "runtime/checkpoint/companion_files.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/save.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/parallel/micro_batch.hpp"
#include "runtime/tokenizer/tokenizer.hpp"
#include "runtime/train/resume.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

WorkerOptions options_of(const RunConfig& config) {
  return {.model = config.model,
          .parallel = {},
          .exchange = {.strategy = "flat"},
          .compute = config.compute,
          .with_grad = false};
}

}  // namespace

StoredModel::StoredModel(Communicator alone, const RunConfig& config)
    : config_(config), worker_(std::move(alone), options_of(config)), optimizer_(worker_.store(), config.train) {
  CADRE_ASSERT(worker_.world().size() == 1);
}

void StoredModel::load(const fs::path& checkpoint) {
  const bool has_moments = fs::exists(checkpoint / kManifestFile);
  manifest_ = load_checkpoint(checkpoint, worker_.store(), has_moments ? &optimizer_ : nullptr);
}

void StoredModel::values_changed() {
  for (Parameter* parameter : worker_.store().parameters()) ++parameter->version;
}

fs::path StoredModel::save(const fs::path& run_folder, const Manifest& origin) {
  const fs::path root = run_folder / "checkpoints";
  CADRE_CHECK(!fs::exists(root), fmt::format("{} exists already", root.string()), "name another folder with --out");
  std::error_code error;
  fs::create_directories(root, error);
  CADRE_CHECK(!error, fmt::format("cannot create {}: {}", root.string(), error.message()),
              "name a folder that can be written with --out");
  config_.out = run_folder.string();
  config_.checkpoint.resume = "auto";
  const TokenizerFiles tokenizer = read_tokenizer_files(config_.data.tokenizer);
  if (!tokenizer.empty()) config_.data.tokenizer = config_.out;
  const bool tokens_are_bytes = tokenizer.empty() && origin.files.contains(kTokenizerJsonFile);
  CheckpointState state = {.manifest = origin,
                           .model = config_.model,
                           .run_toml = to_toml(config_),
                           .more_files = companion_files(config_.model, tokenizer, tokens_are_bytes)};
  state.manifest.files.clear();
  state.manifest.cadre_version = CADRE_VERSION;
  state.manifest.world_size = 1;
  state.manifest.config_hash = config_hash(config_);
  write_text_file(run_folder / "run.toml", state.run_toml);
  for (const auto& [name, content] : tokenizer) {
    fs::create_directories((run_folder / name).parent_path());
    write_text_file(run_folder / name, content);
  }
  return save_checkpoint({worker_.world(), any_parameter, worker_.deadline_seconds()}, root, state, worker_.store(),
                         optimizer_, {.newest = 1});
}

void check_unnamed(const ModelConfig& model) {
  for (const char* key : {"dead_experts", "expert_conditions"}) {
    const std::string value = key_text(model, key);
    CADRE_CHECK(value.empty(), fmt::format("model.{} = {}, allowed: none", key, value),
                "it names experts whose ids change; remove it from config.json and set it anew afterwards");
  }
  CADRE_CHECK(model.expert_kinds == ExpertKinds::same || model.expert_kinds == ExpertKinds::mixture,
              fmt::format("model.expert_kinds = {}, allowed: same | mixture", key_text(model, "expert_kinds")),
              "what an expert is made of follows from its id, which would change");
}

namespace {

double dot(const float* a, const float* b, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

Task<void> forward_into(Model::Saved& saved, const Model& model, LaneContext& ctx, TokenBatch batch) {
  Task<double> pass = model.forward(ctx, batch, saved);
  co_await pass;
}

std::vector<double> similarities(const std::vector<float>& outputs, int num_experts) {
  const auto size = static_cast<int64_t>(outputs.size()) / num_experts;
  std::vector<double> products(static_cast<size_t>(num_experts) * num_experts);
  const auto at = [&](int a, int b) -> double& { return products[static_cast<size_t>(a * num_experts + b)]; };
  for (int a = 0; a < num_experts; ++a) {
    for (int b = a; b < num_experts; ++b) {
      at(a, b) = at(b, a) = dot(outputs.data() + a * size, outputs.data() + b * size, size);
    }
  }
  std::vector<double> cosines(products.size());
  for (int a = 0; a < num_experts; ++a) {
    for (int b = 0; b < num_experts; ++b) {
      const double norms = std::sqrt(at(a, a) * at(b, b));
      cosines[static_cast<size_t>(a * num_experts + b)] = norms == 0.0 ? 0.0 : at(a, b) / norms;
    }
  }
  return cosines;
}

double norm_of(MoeLayer& moe, int expert) {
  double squares = 0.0;
  moe.each_parameter_of_expert(expert, [&](const Parameter& parameter) {
    const auto* values = parameter.value.data<float>();
    squares += dot(values, values, parameter.value.numel());
  });
  return std::sqrt(squares);
}

}  // namespace

std::vector<float> run_expert(StoredModel& model, int layer, int expert, const std::vector<float>& rows) {
  Worker& worker = model.worker();
  const int64_t hidden = model.config().model.hidden_size;
  const auto num_rows = static_cast<int64_t>(rows.size()) / hidden;
  const ArenaScope scope(worker.arena());
  LaneContext ctx = worker.inference_context();
  const Tensor x(const_cast<float*>(rows.data()), DType::f32, {num_rows, hidden});
  MoeLayer& moe = worker.model().stage_with(layer)->block(layer).moe();
  const Tensor y = ctx.arena.take("experts", x.dtype(), {num_rows, hidden});
  moe.expert(expert).forward_into(ctx, x, y);
  ctx.kernels.synchronize();
  return {y.data<float>(), y.data<float>() + y.numel()};
}

std::vector<LayerSurvey> survey_experts(StoredModel& model, const BatchReader& reader, int64_t num_sequences) {
  Worker& worker = model.worker();
  MicroBatch probe(reader, 0, {0, num_sequences}, model.config().data.sequence_length);
  const auto labeller = make_task_labeller(model.config());
  probe.recognise_tasks(labeller ? &*labeller : nullptr);
  std::vector<LayerSurvey> surveys;
  {
    const ArenaScope scope(worker.arena());
    LaneContext ctx = worker.inference_context();
    ctx.tokens = probe.facts(static_cast<uint64_t>(model.config().seed));
    Model::Saved saved;
    Task<void> pass = forward_into(saved, worker.model(), ctx, probe.tokens());
    worker.run(pass);
    ctx.kernels.synchronize();
    for (const int layer : moe_layers_of(model.config().model)) {
      const MoeLayer::Saved& moe = saved.stages.front().blocks[static_cast<size_t>(layer)].moe;
      surveys.push_back({.layer = layer,
                         .load = moe.router.counts,
                         .rows = {moe.x.data<float>(), moe.x.data<float>() + moe.x.numel()}});
    }
  }
  for (LayerSurvey& survey : surveys) {
    MoeLayer& moe = worker.model().stage_with(survey.layer)->block(survey.layer).moe();
    for (int expert = 0; expert < survey.num_experts(); ++expert) {
      survey.norms.push_back(norm_of(moe, expert));
      const std::vector<float> outputs = run_expert(model, survey.layer, expert, survey.rows);
      survey.outputs.insert(survey.outputs.end(), outputs.begin(), outputs.end());
    }
    survey.similarity = similarities(survey.outputs, survey.num_experts());
  }
  return surveys;
}

}  // namespace cadre
