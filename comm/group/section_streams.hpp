// SPDX-License-Identifier: Apache-2.0
// Arrays that go from ranks to ranks behind computation, in pieces of which few are under way, so that a small message waits for
// a piece and not for all. What goes to a rank is cut into sections, each sent as soon as it is ready.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/group/communicator.hpp"

namespace cadre {

// To one other rank.
struct OutgoingStream {
  struct Part {
    std::span<const std::byte> bytes;
    size_t section = 0;
  };

  int peer = 0;
  std::vector<Part> parts;  // in the order in which they travel: by section
  // Whether the parts of a section may be read; once they may they stay so, and do not change, until the operation is complete.
  std::function<bool(size_t section)> is_ready;
};

// From one other rank: as many parts as that sends, of the same sizes.
struct IncomingStream {
  int peer = 0;
  std::vector<std::span<std::byte>> parts;
};

struct StreamOptions {
  size_t piece_bytes = size_t{256} << 10;
  size_t pieces = 4;  // of this size, that a rank sends at once, and receives at once from each other rank
};

// A rank has at most one stream to each other and one from each other; ranks without any need not call it. `memory` is that of
// the parts that go out; those that come in lie on the host. `owner` keeps all parts. Streams of one group that are under way
// at once have different tags.
Request exchange_streams(const Communicator& group, std::vector<OutgoingStream> out, std::vector<IncomingStream> in,
                         Memory& memory, const std::shared_ptr<const void>& owner, const StreamOptions& options = {},
                         int tag = 0);

}  // namespace cadre
