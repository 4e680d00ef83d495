// SPDX-License-Identifier: Apache-2.0
#include "comm/base/dtype.hpp"

#include "comm/base/check.hpp"

namespace cadre {

size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return 4;
    case DType::f64: return 8;
    case DType::bf16: return 2;
    case DType::fp8: return 1;
    case DType::i32: return 4;
    case DType::i64: return 8;
    case DType::u8: return 1;
  }
  throw Error(ErrorKind::internal, "unknown dtype");
}

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "f32";
    case DType::f64: return "f64";
    case DType::bf16: return "bf16";
    case DType::fp8: return "fp8";
    case DType::i32: return "i32";
    case DType::i64: return "i64";
    case DType::u8: return "u8";
  }
  throw Error(ErrorKind::internal, "unknown dtype");
}

}  // namespace cadre
