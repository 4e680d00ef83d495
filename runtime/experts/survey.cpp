// SPDX-License-Identifier: Apache-2.0
#include "runtime/experts/survey.hpp"

#include <cmath>

#include "runtime/train/micro_batch.hpp"

namespace cadre {
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
