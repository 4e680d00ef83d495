// SPDX-License-Identifier: Apache-2.0
// cadre export: the weights of a checkpoint in another element type, for this and other programs.
#include "runtime/checkpoint/export.hpp"

#include <fmt/format.h>

#include <memory>

#include "launch/checkpoint_argument.hpp"
#include "launch/command.hpp"

namespace cadre {
namespace {

struct ExportArguments {
  std::string checkpoint;
  std::string adapter;
  std::string out;
  std::string format = "bf16";
  std::string fp8_scale = "fp32";
  std::string mtp = "keep";
};

ExportFormat format_named(const std::string& name) {
  if (name == "fp8") return ExportFormat::fp8;
  return name == "bf16" ? ExportFormat::bf16 : ExportFormat::fp32;
}

void run_export(const ExportArguments& options, const Job& job) {
  if (job.rank() != 0) return;
  CADRE_CHECK(!options.out.empty(), "--out is missing", "name the new directory");
  const Fp8Scale scale = options.fp8_scale == "ue8m0" ? Fp8Scale::ue8m0 : Fp8Scale::fp32;
  const ModelFiles files = find_model(options.checkpoint, options.adapter);
  const ExportSummary summary =
      export_checkpoint(files.checkpoint, options.out, format_named(options.format), scale,
                        options.mtp == "drop" ? ExportMtp::drop : ExportMtp::keep, files.adapter);
  fmt::print("{}: {} tensors, {} of them in fp8, {:.1f} MiB\n", options.out, summary.tensors, summary.fp8_tensors,
             static_cast<double>(summary.bytes) / (1 << 20));
}

}  // namespace

Command export_command() {
  const auto options = std::make_shared<ExportArguments>();
  return {.name = "export",
          .summary = "writes the weights of a checkpoint as fp32, bf16 or fp8, without the optimiser",
          .arguments = {checkpoint_argument(options->checkpoint)},
          .options = {{"out", &options->out, any(), "new directory"},
                      {"format", &options->format, one_of({"fp32", "bf16", "fp8"}),
                       "format of the weights; fp8: projections as in DeepSeek-V3, the rest bf16"},
                      {"fp8-scale", &options->fp8_scale, one_of({"fp32", "ue8m0"}),
                       "format of fp8 scales; ue8m0: powers of two"},
                      adapter_option(options->adapter),
                      {"mtp", &options->mtp, one_of({"keep", "drop"}),
                       "MTP modules; drop: for programs that do not support them"}},
          .run = [options](const Job& job) { run_export(*options, job); }};
}

}  // namespace cadre
