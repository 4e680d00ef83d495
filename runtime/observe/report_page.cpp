// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/report_page.hpp"

#include <fmt/format.h>

#include "comm/base/check.hpp"
#include "runtime/observe/report_page_parts.hpp"

namespace cadre {
namespace page {
namespace {

constexpr Column kPhases[] = {
    {"phase", "Phase", Unit::text},
    {"class", "Class", Unit::text},
    {"min_ms", "Min", Unit::ms},
    {"mean_ms", "Mean", Unit::ms},
    {"max_ms", "Max", Unit::ms},
    {"variation_percent", "Variation", Unit::percent},
    {"percent_of_step", "Of step", Unit::percent, true},
    {"bytes", "Sent", Unit::bytes},
    {"gigabytes_per_second", "Rate", Unit::gigabytes_per_second},
    {"exposed_ms", "Exposed", Unit::ms},
    {"hidden_percent", "Hidden", Unit::percent, true},
};

constexpr Column kLayers[] = {
    {"layer", "Layer", Unit::count},
    {"compute_ms", "Compute", Unit::ms},
    {"communication_ms", "Communication", Unit::ms},
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
    {"communication_ms", "Communication", Unit::ms},
    {"hidden_percent", "Hidden", Unit::percent, true},
    {"skew_ms", "Skew", Unit::ms},
    {"transfer_ms", "Transfer", Unit::ms},
    {"idle_ms", "Idle", Unit::ms},
};

constexpr Column kStragglers[] = {
    {"rank", "Rank", Unit::count},
    {"host", "Host", Unit::text},
    {"times_last", "Times last", Unit::count},
    {"share_percent", "Of all operations", Unit::percent, true},
    {"mean_late_us", "Late, mean", Unit::us},
};

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
  text += fact("Cadre", text_at(run, "cadre_version")) + fact("MPI", text_at(run, "mpi"));
  text += fact("Ranks", fmt::format("{} on {} hosts", text_at(run, "ranks"), text_at(run, "hosts")));
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

std::string headline(const Json& h) {
  const auto ms = [&](const char* key) { return figure(number_at(h, key), Unit::ms); };
  const auto percent = [&](const char* key) { return figure(number_at(h, key), Unit::percent); };
  return "<dl class=\"big\">" + big("Step", ms("step_ms"), "mean over ranks and steps") +
         big("Hidden", percent("hidden_percent"), fmt::format("of exchanges {}", percent("exchange_hidden_percent"))) +
         big("Exposed", ms("exposed_ms"), fmt::format("{} of the step", percent("exposed_percent_of_step"))) +
         big("Idle", ms("idle_ms"), "neither of the two") + "</dl>\n" +
         fmt::format(
             "<p id=\"definition\">Of a step of {}, a rank computes for {}; requests are in flight for {}, of which "
             "{} lie behind computation (hidden) and {} do not (exposed: what a faster network could save at "
             "most); {} are neither computation nor communication (idle).</p>\n",
             ms("step_ms"), ms("compute_ms"), ms("communication_ms"), ms("hidden_ms"), ms("exposed_ms"), ms("idle_ms"));
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
  CADRE_CHECK(text_at(report, "schema") == "cadre.report" && number_at(report, "version") == 1.0,
              fmt::format("an overlap report has schema cadre.report and version 1, this has '{}' and '{}'",
                          text_at(report, "schema"), text_at(report, "version")),
              "write it with cadre report of this version");
  const Json& run = object_at(report, "run");
  const std::string steps = fmt::format("steps {} to {}", text_at(run, "first_step"), text_at(run, "last_step"));

  std::string text = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n";
  text += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n";
  text += "<meta name=\"color-scheme\" content=\"light dark\"/>\n<link rel=\"icon\" href=\"data:,\"/>\n";
  text +=
      fmt::format("<title>Overlap, {}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n", escaped(steps), kStyle);
  text += fmt::format("<header><h1>Overlap report <small>{}</small></h1>\n{}</header>\n", escaped(steps), facts(run));
  text += section("headline", "Overlap", headline(object_at(report, "headline")));
  text += section("without-overlap", "With and without overlap", overlap_bars(report));
  text += section("timeline", "Timeline of a step", timeline(traces));
  text +=
      table_section("phases", "Phases",
                    "A step of a rank: computation by activity, communication by time in flight; least, mean and most "
                    "over ranks. Requests in flight together count each, so shares of a step may add up to more.",
                    kPhases, array_at(report, "phases"), "The traces hold no phases.");
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
  text += section("balance", "Balance over time", balance_lines(report));
  text += section("expert-load", "Load of experts", load_map(report));
  text += "</main>\n<div id=\"tip\" role=\"status\" hidden=\"hidden\"></div>\n";
  text += "<output id=\"self-check\" hidden=\"hidden\"></output>\n";
  return text + fmt::format("<script>\n//<![CDATA[\n{}//]]>\n</script>\n</body>\n</html>\n", kScript);
}

}  // namespace cadre
