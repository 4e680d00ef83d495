// SPDX-License-Identifier: Apache-2.0
#include "runtime/plan/machine.hpp"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "comm/base/check.hpp"
#include "comm/base/regular_file.hpp"

namespace cadre {
namespace {

constexpr char kMachineHint[] = "cadre plan cluster RUN.toml --out C.toml writes a whole file";

struct MachineSection {
  std::string name;
  std::vector<Field> fields;
};

std::vector<Field> fields_of_rate(ProductRate& rate) {
  return {{"forward", &rate.forward, more_than(0), "GFLOP/s of y = x W^T"},
          {"input_grad", &rate.input_grad, more_than(0), "GFLOP/s of dx = dy W"},
          {"weight_grad", &rate.weight_grad, more_than(0), "GFLOP/s of dW = dy^T x"}};
}

std::vector<Field> fields_of_link(LinkCost& link) {
  return {{"alpha_s", &link.alpha_s, at_least(0), "seconds of a message"},
          {"beta_s", &link.beta_s, at_least(0), "seconds of a byte"},
          {"burst_s", &link.burst_s, at_least(0), "seconds of sending that an idle link saves up"},
          {"contention", &link.contention, at_least(0), "work takes 1 + this times as long while the link is busy"}};
}

std::vector<MachineSection> sections_of_machine(Machine& m) {
  return {{"peak", {{"gflops", &m.peak, at_least(0), "GFLOP/s that MFU is a part of; 0: the largest rate below"}}},
          {"attention", fields_of_rate(m.attention)},
          {"router", fields_of_rate(m.router)},
          {"shared_experts", fields_of_rate(m.shared_experts)},
          {"dense", fields_of_rate(m.dense)},
          {"head", fields_of_rate(m.head)},
          {"rows",
           {{"embedding", &m.embedding, more_than(0), "GB/s of embedded rows, forward and backward"},
            {"dispatch", &m.dispatch, more_than(0), "GB/s of rows packed for experts"},
            {"combine", &m.combine, more_than(0), "GB/s of rows added at experts and at tokens"},
            {"combine_grad", &m.combine_grad, more_than(0), "GB/s of rows packed in backward"},
            {"dispatch_grad", &m.dispatch_grad, more_than(0), "GB/s of rows added in backward"},
            {"reduction", &m.reduction, more_than(0), "GB/s of gradients added to a sum"},
            {"gradient_norm", &m.gradient_norm, more_than(0), "GB/s of gradients read for their norm"},
            {"update", &m.update, more_than(0), "GB/s of parameters that the optimiser updates"},
            {"repack", &m.repack, more_than(0), "GB/s of weights that products copy after an update"}}},
          {"host", fields_of_link(m.host)},
          {"network", fields_of_link(m.network)}};
}

void read_machine_fields(const toml::table& table, const std::vector<Field>& fields, const std::string& where,
                         const std::string& section) {
  std::vector<std::string> names;
  for (const Field& field : fields) {
    names.push_back(field.name);
    const auto value = table[field.name].value<double>();
    CADRE_CHECK(value.has_value(), fmt::format("{}: {}.{} is missing or is no number", where, section, field.name),
                kMachineHint);
    assign(field, *value, fmt::format("{}: {}.", where, section));
  }
  for (const auto& [name, node] : table) {
    CADRE_CHECK(std::ranges::find(names, name.str()) != names.end(),
                fmt::format("{}:{}: unknown key {}.{}", where, node.source().begin.line, section, name.str()),
                nearest_name_hint(name.str(), names));
  }
}

// [[experts]], one a size.
std::vector<ExpertRate> read_expert_rates(const toml::table& table, const std::string& where) {
  const auto* list = table["experts"].as_array();
  CADRE_CHECK(list != nullptr && !list->empty(), fmt::format("{}: [[experts]] is missing", where), kMachineHint);
  std::vector<ExpertRate> rates;
  for (const toml::node& node : *list) {
    CADRE_CHECK(node.is_table(), fmt::format("{}: experts is no list of tables", where), kMachineHint);
    ExpertRate& rate = rates.emplace_back();
    std::vector<Field> fields = fields_of_rate(rate.rate);
    fields.push_back({"rows", &rate.rows, more_than(0), "rows of each expert"});
    read_machine_fields(*node.as_table(), fields, where, "experts");
  }
  std::ranges::sort(rates, {}, &ExpertRate::rows);
  return rates;
}

std::string toml_of_fields(const std::vector<Field>& fields) {
  std::string text;
  for (const Field& field : fields) {
    text += fmt::format("{} = {:.6g}  # {}\n", field.name, std::get<double>(value_of(field)), field.help);
  }
  return text;
}

double between_rates(double a, double b, double share) { return a + (b - a) * share; }

}  // namespace

ProductRate Machine::experts_with(double rows) const {
  CADRE_ASSERT(!experts.empty());
  const auto above = std::ranges::lower_bound(experts, rows, {}, &ExpertRate::rows);
  if (above == experts.begin()) return above->rate;
  if (above == experts.end()) return experts.back().rate;
  const ExpertRate& below = *(above - 1);
  const double share = (rows - below.rows) / (above->rows - below.rows);
  return {between_rates(below.rate.forward, above->rate.forward, share),
          between_rates(below.rate.input_grad, above->rate.input_grad, share),
          between_rates(below.rate.weight_grad, above->rate.weight_grad, share)};
}

double Machine::peak_gflops() const {
  if (peak > 0.0) return peak;
  std::vector<ProductRate> rates = {attention, router, shared_experts, dense, head};
  for (const ExpertRate& size : experts) rates.push_back(size.rate);
  double most = 0.0;
  for (const ProductRate& rate : rates) most = std::max({most, rate.forward, rate.input_grad, rate.weight_grad});
  return most;
}

Machine parse_machine(const std::string& text, const std::string& where) {
  Machine machine;
  try {
    const toml::table table = toml::parse(text, where);
    std::vector<std::string> names = {"experts"};
    for (const MachineSection& section : sections_of_machine(machine)) {
      names.push_back(section.name);
      const auto* inner = table[section.name].as_table();
      CADRE_CHECK(inner != nullptr, fmt::format("{}: section [{}] is missing", where, section.name), kMachineHint);
      read_machine_fields(*inner, section.fields, where, section.name);
    }
    machine.experts = read_expert_rates(table, where);
    for (const auto& [name, node] : table) {
      CADRE_CHECK(std::ranges::find(names, name.str()) != names.end(),
                  fmt::format("{}:{}: unknown section [{}]", where, node.source().begin.line, name.str()),
                  nearest_name_hint(name.str(), names));
    }
  } catch (const toml::parse_error& error) {
    throw Error(ErrorKind::input, fmt::format("{}:{}: {}", where, error.source().begin.line, error.description()),
                kMachineHint);
  }
  return machine;
}

Machine read_machine(const std::string& path) {
  expect_regular_file(path, kMachineHint);
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  CADRE_CHECK(file && !text.fail(), fmt::format("{}: cannot read this file", path), kMachineHint);
  return parse_machine(text.str(), path);
}

std::string to_toml(const Machine& machine) {
  Machine copy = machine;
  std::string text = "# What a rank does while all ranks of its host work; see cadre plan step --help.\n";
  for (const MachineSection& section : sections_of_machine(copy)) {
    text += fmt::format("\n[{}]\n{}", section.name, toml_of_fields(section.fields));
  }
  for (ExpertRate& size : copy.experts) {
    text += fmt::format("\n[[experts]]\nrows = {:.6g}  # of each expert\n{}", size.rows,
                        toml_of_fields(fields_of_rate(size.rate)));
  }
  return text;
}

}  // namespace cadre
