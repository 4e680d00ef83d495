// SPDX-License-Identifier: Apache-2.0
// Schema of the file: launch/schemas/best.schema.json.
#include "runtime/train/best_evaluation.hpp"

#include <nlohmann/json.hpp>

#include <array>
#include <cmath>
#include <fstream>
#include <utility>

#include "comm/job/wait.hpp"
#include "runtime/checkpoint/file.hpp"

namespace cadre {
namespace {

// Step and loss; zeros where there is no such file, or one that is damaged.
std::array<double, 2> read_best(const std::filesystem::path& file) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(file, none)) return {0.0, 0.0};
  std::ifstream stream(file);
  const auto content = nlohmann::json::parse(stream, nullptr, /*allow_exceptions=*/false);
  if (!content.is_object()) return {0.0, 0.0};
  const auto number = [&](const char* key) {
    return content.contains(key) && content[key].is_number() ? content[key].get<double>() : 0.0;
  };
  return {number("step"), number("validation_loss")};
}

}  // namespace

BestEvaluation::BestEvaluation(const Communicator& world, std::filesystem::path folder, int64_t steps_done,
                               int64_t patience, int64_t eval_every)
    : folder_(std::move(folder)), patience_(patience), eval_every_(eval_every) {
  if (patience == 0) return;
  const std::array<double, 2> mine =
      world.rank() == 0 && steps_done > 0 ? read_best(folder_ / kBestFile) : std::array<double, 2>{0.0, 0.0};
  const auto found = wait(world.all_reduce(mine, ReduceOp::sum));
  const auto step = static_cast<int64_t>(found[0]);
  if (step <= 0 || step > steps_done || !std::isfinite(found[1])) return;
  step_ = step;
  loss_ = found[1];
}

bool BestEvaluation::add(int64_t step, double loss) {
  if (!std::isfinite(loss) || (step_ > 0 && step_ != step && loss >= loss_)) return false;
  step_ = step;
  loss_ = loss;
  return true;
}

void BestEvaluation::write() const {
  const nlohmann::ordered_json content = {{"step", step_}, {"validation_loss", loss_}};
  write_text_file(folder_ / kBestFile, content.dump() + "\n");
}

bool BestEvaluation::is_over(int64_t step) const {
  return patience_ > 0 && step_ > 0 && step - step_ >= patience_ * eval_every_;
}

}  // namespace cadre
