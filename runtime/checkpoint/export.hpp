// SPDX-License-Identifier: Apache-2.0
// Writes the weights of a checkpoint once more in another element type, as a Hugging Face directory of its own: config.json
// that says so, files and index of the same names, and whatever small files lie beside. The state of the optimiser stays
// behind: what comes out is to be used, not trained further.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "comm/wire/fp8.hpp"

namespace cadre {

// fp8: matrices that DeepSeek-V3 has in fp8 (is_fp8_weight) as F8_E4M3 with `_scale_inv`, all else bf16.
enum class ExportFormat { fp32, bf16, fp8 };

struct ExportSummary {
  int64_t tensors = 0;      // scales not counted
  int64_t fp8_tensors = 0;  // of them
  uint64_t bytes = 0;       // of all tensors and scales
};

// Whether the files of DeepSeek-V3 hold this weight in fp8: the projections of attention and of feed-forward networks;
// not embedding, head, gates, norms, or eh_proj.
bool is_fp8_weight(const std::string& name, size_t num_dims);

// Whether the MTP modules, the layers behind the last one, come along. Programs that know no such layers need a model without.
enum class ExportMtp { keep, drop };

// `out` must not exist, or be empty; it is whole once its config.json is there. `scale` is for fp8. What the
// directory `adapter` holds, if given, is merged into the weights first.
ExportSummary export_checkpoint(const std::filesystem::path& checkpoint, const std::filesystem::path& out,
                                ExportFormat format, Fp8Scale scale, ExportMtp mtp = ExportMtp::keep,
                                const std::filesystem::path& adapter = {});

}  // namespace cadre
