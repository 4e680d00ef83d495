// SPDX-License-Identifier: Apache-2.0
#include "comm/base/plugin.hpp"

#include <dlfcn.h>

#include <filesystem>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr const char* kVersionFunction = "cadre_plugin_version";

std::string last_loader_error() {
  const char* text = dlerror();
  return text == nullptr ? "unknown error" : text;
}

}  // namespace

Plugin::Plugin(std::string path) : path_(std::move(path)), handle_(nullptr) {
  CADRE_CHECK(std::filesystem::exists(path_), fmt::format("model.plugin = {}: no such file", path_),
              "a shared object, as launch/examples/own_router.cpp makes one");
  // A name without a folder would be looked for elsewhere.
  handle_ = dlopen(std::filesystem::absolute(path_).c_str(), RTLD_NOW | RTLD_LOCAL);
  CADRE_CHECK(handle_ != nullptr, fmt::format("model.plugin = {}: {}", path_, last_loader_error()),
              "link it as launch/examples/CMakeLists.txt does");
  const int version = function<int()>(kVersionFunction, "model.plugin")();
  CADRE_CHECK(version == kPluginVersion,
              fmt::format("model.plugin = {} is for version {} of plugins, this Cadre has version {}", path_, version,
                          kPluginVersion),
              "build it against the headers of this Cadre");
}

void* Plugin::symbol(const char* name, const char* key) const {
  void* found = dlsym(handle_, name);
  CADRE_CHECK(found != nullptr, fmt::format("{}: {} exports no {}", key, path_, name),
              "define what layers/router/plugin.hpp declares, and CADRE_PLUGIN() once");
  return found;
}

}  // namespace cadre
