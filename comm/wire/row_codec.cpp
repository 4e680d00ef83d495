// SPDX-License-Identifier: Apache-2.0
#include "comm/wire/row_codec.hpp"

namespace cadre {
namespace {

class HostCodec final : public RowCodec {
 public:
  void encode(const RowFormat& format, const Elements& rows, int64_t count, std::byte* wire) const override {
    for (int64_t i = 0; i < count; ++i, wire += format.wire_bytes()) encode_row(format, rows.at(i), wire);
  }
  void decode(const RowFormat& format, const Elements& wire, int64_t count, std::byte* values) const override {
    for (int64_t i = 0; i < count; ++i, values += format.row_bytes()) decode_row(format, wire.at(i), values);
  }
  Memory& memory() const override { return host_memory(); }
  Request done() const override { return {}; }
};

}  // namespace

const RowCodec& host_codec() {
  static const HostCodec codec;
  return codec;
}

}  // namespace cadre
