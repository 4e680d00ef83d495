// SPDX-License-Identifier: Apache-2.0
#include "runtime/report/report_page.hpp"

#include <fmt/format.h>

#include "comm/base/check.hpp"
#include "runtime/report/report.hpp"
#include "runtime/report/report_page_parts.hpp"

namespace cadre {
namespace page {
namespace {

constexpr Column kPhases[] = {
    {"phase", "Phase", Unit::text},
    {"class", "Class", Unit::text},
    {"min_ms", "Min", Unit::ms},
    {"mean_ms", "Mean", Unit::ms},
    {"max_ms", "Max", Unit::ms},
    {"percent_of_step", "Of step", Unit::percent, true},
    {"bytes", "Sent", Unit::bytes},
    {"message_gigabytes_per_second", "Rate of a message", Unit::gigabytes_per_second},
    {"exposed_ms", "Exposed", Unit::ms},
    {"hidden_percent", "Hidden", Unit::percent, true},
};

constexpr Column kLayers[] = {
    {"layer", "Layer", Unit::count},
    {"compute_ms", "Compute", Unit::ms},
    {"communication_ms", "Communi­cation", Unit::ms},
    {"exposed_ms", "Exposed", Unit::ms},
    {"hidden_percent", "Hidden", Unit::percent, true},
    {"tokens_max_over_mean", "Tokens, max / mean", Unit::ratio},
};

constexpr Column kRanks[] = {
    {"rank", "Rank", Unit::count},
    {"host", "Host", Unit::text},
    {"step_ms", "Step", Unit::ms},
    {"compute_ms", "Compute", Unit::ms},
    {"compute_percent_of_step", "Compute of step", Unit::percent, true},
    {"communication_ms", "Communi­cation", Unit::ms},
    {"hidden_percent", "Hidden", Unit::percent, true},
    {"skew_ms", "Skew", Unit::ms},
    {"transfer_ms", "Transfer", Unit::ms},
    {"control_ms", "Control", Unit::ms},
    {"idle_ms", "Idle", Unit::ms},
};

constexpr Column kStragglers[] = {
    {"rank", "Rank", Unit::count},
    {"host", "Host", Unit::text},
    {"times_last", "Times last", Unit::count},
    {"share_percent", "Of all operations", Unit::percent, true},
    {"mean_late_us", "Late, mean", Unit::us},
};

constexpr Column kMoves[] = {
    {"step", "After step", Unit::count},
    {"moved", "Experts moved", Unit::count},
    {"refused", "Refused", Unit::count},
    {"bytes", "Bytes", Unit::bytes},
    {"stall_ms", "Stall", Unit::ms},
    {"load_before", "Ranks, max / mean", Unit::ratio},
    {"load_after", "Next step", Unit::ratio},
    {"gain_ms", "Gain of a step, expected", Unit::ms},
    {"got_ms", "Got", Unit::ms},
};

std::string moves_table(const Json& moves) {
  if (moves.empty()) return "";
  return "<p>Moves of experts between ranks (parallel.rebalance) in the whole run. Refused are moves that would have "
         "cost "
         "more than they save.</p>\n" +
         table("Moves of experts", kMoves, moves);
}

std::string table_section(const char* id, const char* title, const char* about, std::span<const Column> columns,
                          const Json& rows, const char* absent) {
  if (rows.empty()) return section(id, title, note(absent));
  return section(id, title, fmt::format("<p>{}</p>\n", about) + table(title, columns, rows));
}

std::string fact(const char* name, const std::string& value) {
  return value.empty() ? "" : fmt::format("<div><dt>{}</dt><dd>{}</dd></div>", name, escaped(value));
}

std::string facts(const Json& run) {
  std::string text = "<dl class=\"facts\">";
  text += fact("Run", text_at(run, "name")) + fact("Date", text_at(run, "date")) + fact("Model", text_at(run, "model"));
  text += fact("Cadre", text_at(run, "cadre_version")) + fact("MPI", text_at(run, "mpi"));
  const std::string cores = text_at(run, "cores");
  text += fact("Ranks", fmt::format("{} on {} hosts{}", text_at(run, "ranks"), text_at(run, "hosts"),
                                    cores.empty() ? "" : fmt::format(", {} cores", cores)));
  text += fact("Grid", fmt::format("{} pipeline × {} data, experts over {}", text_at(run, "pipeline"),
                                   text_at(run, "data"), text_at(run, "expert")));
  text +=
      fact("Schedule", fmt::format("{}, {} micro-batches", text_at(run, "schedule"), text_at(run, "micro_batches")));
  text += fact("Exchange", text_at(run, "exchange")) + fact("BLAS threads", text_at(run, "threads"));
  text += fact("Seed", text_at(run, "seed")) + fact("Configuration", text_at(run, "config_hash"));
  text += fact("Clocks agree within", figure(number_at(run, "clock_error_us"), Unit::us));
  text += "</dl>\n";
  if (const auto lost = number_at(run, "lost_events"); lost.value_or(0) > 0) {
    text += fmt::format(
        "<p class=\"warning\" id=\"lost-events\">{:.0f} events were lost, because the trace buffers of "
        "some ranks were too small: steps may be missing here.</p>\n",
        *lost);
  }
  return text;
}

std::string big(const char* name, const std::string& value, const std::string& below) {
  return fmt::format("<div><dt>{}</dt><dd>{}<small>{}</small></dd></div>", name, value, below);
}

// "1.083 ×", with "≈" where it is estimated.
std::string speed_up(const Json& h) {
  const std::string ratio = figure(number_at(h, "speed_up"), Unit::factor);
  return text_at(h, "serial") == "estimated" ? "≈ " + ratio : ratio;
}

std::string serial_text(const Json& h) {
  const std::string kind = text_at(h, "serial");
  if (kind == "measured") return "Serial: the same steps with their passes run one op after the other. ";
  if (kind == "estimated") return "Serial, estimated: compute + communication in flight, one after the other. ";
  return "";
}

bool has_communication(const Json& report) {
  return number_at(object_at(report, "run"), "ranks") != 1.0 &&
         number_at(object_at(report, "headline"), "communication_ms") != 0.0;
}

std::string headline(const Json& report) {
  const Json& h = object_at(report, "headline");
  const Json& run = object_at(report, "run");
  const auto ms = [&](const char* key) { return figure(number_at(h, key), Unit::ms); };
  const auto percent = [&](const char* key) { return figure(number_at(h, key), Unit::percent); };
  std::string text = "<dl class=\"big\">" + big("Step", ms("step_ms"), "mean over ranks and steps");
  if (has_communication(report)) {
    text += big("Speed-up", speed_up(h), fmt::format("over serial, {}", ms("serial_step_ms"))) +
            big("Exposed", ms("exposed_ms"), fmt::format("{} of the step", percent("exposed_percent_of_step"))) +
            big("Transfer", ms("transfer_ms"), fmt::format("of the exposed time; skew {}", ms("skew_ms")));
  } else {
    text += big("Communication", "none", "nothing travels between ranks");
  }
  text += big("Tokens/s", figure(number_at(h, "tokens_per_second"), Unit::count), "of all ranks") +
          big("Loss", figure(number_at(h, "loss"), Unit::loss), "mean over these steps") + "</dl>\n";
  if (object_at(run, "shares_cores") == true) {
    text += fmt::format("<p class=\"warning\" id=\"shared-cores\">{} ranks on {} cores: ranks take turns.</p>\n",
                        escaped(text_at(run, "ranks")), escaped(text_at(run, "cores")));
  }
  if (!has_communication(report)) {
    return text + fmt::format("<p id=\"definition\">Of a step of {}, a rank computes for {}; it is idle for {}.</p>\n",
                              ms("step_ms"), ms("compute_ms"), ms("idle_ms"));
  }
  return text +
         fmt::format(
             "<p id=\"definition\">{}Of a step of {}, a rank computes for {}; communication is in flight for {}, "
             "of which {} ({}) lie behind computation (hidden) and {} do not (exposed). Of these, skew is the "
             "time until the last rank posted its part, of which a faster network saves nothing; transfer is "
             "the rest. For {} it waits for counts and metrics (control); {} are idle: no computation, no "
             "communication "
             "and no such wait.</p>\n",
             serial_text(h), ms("step_ms"), ms("compute_ms"), ms("communication_ms"), ms("hidden_ms"),
             percent("hidden_percent"), ms("exposed_ms"), ms("control_ms"), ms("idle_ms"));
}

std::string steady_state(const Json& report) {
  const Json& steady = object_at(report, "steady");
  if (!steady.is_object()) return "";
  const auto ms = [&](const char* key) { return figure(number_at(steady, key), Unit::ms); };
  return fmt::format(
      "<p id=\"steady\">Steady state, the ops of a step that overlap a forward with a backward pass: {} of the step, "
      "computation {}, dispatch and combine {}, of which {} lie behind computation.</p>\n",
      ms("time_ms"), ms("compute_ms"), ms("exchange_ms"),
      figure(number_at(steady, "exchange_hidden_percent"), Unit::percent));
}

std::string advice(const Json& report) {
  std::string items;
  for (const Json& one : array_at(report, "notes")) {
    if (one.is_string()) items += fmt::format("<li>{}</li>\n", escaped(one.get<std::string>()));
  }
  return items.empty() ? "" : fmt::format("<ul id=\"notes\" aria-label=\"Notes\">\n{}</ul>\n", items);
}

// Rows of less than this lie folded.
constexpr double kFoldedPercent = 0.1;

std::string phase_tables(const Json& phases) {
  Json shown = Json::array();
  Json folded = Json::array();
  for (const Json& phase : phases) {
    const bool is_small = number_at(phase, "percent_of_step").value_or(kFoldedPercent) < kFoldedPercent;
    (is_small ? folded : shown).push_back(phase);
  }
  std::string text = table("Phases", kPhases, shown);
  if (folded.empty()) return text;
  return text + fmt::format("<details id=\"small-phases\"><summary>{} below {} % of the step</summary>\n{}</details>\n",
                            folded.size(), kFoldedPercent, table("Small phases", kPhases, folded));
}

std::string efficiency(const Json& report) {
  const Json& e = object_at(report, "efficiency");
  if (!e.is_object()) return "";
  return fmt::format(
      "<p id=\"efficiency\">Efficiency: load balance {} (mean / max of compute), communication {} (largest "
      "compute / step), parallel {} (their product).</p>\n",
      figure(number_at(e, "load_balance"), Unit::ratio), figure(number_at(e, "communication"), Unit::ratio),
      figure(number_at(e, "parallel"), Unit::ratio));
}

}  // namespace
}  // namespace page

std::string report_page(const nlohmann::json& report, const std::vector<RankTrace>& traces) {
  using namespace page;
  CADRE_CHECK(text_at(report, "schema") == "cadre.report" && number_at(report, "version") == kReportVersion,
              fmt::format("an overlap report has schema cadre.report and version {}, this has '{}' and '{}'",
                          kReportVersion, text_at(report, "schema"), text_at(report, "version")),
              "write it with cadre report of this version");
  const Json& run = object_at(report, "run");
  const std::string steps = fmt::format("steps {} to {}", text_at(run, "first_step"), text_at(run, "last_step"));

  std::string text = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n";
  text += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n";
  text += "<meta name=\"color-scheme\" content=\"light dark\"/>\n<link rel=\"icon\" href=\"data:,\"/>\n";
  const std::string name = text_at(run, "name");
  const std::string what = name.empty() ? steps : fmt::format("{}, {}", name, steps);
  text +=
      fmt::format("<title>Overlap, {}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n", escaped(what), kStyle);
  text += fmt::format("<header><h1>Overlap report <small>{}</small></h1>\n{}</header>\n", escaped(what), facts(run));
  text += section("headline", "Whole step", headline(report) + steady_state(report) + advice(report));
  text += section("without-overlap", "With and without overlap", overlap_bars(report));
  text += section("timeline", "Timeline of a step", timeline(traces));
  const Json& phases = array_at(report, "phases");
  text += section(
      "phases", "Phases",
      phases.empty() ? note("The traces hold no phases.")
                     : "<p>A step of a rank: communication by time in flight, computation by activity; least, mean and "
                       "most over ranks. Requests in flight together count each, so shares of a step may add up to "
                       "more. The rate is that of a message from the last post to its arrival.</p>\n" +
                           phase_tables(phases));
  text += table_section("layers", "Layers", "A step of a rank, mean over ranks.", kLayers, array_at(report, "layers"),
                        "The traces hold no layers.");
  const Json& ranks = array_at(report, "ranks");
  text += section(
      "ranks", "Ranks",
      ranks.empty() ? note("The report holds no ranks.")
                    : "<p>Exposed communication is skew, while another rank had not yet posted its part, and transfer "
                      "otherwise.</p>\n" +
                          efficiency(report) + table("Ranks", kRanks, ranks));
  text +=
      table_section("stragglers", "Stragglers",
                    "Who was the last to post its part of an operation, and by how much after the mean of the others.",
                    kStragglers, array_at(report, "stragglers"), "No operation had a last rank.");
  text += section("bubble", "Pipeline bubble", bubble_bars(report));
  text += section("balance", "Balance over time", balance_lines(report) + moves_table(array_at(report, "moves")));
  text += section("expert-load", "Load of experts", load_map(report));
  text += section("load-over-time", "Load of experts over time", load_over_time(report));
  text += "</main>\n<div id=\"tip\" role=\"status\" hidden=\"hidden\"></div>\n";
  text += "<output id=\"self-check\" hidden=\"hidden\"></output>\n";
  return text + fmt::format("<script>\n//<![CDATA[\n{}//]]>\n</script>\n</body>\n</html>\n", kScript);
}

}  // namespace cadre
