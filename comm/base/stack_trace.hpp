// SPDX-License-Identifier: Apache-2.0
// Where the program was when something happened that should not.
#pragma once

#include <string>

namespace cadre {

// The functions that the calling thread is in, innermost first, one a line. Slow: symbols are looked up.
std::string stack_trace();

// Keeps the stack of the calling thread for the error with this text; a later one takes its place. Quick.
void note_stack(const std::string& text);
// What was kept for it, as stack_trace(); empty if nothing was.
std::string noted_stack(const std::string& text);

}  // namespace cadre
