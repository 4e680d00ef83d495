// SPDX-License-Identifier: Apache-2.0
// Which library multiplies on the CPU: a value that is measured once, agreed by all ranks and kept with a run, because libraries
// differ in speed by CPU and shape, and in bits.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace cadre {

enum class GemmLibrary : uint8_t { openblas, onednn };

// How the operands of c = op(a) op(b) lie in memory: y = x W^T is nt, dx = dy W is nn, dW = dy^T x is tn.
enum class GemmLayout : uint8_t { nt, nn, tn };

struct ProductChoice {
  // By tokens of a product: up to 4, 32, 128, and more.
  static constexpr std::array<int64_t, 3> kClassEnds = {4, 32, 128};
  static constexpr size_t kNumClasses = kClassEnds.size() + 1;
  using Libraries = std::array<GemmLibrary, kNumClasses>;

  std::array<Libraries, 3> libraries = {};        // [GemmLayout]
  std::array<bool, kNumClasses> transposes = {};  // y = x W^T reads a transposed copy of W, as nn

  GemmLibrary library(GemmLayout layout, int64_t tokens) const;
  bool transposed(int64_t tokens) const;
  // Whether weights that train need the copy.
  bool keeps_copies() const;

  // "nt=bboo nn=oooo tn=oooo copy=0111": b is OpenBLAS, o oneDNN, a letter for each class.
  std::string text() const;
  // The inverse; also "openblas", "onednn" and "onednn-packed" (with copies). Throws Error, with `key` as the place.
  static ProductChoice parse(std::string_view text, std::string_view key);

  bool operator==(const ProductChoice&) const = default;
};

bool has_onednn();  // in this build
// Whether this CPU multiplies bf16 by oneDNN; else products in bf16 are fp32 products of rounded operands.
bool multiplies_bf16();

// Measured on this thread in some 0.1 to 0.5 s. Without oneDNN: OpenBLAS, with copies where they are faster.
ProductChoice measure_products();

// What a measurement is valid for: the CPU's name, the libraries' versions and the instruction sets that they use.
std::string product_machine();

}  // namespace cadre
