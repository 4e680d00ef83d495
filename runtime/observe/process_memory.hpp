// SPDX-License-Identifier: Apache-2.0
// Memory of this process as the kernel counts it. Ranks that are threads share it.
#pragma once

#include <cstddef>

namespace cadre {

size_t resident_bytes();
size_t unshared_bytes();  // of the resident ones, those of no file: what no other process can share
size_t peak_resident_bytes();

}  // namespace cadre
