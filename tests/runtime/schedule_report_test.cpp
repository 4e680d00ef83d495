// SPDX-License-Identifier: Apache-2.0
// What the text, the JSON and the chart of a schedule say, read back.
#include <boost/property_tree/ptree.hpp>
#include <boost/property_tree/xml_parser.hpp>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <map>
#include <set>
#include <sstream>
#include <string>

#include "runtime/schedule/make_program.hpp"
#include "runtime/schedule/report.hpp"

namespace cadre::schedule_report_test {
namespace {

namespace tree = boost::property_tree;

ScheduleReport report_of(const char* schedule, int ranks, int micro_batches, const Cost& cost = Cost()) {
  return report_schedule(make_program(schedule, ranks, micro_batches), cost);
}

void expect_lines(const std::string& text, const std::vector<std::string>& lines) {
  for (const std::string& line : lines) EXPECT_NE(("\n" + text).find("\n" + line + "\n"), std::string::npos) << line;
}

TEST(ScheduleReport, TextHoldsMeasuredIdleBesideTheFormula) {
  const std::string text =
      report_text(report_of("dualpipe", 8, 20, {.backward = 2.2, .backward_input = 1.2, .overlapped = 2.6}));
  expect_lines(text, {"dualpipe: 8 ranks, 8 stages, 20 micro-batches", "makespan       62.2",
                      "idle           3.6 to 4.8; by rank 3.6 4.2 4.8 4.8 4.8 4.8 4.2 3.6",
                      "by formula     5.4 = (R/2-1)(F&B+B-3W)", "live forwards  at most 9 on every rank",
                      "waiting W      at most 1 to 4; by rank 1 2 3 4 4 3 2 1"});
  EXPECT_EQ(text.find("note:"), std::string::npos);
  expect_lines(report_text(report_of("dualpipe", 3, 6)),
               {"zb1p: 3 ranks, 3 stages, 6 micro-batches",
                "note: dualpipe needs an even number of ranks, there are 3 ranks and 6 micro-batches: zb1p instead"});
}

TEST(ScheduleReport, JsonHoldsEveryOpWithItsTime) {
  const nlohmann::json json = report_json(report_of("dualpipe", 2, 4));
  EXPECT_EQ(json["schema"], "cadre.schedule/1");
  EXPECT_EQ(json["makespan"], 12.0);
  EXPECT_EQ(json["idle"], (std::vector<double>{0, 0}));
  EXPECT_EQ(json["cost"]["FB"], 3.0);
  EXPECT_EQ(json["routes"], (std::vector<std::vector<int>>{{0, 1}, {1, 0}}));
  ASSERT_EQ(json["lists"].size(), 2U);
  double busy = 0;
  std::map<std::pair<int, std::string>, int> messages;  // by tag and direction
  for (const auto& list : json["lists"]) {
    for (const auto& op : list) {
      EXPECT_LE(op["start"].get<double>(), op["end"].get<double>());
      if (op.contains("tag")) {
        ++messages[{op["tag"].get<int>(), op["kind"].get<std::string>()}];
      } else {
        busy += op["end"].get<double>() - op["start"].get<double>();
      }
    }
  }
  EXPECT_EQ(busy, 24.0);
  // 4 micro-batches over one border, there and back; each has two ends.
  EXPECT_EQ(messages.size(), 16U);
  for (const auto& [message, count] : messages) EXPECT_EQ(count, 1);
}

struct Drawing {
  int num_bars = 0;
  double bar_width = 0;                     // in all, gaps between bars included
  std::set<std::pair<double, double>> ops;  // top and height of the bars of each op together
  std::vector<std::string> titles;
};

Drawing read_svg(const std::string& svg) {
  EXPECT_EQ(svg.find("&B"), std::string::npos) << "an & that is not escaped, which this reader forgives";
  std::istringstream in(svg);
  tree::ptree document;
  tree::read_xml(in, document);  // throws on text that is not XML
  Drawing drawing;
  for (const auto& [name, element] : document.get_child("svg")) {
    if (name != "g") continue;
    drawing.titles.push_back(element.get<std::string>("title"));
    double top = 0;
    double bottom = 0;
    for (const auto& [part, shape] : element) {
      if (part != "rect") continue;
      ++drawing.num_bars;
      drawing.bar_width += shape.get<double>("<xmlattr>.width") + 1;
      const auto y = shape.get<double>("<xmlattr>.y");
      if (bottom == 0) top = bottom = y;
      EXPECT_EQ(y, bottom) << drawing.titles.back();
      bottom += shape.get<double>("<xmlattr>.height");
    }
    drawing.ops.insert({top, bottom - top});
  }
  return drawing;
}

TEST(ScheduleReport, ChartDrawsEveryComputeOp) {
  const ScheduleReport report = report_of("dualpipe", 4, 8);
  const Drawing drawing = read_svg(report_svg(report));
  size_t num_ops = 0;
  int num_bars = 0;
  double busy = 0;  // an overlapped op is two bars
  for (const OpList& list : report.program.ops) {
    for (const Op& op : list) {
      if (is_message(op)) continue;
      const int bars = op.kind == OpKind::overlapped ? 2 : 1;
      ++num_ops;
      num_bars += bars;
      busy += bars * cost_of(report.cost, op);
    }
  }
  EXPECT_EQ(drawing.titles.size(), num_ops);
  EXPECT_EQ(drawing.num_bars, num_bars);
  EXPECT_EQ(drawing.ops.size(), 4U) << "every op fills its row";
  EXPECT_EQ(drawing.titles.front(), "Fa0: 0 to 1");
  EXPECT_NE(std::ranges::find(drawing.titles, "{Fb2&Ba0}: 8 to 11"), drawing.titles.end());
  // 32 pixels a unit, the widest there is; widths are written to 0.01.
  EXPECT_NEAR(drawing.bar_width, 32 * busy, 0.01 * num_bars);
}

TEST(ScheduleReport, ChartTakesAnyCostAndSize) {
  for (const double scale : {1e-3, 1.0, 1e4}) {
    const Cost cost = {scale, 2 * scale, scale, scale, 2.4 * scale};
    for (const char* schedule : {"1f1b", "zb1p", "dualpipe", "dualpipev"}) {
      EXPECT_EQ(read_svg(report_svg(report_of(schedule, 6, 24, cost))).titles.size(),
                read_svg(report_svg(report_of(schedule, 6, 24))).titles.size());
    }
  }
}

}  // namespace
}  // namespace cadre::schedule_report_test
