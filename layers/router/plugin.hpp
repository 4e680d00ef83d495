// SPDX-License-Identifier: Apache-2.0
// The interface of plugins: an own router or an own exchange in a shared object, which model.plugin = PATH loads. Installed as
// <cadre/plugin.hpp>; launch/examples/own_router.cpp is one. A plugin has CADRE_PLUGIN() once and defines one or both of the
// functions below; the caller owns what they return.
//
//   router = plugin               calls cadre_make_selector, once for each router, for experts from scores (select.hpp)
//   exchange.strategy = plugin    calls cadre_make_exchange, collective over setup.group (exchange.hpp)
//
// The interface is C++: plugin and program need the same version of Cadre, which CADRE_PLUGIN() lets the program check, and
// compilers with one C++ ABI.
#pragma once

#include "comm/base/plugin.hpp"
#include "comm/exchange/exchange.hpp"
#include "layers/router/select.hpp"

#define CADRE_PLUGIN_EXPORT extern "C" __attribute__((visibility("default")))
#define CADRE_PLUGIN() \
  CADRE_PLUGIN_EXPORT int cadre_plugin_version() { return ::cadre::kPluginVersion; }

CADRE_PLUGIN_EXPORT int cadre_plugin_version();
CADRE_PLUGIN_EXPORT cadre::Selector* cadre_make_selector(const cadre::SelectOptions& options);
CADRE_PLUGIN_EXPORT cadre::Exchange* cadre_make_exchange(const cadre::ExchangeSetup& setup);
