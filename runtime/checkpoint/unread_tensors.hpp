// SPDX-License-Identifier: Apache-2.0
// Tensors that lie in the files of a checkpoint and that its config.json has no place for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "layers/model/config.hpp"

namespace cadre {

// 3 of "model.layers.3.mlp.gate.weight"; nothing where the name is of no layer.
std::optional<int64_t> layer_of(std::string_view name);

// How many MTP modules of the model have weights in the files: num_nextn_predict_layers, or 0 where they have none. Many
// a config.json speaks of modules that the files do not hold.
int64_t stored_mtp_modules(const std::filesystem::path& checkpoint, const ModelConfig& config);

// The names of tensors that the model does not use, a layer that it does not have as "model.layers.3.*". MTP modules and
// inv_freq, which others compute too, are not among them. Throws where one belongs to what is read, as the bias of a
// projection that has none here: the model would be another one. Not collective; every rank finds the same.
std::vector<std::string> unread_tensors(const std::filesystem::path& checkpoint, const ModelConfig& config);

}  // namespace cadre
