// SPDX-License-Identifier: Apache-2.0
// Writes the page of the sample report, for tests that look at it in a browser. Usage: write_sample_page FILE [bare]
//   bare  without traces, and without what a report may lack
#include <cstdio>
#include <fstream>
#include <string_view>

#include "runtime/report/report_page.hpp"
#include "tests/support/sample_report.hpp"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fputs("usage: write_sample_page FILE [bare]\n", stderr);
    return 2;
  }
  nlohmann::json report = cadre::test::sample_report();
  std::vector<cadre::RankTrace> traces = cadre::test::sample_traces();
  if (argc > 2 && std::string_view(argv[2]) == "bare") {
    for (const char* key :
         {"phases", "layers", "ranks", "stragglers", "balance", "expert_load", "load_over_time", "notes"}) {
      report[key] = nlohmann::json::array();
    }
    report["bubble"] = report["without_overlap"] = report["steady"] = nullptr;
    traces.clear();
  }
  std::ofstream file(argv[1]);
  file << cadre::report_page(report, traces);
  return file.flush().good() ? 0 : 1;
}
