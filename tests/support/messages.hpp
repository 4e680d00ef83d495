// SPDX-License-Identifier: Apache-2.0
// For tests of refusals: the message of the Error that an action throws, and what must stand in it.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <initializer_list>
#include <string>

#include "comm/base/check.hpp"

namespace cadre::test {

// The message of the Error, which must carry a hint; "no error" when nothing is thrown.
inline std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_FALSE(error.hint().empty()) << error.what();
    return error.what();
  }
  return "no error";
}

inline void expect_message(const std::string& message, std::initializer_list<const char*> parts) {
  for (const char* part : parts) EXPECT_NE(message.find(part), std::string::npos) << part << " not in: " << message;
}

}  // namespace cadre::test
