// SPDX-License-Identifier: Apache-2.0
// In what two configurations differ, for a run that goes on with another one.
#pragma once

#include <string>
#include <vector>

#include "runtime/config/run_config.hpp"

namespace cadre {

struct KeyChange {
  std::string key;  // "train.batch"
  std::string before;
  std::string now;

  std::string text() const { return key + " = " + now + ", was " + before; }
};

// Every key whose value differs, in the order of the table, then what [from_step.N] sections say. Left out are keys that
// only say where a run writes and how it shows itself: out, recover, [checkpoint], [trace], [log].
std::vector<KeyChange> changed_keys(const RunConfig& before, const RunConfig& now);

// Whether the key decides what a run of given length learns: not how it is spread over ranks, nor how often it evaluates.
bool decides_result(const std::string& key);

}  // namespace cadre
