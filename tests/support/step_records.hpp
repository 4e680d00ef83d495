// SPDX-License-Identifier: Apache-2.0
// A step as a run logs it, and what a log printed and wrote.
#pragma once

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "runtime/observe/run_log.hpp"

namespace cadre::test {

// Layers 1 and 3 together have the loads 1 2 3 2 4 0 2 2: mean 2, variance 10/8.
inline StepRecord example_step(int64_t step = 12) {
  StepRecord record;
  record.step = step;
  record.steps = 300;
  record.learning_rate = 3e-3;
  record.grad_norm = 0.8125;
  record.save_ms = 3.5;
  record.skipped_steps = 2;
  record.step_ms = 112.4;
  record.tokens_so_far = 4096 * step;
  record.moe_layers = {1, 3};
  GlobalStep& global = record.global;
  global.loss = 2.1034;
  global.balance_loss = 0.5;
  global.num_tokens = 4096;
  global.slots_planned = global.slots_received = 16;
  global.slots_dropped = 4;
  global.crossing_bytes = 1000;
  global.between_hosts_bytes = 300;
  global.expert_counts = {{1, 2, 3, 2}, {4, 0, 2, 2}};
  global.layer_dropped = {0, 4};
  global.layer_device_slots = {{4, 4}, {6, 2}};
  global.device_slots = {10, 6};
  global.device_bytes = {700, 300};
  global.device_step_ms = {100.0, 110.0};
  global.device_wait_ms = {10.0, 4.7};
  return record;
}

// What the action prints; an Error fails the test.
template <class Action>
std::string printed_by(Action&& action) {
  testing::internal::CaptureStdout();
  EXPECT_NO_THROW(action());
  return testing::internal::GetCapturedStdout();
}

inline std::vector<nlohmann::ordered_json> json_lines(const std::filesystem::path& path) {
  std::vector<nlohmann::ordered_json> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::ordered_json::parse(line));
  return lines;
}

}  // namespace cadre::test
