// SPDX-License-Identifier: Apache-2.0
// A shared object that extends Cadre: model.plugin. What it may define is in layers/router/plugin.hpp.
#pragma once

#include <string>

namespace cadre {

// Changes when a header does that layers/router/plugin.hpp includes.
inline constexpr int kPluginVersion = 1;

class Plugin {
 public:
  // Loads it; it stays to the end of the process. Throws ErrorKind::input where it cannot be loaded or is of another version.
  explicit Plugin(std::string path);

  // What it exports under that name; throws ErrorKind::input where there is none. `key` is what asks for it, as
  // "router = plugin".
  template <class Function>
  Function* function(const char* name, const char* key) const {
    return reinterpret_cast<Function*>(symbol(name, key));
  }

 private:
  void* symbol(const char* name, const char* key) const;

  std::string path_;
  void* handle_;
};

}  // namespace cadre
