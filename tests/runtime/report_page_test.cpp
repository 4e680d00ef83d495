// SPDX-License-Identifier: Apache-2.0
// What the page of a report says, read back from its markup; how it looks is a matter for launch/report_page.
#include "runtime/report/report_page.hpp"

#include <boost/property_tree/ptree.hpp>
#include <boost/property_tree/xml_parser.hpp>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <map>
#include <set>
#include <sstream>
#include <string>

#include "tests/support/files.hpp"
#include "tests/support/sample_report.hpp"

namespace cadre::report_page_test {
namespace {

namespace tree = boost::property_tree;
using nlohmann::json;

using Elements = std::function<void(const std::string& name, const tree::ptree& element)>;

void visit(const tree::ptree& node, const Elements& action) {
  for (const auto& [name, child] : node) {
    if (name.starts_with("<")) continue;  // attributes and comments
    action(name, child);
    visit(child, action);
  }
}

std::string attribute(const tree::ptree& element, const std::string& name) {
  return element.get("<xmlattr>." + name, "");
}

tree::ptree parsed(const std::string& page) {
  std::istringstream in(page);
  tree::ptree document;
  tree::read_xml(in, document);  // throws on text that is not XML, as tags that do not match
  return document;
}

std::string all_text(const tree::ptree& node) {
  std::string text = node.data();
  for (const auto& [name, child] : node) {
    if (name != "<xmlattr>") text += " " + all_text(child);
  }
  return text;
}

std::map<std::string, tree::ptree> sections_of(const tree::ptree& document) {
  std::map<std::string, tree::ptree> sections;
  visit(document, [&](const std::string& name, const tree::ptree& element) {
    if (name == "section") sections.emplace(attribute(element, "id"), element);
  });
  return sections;
}

struct Drawn {
  std::map<std::string, int> bars;  // by the first of their classes
  std::map<std::string, int> of_rank;
  std::set<std::string> phases;
  double compute_width = 0;  // of rank 0
};

Drawn drawn_in(const std::string& page) {
  Drawn drawn;
  visit(sections_of(parsed(page)).at("timeline"), [&](const std::string& name, const tree::ptree& element) {
    if (name != "rect" || attribute(element, "class") == "ground") return;
    const std::string style = attribute(element, "class");
    ++drawn.bars[style.substr(0, style.find(' '))];
    ++drawn.of_rank[attribute(element, "data-rank")];
    drawn.phases.insert(attribute(element, "data-phase"));
    const double x = std::stod(attribute(element, "x")), width = std::stod(attribute(element, "width"));
    EXPECT_GE(x, 0);
    EXPECT_GT(width, 0);
    EXPECT_LE(x + width, 1000 * (1 + 1e-4)) << "the step is 1000 wide, and widths have five digits";
    if (style.starts_with("compute") && attribute(element, "data-rank") == "0") drawn.compute_width += width;
  });
  return drawn;
}

TracedEvent event_of(TraceKind kind, const char* phase, int64_t begin_ns, int64_t end_ns, int64_t step = 1) {
  return {kind, phase, step, -1, -1, begin_ns, end_ns, 0};
}

TEST(ReportPage, IsWellFormedAndNeedsNothingElse) {
  const std::string page = report_page(test::sample_report(), test::sample_traces());
  EXPECT_TRUE(page.starts_with("<!DOCTYPE html>\n"));
  const tree::ptree document = parsed(page);
  std::vector<std::string> ids;
  std::set<std::string> different;
  visit(document, [&](const std::string& name, const tree::ptree& element) {
    for (const char* key : {"src", "srcset", "action"}) EXPECT_EQ(attribute(element, key), "") << name;
    EXPECT_TRUE(name != "link" || attribute(element, "href") == "data:,");
    EXPECT_TRUE(name != "svg" || attribute(element, "class") == "bars" || attribute(element, "aria-label") != "");
    const std::string id = attribute(element, "id");
    EXPECT_TRUE(id.empty() || different.insert(id).second) << id;
    if (name == "section") ids.push_back(attribute(element, "id"));
  });
  EXPECT_EQ(ids, (std::vector<std::string>{"headline", "without-overlap", "timeline", "phases", "layers", "ranks",
                                           "stragglers", "bubble", "balance", "expert-load", "load-over-time"}));
  for (const char* reach : {"url(", "@import", "fetch(", "XMLHttpRequest", "innerHTML"}) {
    EXPECT_EQ(page.find(reach), std::string::npos) << reach;
  }
  EXPECT_EQ(page, report_page(test::sample_report(), test::sample_traces()));
}

TEST(ReportPage, EscapesWhatComesFromOutside) {
  const std::string hostile = "</style></script>'\"<i>&amp;";
  json report = test::sample_report();
  for (const char* key :
       {"mpi", "schedule", "exchange", "config_hash", "cadre_version", "name", "model", "date", "cores"}) {
    report["run"][key] = hostile;
  }
  report["headline"]["serial"] = report["notes"][0] = hostile;
  report["load_over_time"][0]["layer"] = report["load_over_time"][0]["first_steps"][0] = hostile;
  for (json& phase : report["phases"]) phase["phase"] = phase["class"] = hostile;
  report["bubble"]["formula"] = hostile;
  report["expert_load"][0]["layer"] = hostile;
  report["run"]["first_step"] = hostile;
  std::vector<RankTrace> traces = test::sample_traces();
  for (TracedEvent& event : traces[0].events) {
    if (event.kind != TraceKind::step) event.phase = hostile;
  }
  const std::string page = report_page(report, traces);
  EXPECT_EQ(page.find("<b>\""), std::string::npos);
  EXPECT_EQ(page.find("<i>"), std::string::npos);
  EXPECT_EQ(page.find("</style></script>"), std::string::npos);
  EXPECT_NE(page.find("rank 3 on &lt;b&gt;&quot;&amp;</title>"), std::string::npos);
  int num_hosts = 0;
  visit(parsed(page), [&](const std::string& name, const tree::ptree& element) {
    if (name == "td" && element.data() == test::kHostileHost) ++num_hosts;
  });
  EXPECT_EQ(num_hosts, 4) << "ranks 2 and 3 in the tables of ranks and of stragglers";
}

TEST(ReportPage, SectionsHoldTheirNumbers) {
  std::map<std::string, std::string> text;
  const auto sections = sections_of(parsed(report_page(test::sample_report(), test::sample_traces())));
  for (const auto& [id, section] : sections) text[id] = all_text(section);
  const auto expect = [&](const char* id, const std::vector<std::string>& numbers) {
    for (const std::string& number : numbers)
      EXPECT_NE(text[id].find(number), std::string::npos) << id << ": " << number;
  };
  expect("headline", {"48.12 ms", "1.397 ×", "over serial, 67.25 ms", "3.500 ms", "7.3 % of the step", "2.250 ms",
                      "skew 1.250 ms", "21278", "3.4200", "88.4 %", "1.125 ms", "4 ranks on 2 cores"});
  expect("headline", {"Serial: the same steps with their passes run one op after the other", "Steady state", "95.1 %",
                      "set <b>parallel.schedule</b>"});
  expect("without-overlap", {"1.397 ×", "67.25 ms, of which 22.50 ms exposed", "91.2 % with overlap, 1.5 % without"});
  expect("timeline", {"Step 12 of the run", "the median of 3", "node01.clu…"});
  expect("phases", {"gradient reduction", "33.6 MB", "13.42"});  // 33554432 bytes in 2.5 ms are 13.42 GB/s
  expect("layers", {"1.50", "89.8", "–"});
  expect("ranks", {"0.97", "0.89", "48.15", "0.500"});
  expect("stragglers", {"120", "48.0", "421.5"});
  expect("bubble", {"5.250 ms", "4.500 ms", "4.125 ms = (R/2-1)(F&B+B-3W)"});
  expect("load-over-time",
         {"Layer 1", "step 0", "step 38", "expert 15", "from step 38 on, expert 5: 0.00 of the mean"});
  expect("balance", {"Expert CV", "Device CV", "MaxVio", "step 0", "step 39"});
  expect("expert-load", {"layer 1, expert 5: 0.00 of the mean, 0 slots", "2600 slots"});
  EXPECT_EQ(text["balance"].find("Drop rate"), std::string::npos) << "nothing was dropped";
}

TEST(ReportPage, NamesTheRun) {
  const std::string page = report_page(test::sample_report(), test::sample_traces());
  EXPECT_NE(page.find("<title>Overlap, sample, steps 10 to 12</title>"), std::string::npos);
  for (const char* fact : {"<dd>sample</dd>", "<dd>2026-11-30T12:00:00Z</dd>",
                           "<dd>deepseek_v3: 4 layers, hidden 512, 16 experts, top-4</dd>"}) {
    EXPECT_NE(page.find(fact), std::string::npos) << fact;
  }
}

TEST(ReportPage, OneRankHasNoCommunication) {
  json report = test::sample_report();
  report["run"]["ranks"] = 1;
  const std::string headline = all_text(sections_of(parsed(report_page(report, {}))).at("headline"));
  EXPECT_NE(headline.find("nothing travels between ranks"), std::string::npos);
  for (const char* word : {"Speed-up", "Exposed", "skew"}) EXPECT_EQ(headline.find(word), std::string::npos) << word;
  report["run"]["ranks"] = 4;
  report["headline"]["serial"] = "estimated";
  const std::string estimated = all_text(sections_of(parsed(report_page(report, {}))).at("headline"));
  EXPECT_NE(estimated.find("≈ 1.397 ×"), std::string::npos);
  EXPECT_NE(estimated.find("compute + communication in flight, one after the other"), std::string::npos);
}

// The phases of a table of the section, and of those folded away.
TEST(ReportPage, ExchangesComeFirstAndSmallPhasesAreFolded) {
  const auto section = sections_of(parsed(report_page(test::sample_report(), {}))).at("phases");
  std::vector<std::string> shown, folded;
  const auto first_cells = [](const tree::ptree& node, std::vector<std::string>& cells) {
    visit(node, [&](const std::string& name, const tree::ptree& element) {
      if (name == "tr" && element.count("td") > 0) cells.push_back(element.find("td")->second.data());
    });
  };
  first_cells(section.get_child("div"), shown);
  first_cells(section.get_child("details"), folded);
  EXPECT_EQ(shown, (std::vector<std::string>{"dispatch gradient", "combine", "dispatch", "gradient reduction",
                                             "experts gradient", "experts", "experts weights", "attention", "optimizer",
                                             "router"}));
  EXPECT_EQ(folded, (std::vector<std::string>{"expert counts", "metrics handling"}));
  EXPECT_EQ(section.get<std::string>("details.summary"), "2 below 0.1 % of the step");
}

// The largest load of layer 1 is 4 of 5 experts' 8 slots: 2.5 times the mean. Colours: 0 none, 4 the mean, 8 the largest.
TEST(ReportPage, LoadIsColouredUpToTheLargest) {
  json report = test::sample_report();
  report["expert_load"] = json::array({{{"layer", 1}, {"counts", {4, 0, 1, 2, 1}}}});
  const tree::ptree document = parsed(report_page(report, {}));
  std::vector<std::string> colours;
  visit(sections_of(document).at("expert-load"), [&](const std::string& name, const tree::ptree& element) {
    if (name == "g") colours.push_back(attribute(element, "class"));
  });
  EXPECT_EQ(colours, (std::vector<std::string>{"load8", "load0", "load3", "load5", "load3"}))
      << "2.5, 0, 0.625, 1.25, 0.625 of the mean";
  EXPECT_NE(all_text(sections_of(document).at("expert-load")).find("2.5"), std::string::npos);
}

TEST(ReportPage, TimelineHoldsTheEventsOfTheMedianStep) {
  const std::vector<RankTrace> traces = test::sample_traces();
  const Drawn drawn = drawn_in(report_page(test::sample_report(), traces));
  std::map<TraceKind, int> expected;
  for (const RankTrace& trace : traces) {
    // Activities follow each other without gaps, and the step that ran serially comes after the one that did not.
    const auto step = std::ranges::find_if(
        trace.events, [](const TracedEvent& event) { return event.kind == TraceKind::step && event.step == 12; });
    ASSERT_EQ(step->phase, "step");
    for (const TracedEvent& event : trace.events) {
      if (event.step == 12 && event.kind != TraceKind::step && event.begin_ns < step->end_ns) ++expected[event.kind];
    }
  }
  ASSERT_GT(expected[TraceKind::wait], 10);
  EXPECT_EQ(drawn.bars.at("compute"), expected[TraceKind::compute]);
  EXPECT_EQ(drawn.bars.at("wait"), expected[TraceKind::wait]);
  EXPECT_EQ(drawn.bars.at("flight"), expected[TraceKind::flight]);
  EXPECT_EQ(drawn.of_rank.size(), 4U);
  for (const char* phase : {"experts weights", "dispatch gradient", "optimizer"})
    EXPECT_TRUE(drawn.phases.contains(phase));
}

// Two ranks, the second begins 1 ms later; the step is [0, 4] ms, so that 1 ms is 250 wide.
TEST(ReportPage, ClocksWaitsAndFlightsLieWhereTheyBelong) {
  RankTrace one;
  one.rank = 1;
  one.events = {event_of(TraceKind::step, "step without overlap", -9'000'000, -2'000'000),
                event_of(TraceKind::compute, "data", -500'000, 0),
                event_of(TraceKind::compute, "experts", 0, 1'000'000),
                event_of(TraceKind::flight, "dispatch", -250'000, 1'000'000),
                event_of(TraceKind::flight, "combine", 500'000, 1'500'000),
                event_of(TraceKind::flight, "dispatch gradient", 1'000'000, 2'000'000),
                event_of(TraceKind::wait, "dispatch", 1'000'000, 3'000'000),
                event_of(TraceKind::step, "step", 0, 3'000'000)};
  RankTrace two;
  two.rank = 0;
  two.events = {event_of(TraceKind::compute, "attention gradient", 1'000'000, 4'000'000),
                event_of(TraceKind::step, "step", 1'000'000, 4'000'000)};
  std::map<std::string, tree::ptree> bars;  // by rank, class and phase
  std::vector<std::string> order;
  visit(sections_of(parsed(report_page(test::sample_report(), {one, two}))).at("timeline"),
        [&](const std::string& name, const tree::ptree& element) {
          if (name != "rect" || attribute(element, "class") == "ground") return;
          order.push_back(attribute(element, "data-rank") + " " + attribute(element, "class") + " " +
                          attribute(element, "data-phase"));
          bars[order.back()] = element;
        });
  ASSERT_EQ(order, (std::vector<std::string>{"0 compute attention back attention gradient", "1 compute experts experts",
                                             "1 flight dispatch dispatch", "1 flight combine combine",
                                             "1 flight dispatch back dispatch gradient", "1 wait dispatch"}));
  const auto expect_at = [&](size_t i, const char* x, const char* width) {
    EXPECT_EQ(attribute(bars[order[i]], "x"), x) << order[i];
    EXPECT_EQ(attribute(bars[order[i]], "width"), width) << order[i];
  };
  expect_at(0, "250", "750");
  expect_at(1, "0", "250");
  expect_at(2, "0", "250");  // only what of it lies in the step
  expect_at(3, "125", "250");
  expect_at(4, "250", "250");
  expect_at(5, "250", "500");
  const auto y = [&](size_t i) { return std::stod(attribute(bars[order[i]], "y")); };
  EXPECT_LT(y(0), y(1));
  EXPECT_LT(y(1), y(5));
  EXPECT_LT(y(5), y(2));
  EXPECT_LT(y(2), y(3)) << "requests in flight together lie in different rows";
  EXPECT_EQ(y(2), y(4)) << "a row is used again when its request is done";
}

TEST(ReportPage, SaysWhatTheTimelineLeavesOut) {
  EXPECT_EQ(report_page(test::sample_report(), test::sample_traces()).find("timeline-left-out"), std::string::npos);
  RankTrace trace;
  for (int i = 0; i < 9000; ++i) {
    trace.events.push_back(event_of(TraceKind::compute, "experts", 1000 * i, 1000 * (i + 1) - (i % 3 == 0 ? 500 : 0)));
  }
  trace.events.push_back(event_of(TraceKind::step, "step", 0, 9'000'000));
  std::vector<RankTrace> traces(5, trace);
  for (int rank = 0; rank < 5; ++rank) traces[static_cast<size_t>(rank)].rank = rank;
  const std::string page = report_page(test::sample_report(), traces);
  EXPECT_EQ(drawn_in(page).bars.at("compute"), 18000);
  EXPECT_NE(page.find("Ranks 2 to 4 are left out: at most 20000 bars are drawn."), std::string::npos);

  // One rank with 27000 activities, 9000 of them of half the length: 7000 of those go.
  RankTrace large = trace;
  for (int i = 9000; i < 27000; ++i) {
    large.events.push_back(event_of(TraceKind::compute, "experts", 1000 * i, 1000 * (i + 1) - (i % 3 == 0 ? 500 : 0)));
  }
  std::ranges::find(large.events, TraceKind::step, &TracedEvent::kind)->end_ns = 27'000'000;
  const std::string large_page = report_page(test::sample_report(), {large});
  const Drawn drawn = drawn_in(large_page);
  EXPECT_EQ(drawn.bars.at("compute"), 20000);
  EXPECT_NE(large_page.find("The 7000 shortest of 27000 activities and requests are left out."), std::string::npos);
  // 18000 whole ones, and 2000 that would be too thin to see; widths have five digits.
  EXPECT_NEAR(drawn.compute_width, 18000 * 1000 / 27000.0 + 2000 * 0.02, 1e-4 * 1000);

  RankTrace busy;
  for (int i = 0; i < 9; ++i) busy.events.push_back(event_of(TraceKind::flight, "dispatch", i, 1000));
  busy.events.push_back(event_of(TraceKind::step, "step", 0, 1000));
  EXPECT_NE(report_page(test::sample_report(), {busy}).find("3 requests lie over others in the last of 6 rows."),
            std::string::npos);
}

TEST(ReportPage, SaysInALineWhatIsAbsent) {
  json report = test::sample_report();
  EXPECT_EQ(report_page(report, {}).find("lost-events"), std::string::npos);
  report["run"]["lost_events"] = 12;
  EXPECT_NE(report_page(report, {}).find("12 events were lost"), std::string::npos);
  for (const char* key : {"phases", "layers", "ranks", "stragglers", "balance", "expert_load", "bubble",
                          "without_overlap", "efficiency", "load_over_time", "notes", "steady"}) {
    report.erase(key);
  }
  report["headline"] = {{"step_ms", std::numeric_limits<double>::quiet_NaN()}, {"idle_ms", "4"}};
  const std::string page = report_page(report, {});
  const auto sections = sections_of(parsed(page));
  EXPECT_EQ(sections.size(), 11U);
  for (const auto& [id, section] : sections) {
    int num_notes = 0;
    visit(section, [&](const std::string& name, const tree::ptree& element) {
      EXPECT_TRUE(name != "svg" && name != "table" && name != "ul") << id << " holds an empty " << name;
      if (attribute(element, "class") == "note") ++num_notes;
    });
    EXPECT_EQ(num_notes, id == "headline" ? 0 : 1) << id;
  }
  const std::string headline = all_text(sections.at("headline"));
  EXPECT_NE(headline.find("–"), std::string::npos);
  EXPECT_EQ(headline.find("nan"), std::string::npos);

  // Traces without a step that all ranks have.
  std::vector<RankTrace> traces = test::sample_traces();
  std::erase_if(traces[2].events, [](const TracedEvent& event) { return event.kind == TraceKind::step; });
  EXPECT_NE(report_page(report, traces).find("No step is whole in the traces of all ranks."), std::string::npos);
}

TEST(ReportPage, RefusesWhatIsNoReport) {
  const std::vector<json> strangers = {json(),
                                       json::array(),
                                       {{"schema", "cadre.report"}, {"version", 1}},
                                       {{"schema", "cadre.schedule/1"}, {"version", 2}}};
  for (const json& stranger : strangers) {
    const std::string error = test::error_of([&] { report_page(stranger, {}); });
    EXPECT_NE(error.find("schema cadre.report and version 2"), std::string::npos) << error;
  }
}

}  // namespace
}  // namespace cadre::report_page_test
