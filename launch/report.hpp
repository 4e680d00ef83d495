// SPDX-License-Identifier: Apache-2.0
// The report of a traced run, for the commands that show one.
#pragma once

#include <string>

namespace cadre {

// Prints it, and writes RUN_DIR/report.json and RUN_DIR/report.html. The traces of all ranks must be there.
void show_report(const std::string& run_dir);

}  // namespace cadre
