// SPDX-License-Identifier: Apache-2.0
// The layer with rows rounded on their way: with combine = slot_order still the same bits with every exchange and number
// of ranks, because rows that stay on their rank are rounded too; and within a bound of the layer in fp32 that follows
// from the format, element by element.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/moe_runs.hpp"
#include "tests/support/wire_bounds.hpp"

namespace cadre::moe_wire_test {
namespace {

using test::Cut;
using test::Floats;
using test::MoeCase;
using test::MoeResult;
using test::MoeRun;

constexpr int64_t kHidden = 140;  // a whole tile of fp8 and a part of one

constexpr WireFormats kWires[] = {
    {Wire::bf16, Wire::same}, {Wire::fp8, Wire::same}, {Wire::same, Wire::bf16},
    {Wire::bf16, Wire::bf16}, {Wire::fp8, Wire::bf16},
};

// relu is 1-Lipschitz, which the bound needs.
MoeCase case_of(WireFormats wire, CombineMode combine) {
  return {.name = "wire",
          .num_experts = 7,
          .top_k = 3,
          .cut = Cut::hole,
          .activation = Activation::relu,
          .hidden = kHidden,
          .back_end = test::BackEnd::reference,  // nothing but the wire may round here
          .combine = combine,
          .wire = wire};
}

std::string describe(WireFormats wire) {
  return fmt::format("dispatch {}, combine {}", name_of(wire.dispatch), name_of(wire.combine));
}

// Forward and backward in fp32, and how far each element of y may be off with rows rounded.
struct Fp32 {
  MoeResult result;
  std::vector<double> bound;
};

const Parameter& parameter_named(const MoeRun& run, const std::string& name) {
  for (const Parameter* parameter : run.parameters()) {
    if (parameter->name() == name) return *parameter;
  }
  throw Error(ErrorKind::internal, "no parameter " + name);
}

// matrix [rows, width] times values
template <class Term>
std::vector<double> product(const Tensor& matrix, const std::vector<double>& values, Term&& term) {
  std::vector<double> sums(static_cast<size_t>(matrix.dim(0)), 0.0);
  for (size_t i = 0; i < sums.size() * values.size(); ++i) {
    sums[i / values.size()] += term(double{matrix.data<float>()[i]}) * values[i % values.size()];
  }
  return sums;
}

// With d the error of x, E(x) = D relu(U x) is off by at most dE = |D| |U| d in each element, and its result, or a sum of
// weighted results, is rounded by at most 2^-8 of itself on the way back:
//   |dy| <= sum_k w_k (dE_k + r (|E_k| + dE_k)),   r = 2^-8 or 0,
// plus what fp32 rounds in either run: 10 u of the terms, for the dot products of 140 and the sums are in fp64.
Fp32 fp32_with_bound(WireFormats wire) {
  return test::alone(case_of({}, CombineMode::slot_order), [&](MoeRun& run) {
    Fp32 fp32;
    fp32.result = run.run();
    const Floats x = run.x();
    const double r = wire.combine == Wire::bf16 ? 0x1p-8 + test::kWireSlack : 0.0;
    const auto same = [](double factor) { return factor; };
    const auto magnitude = [](double factor) { return std::fabs(factor); };
    const Tensor& ids = run.saved().router.ids;
    for (int64_t t = 0; t < ids.dim(0); ++t) {
      const Floats row(x.begin() + t * kHidden, x.begin() + (t + 1) * kHidden);
      std::vector<double> error;
      for (size_t i = 0; i < row.size(); ++i) error.push_back(test::wire_bound(wire.dispatch, row, i));
      std::vector<double> bound(row.size(), 0.0);
      for (int64_t k = 0; k < ids.dim(1); ++k) {
        const std::string expert = fmt::format("mlp.experts.{}.", ids.data<int32_t>()[t * ids.dim(1) + k]);
        const Tensor& up = parameter_named(run, expert + "up_proj.weight").value;
        const Tensor& down = parameter_named(run, expert + "down_proj.weight").value;
        const double weight = run.saved().router.weights.data<float>()[t * ids.dim(1) + k];
        std::vector<double> inner = product(up, {row.begin(), row.end()}, same);
        for (double& value : inner) value = std::max(value, 0.0);
        const std::vector<double> out = product(down, inner, same);
        const std::vector<double> out_error = product(down, product(up, error, magnitude), magnitude);
        for (size_t i = 0; i < bound.size(); ++i) {
          const double term = out_error[i] + r * (std::fabs(out[i]) + out_error[i]);
          bound[i] += weight * (term + 10.0 * 0x1p-24 * (std::fabs(out[i]) + out_error[i]));
        }
      }
      // The shared expert is not rounded by the wire, but added in fp32.
      for (size_t i = 0; i < bound.size(); ++i) {
        const double y = fp32.result.y[static_cast<size_t>(t * kHidden) + i];
        fp32.bound.push_back(bound[i] + 10.0 * 0x1p-24 * std::fabs(y));
      }
    }
    return fp32;
  });
}

// [first, first + size) of this rank's tokens.
void expect_bound(const Floats& y, const Fp32& fp32, const MoeRun& run) {
  const auto first = static_cast<size_t>(run.slice().first * kHidden);
  for (size_t i = 0; i < y.size(); ++i) {
    ASSERT_LE(std::fabs(double{y[i]} - double{fp32.result.y[first + i]}), fp32.bound[first + i]) << "element " << i;
  }
}

void each_exchange(const MoeCase& test_case, const std::function<void(MoeRun&, Communicator&)>& check) {
  test::on_ranks(
      [&](Communicator& world) {
        for (const test::ExchangeVariant& variant : test::exchange_variants(world, test::rows_of(test_case))) {
          SCOPED_TRACE(variant.describe());
          MoeRun run(test_case, world, variant);
          check(run, world);
        }
      },
      {1, 2, 3, 4, 6});
}

TEST(MoeWire, slot_order_gives_the_same_bits_with_every_exchange_and_keeps_the_bound) {
  for (const WireFormats wire : kWires) {
    SCOPED_TRACE(describe(wire));
    const Fp32 fp32 = fp32_with_bound(wire);
    const MoeCase test_case = case_of(wire, CombineMode::slot_order);
    const MoeResult whole = test::single_rank(test_case);
    EXPECT_FALSE(test::same_bits(whole.y, fp32.result.y));    // the wire is not without effect
    EXPECT_FALSE(test::same_bits(whole.dx, fp32.result.dx));  // in either pass
    each_exchange(test_case, [&](MoeRun& run, Communicator& /*world*/) {
      for (int repeat = 0; repeat < 2; ++repeat) {
        const MoeResult result = run.run();
        EXPECT_TRUE(test::same_bits(result.y, test::part_of(whole.y, run, kHidden))) << "y";
        EXPECT_TRUE(test::same_bits(result.dx, test::part_of(whole.dx, run, kHidden))) << "dx";
        for (const auto& [name, grad] : result.expert_grads) {
          EXPECT_TRUE(test::same_bits(grad, whole.expert_grads.at(name))) << name;
        }
        expect_bound(result.y, fp32, run);
      }
    });
  }
}

// Rows that a device packs, later than it is called, are the same rows.
TEST(MoeWire, a_device_that_packs_gives_the_same_bits_with_every_exchange) {
  for (const WireFormats wire : kWires) {
    SCOPED_TRACE(describe(wire));
    MoeCase test_case = case_of(wire, CombineMode::slot_order);
    test_case.back_end = test::BackEnd::gpu_twin;
    const MoeResult whole = test::single_rank(test_case);
    each_exchange(test_case, [&](MoeRun& run, Communicator& /*world*/) {
      const MoeResult result = run.run();
      EXPECT_TRUE(test::same_bits(result.y, test::part_of(whole.y, run, kHidden))) << "y";
      EXPECT_TRUE(test::same_bits(result.dx, test::part_of(whole.dx, run, kHidden))) << "dx";
    });
  }
}

// Sums are rounded instead of slots, in another place with every exchange, but no more.
TEST(MoeWire, partial_sums_keep_the_bound_and_repeat_bit_by_bit) {
  for (const WireFormats wire : kWires) {
    SCOPED_TRACE(describe(wire));
    const Fp32 fp32 = fp32_with_bound(wire);
    const MoeCase test_case = case_of(wire, CombineMode::partial);
    each_exchange(test_case, [&](MoeRun& run, Communicator& world) {
      const MoeResult first = run.run();
      expect_bound(first.y, fp32, run);
      MoeRun again(test_case, world, run.variant());
      const MoeResult second = again.run();
      EXPECT_TRUE(test::same_bits(second.y, first.y));
      EXPECT_TRUE(test::same_bits(second.dx, first.dx));
    });
  }
}

// The bound is a worst case; what a run would notice is how far off all of it is. A value rounded to 4 significant bits
// (fp8) is off by at most 2^-4 of itself, and by 2^-4 / sqrt(3) in the mean square if errors are spread evenly. Those of
// many channels are independent, so the outputs are off by no more than that, relatively: the layer has no gain. bf16 in
// the same way, with 2^-8, for each time that rows are rounded.
TEST(MoeWire, the_error_of_all_outputs_together_is_that_of_one_rounding) {
  for (const WireFormats wire : kWires) {
    SCOPED_TRACE(describe(wire));
    const MoeResult fp32 = test::single_rank(case_of({}, CombineMode::slot_order));
    const MoeResult rounded = test::single_rank(case_of(wire, CombineMode::slot_order));
    double error = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < fp32.y.size(); ++i) {
      error += std::pow(double{rounded.y[i]} - double{fp32.y[i]}, 2.0);
      norm += std::pow(double{fp32.y[i]}, 2.0);
    }
    const auto of = [](Wire format) { return format == Wire::fp8 ? 0x1p-4 : format == Wire::bf16 ? 0x1p-8 : 0.0; };
    const double limit = (of(wire.dispatch) + of(wire.combine)) / std::sqrt(3.0);
    EXPECT_LE(std::sqrt(error / norm), limit);
    EXPECT_GE(std::sqrt(error / norm), limit / 10.0);  // rounded, and not much finer than the format
  }
}

}  // namespace
}  // namespace cadre::moe_wire_test
