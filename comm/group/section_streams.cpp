// SPDX-License-Identifier: Apache-2.0
#include "comm/group/section_streams.hpp"

#include <algorithm>
#include <string>
#include <utility>

namespace cadre {
namespace {

// Messages under way, however short they are.
constexpr size_t kMostMessages = 16;
// Ranks whose messages one test looks for: MPI may give the core away in each test that finds nothing.
constexpr size_t kReceiversTested = 2;

// A part of a stream that one message holds; none reaches into the next part.
template <class Byte>
struct StreamPiece {
  std::span<Byte> bytes;
  size_t section = 0;
};

// Cuts parts into pieces.
template <class Byte>
class Cursor {
 public:
  Cursor(std::vector<StreamPiece<Byte>> parts, size_t piece_bytes)
      : parts_(std::move(parts)), piece_bytes_(piece_bytes) {
    skip_empty();
  }

  bool at_end() const { return part_ == parts_.size(); }
  StreamPiece<Byte> piece() const {
    const StreamPiece<Byte>& part = parts_[part_];
    return {part.bytes.subspan(offset_, std::min(piece_bytes_, part.bytes.size() - offset_)), part.section};
  }
  void advance() {
    offset_ += piece().bytes.size();
    skip_empty();
  }

 private:
  void skip_empty() {
    while (!at_end() && offset_ == parts_[part_].bytes.size()) {
      ++part_;
      offset_ = 0;
    }
  }

  std::vector<StreamPiece<Byte>> parts_;
  size_t piece_bytes_;
  size_t part_ = 0;
  size_t offset_ = 0;
};

// Messages under way and their bytes.
struct Window {
  struct Message {
    Request request;
    size_t bytes;
    Buffer memory;  // of a copy, where it needs one
  };

  bool has_room(size_t most_bytes) const {
    return messages.empty() || (bytes < most_bytes && messages.size() < kMostMessages);
  }
  void add(Request request, size_t message_bytes, Buffer memory = {}) {
    request.hide();
    messages.push_back({std::move(request), message_bytes, std::move(memory)});
    bytes += message_bytes;
  }
  // In their order, up to one that is still under way.
  void drop_complete() {
    while (!messages.empty() && messages.front().request.test()) {
      bytes -= messages.front().bytes;
      messages.erase(messages.begin());
    }
  }

  std::vector<Message> messages = {};
  size_t bytes = 0;
};

struct Sender {
  int peer;
  Cursor<const std::byte> next;
  std::function<bool(size_t section)> is_ready;
};

struct Receiver {
  int peer;
  Cursor<std::byte> next;
  Window window = {};
};

// What comes from each rank is received independently of what this rank sends, so that every message ends at last.
class StreamsOperation : public PendingOperation {
 public:
  StreamsOperation(const Communicator& group, std::vector<Sender> senders, std::vector<Receiver> receivers,
                   Memory& memory, std::shared_ptr<const void> owner, const StreamOptions& options, int tag)
      : group_(group),
        senders_(std::move(senders)),
        receivers_(std::move(receivers)),
        memory_(memory),
        owner_(std::move(owner)),
        most_bytes_(options.pieces * options.piece_bytes),
        tag_(tag) {}

  bool test() override {
    for (size_t looks = std::min(kReceiversTested, receivers_.size()); looks > 0; --looks) {
      receive(receivers_[receiver_turn_++ % receivers_.size()]);
    }
    sent_.drop_complete();
    while (sent_.has_room(most_bytes_) && send_one()) {
    }
    std::erase_if(receivers_, [](const Receiver& one) { return one.next.at_end() && one.window.messages.empty(); });
    std::erase_if(senders_, [](const Sender& one) { return one.next.at_end(); });
    return sent_.messages.empty() && senders_.empty() && receivers_.empty();
  }

  std::string missing() const override {
    for (const Receiver& receiver : receivers_) {
      if (!receiver.window.messages.empty()) return receiver.window.messages.front().request.missing();
    }
    return sent_.messages.empty() ? "what this rank computes" : sent_.messages.front().request.missing();
  }

  // Each message is abandoned for itself.
  void abandon() noexcept override {
    sent_.messages.clear();
    receivers_.clear();
    senders_.clear();
  }
  bool outlives_job() const override { return false; }

 private:
  void receive(Receiver& receiver) const {
    receiver.window.drop_complete();
    while (!receiver.next.at_end() && receiver.window.has_room(most_bytes_)) {
      const std::span<std::byte> bytes = receiver.next.piece().bytes;
      receiver.window.add(group_.receive(bytes, owner_, receiver.peer, tag_), bytes.size());
      receiver.next.advance();
    }
  }

  // Of the streams that have a piece that is ready, the one whose turn it is.
  bool send_one() {
    for (size_t tried = 0; tried < senders_.size(); ++tried) {
      Sender& sender = senders_[sender_turn_++ % senders_.size()];
      if (sender.next.at_end() || !sender.is_ready(sender.next.piece().section)) continue;
      send(sender.next.piece().bytes, sender.peer);
      sender.next.advance();
      return true;
    }
    return false;
  }

  void send(std::span<const std::byte> bytes, int peer) {
    if (memory_.is_on_host()) return sent_.add(group_.send(bytes, owner_, peer, tag_), bytes.size());
    Buffer copy(bytes.size());
    memory_.read(copy.data(), bytes.data(), bytes.size());
    Request request = group_.send(copy.span(), copy.share(), peer, tag_);
    sent_.add(std::move(request), bytes.size(), std::move(copy));
  }

  const Communicator& group_;
  std::vector<Sender> senders_;
  std::vector<Receiver> receivers_;
  Memory& memory_;
  std::shared_ptr<const void> owner_;
  size_t most_bytes_;
  int tag_;
  size_t sender_turn_ = 0;
  size_t receiver_turn_ = 0;
  Window sent_;
};

}  // namespace

Request exchange_streams(const Communicator& group, std::vector<OutgoingStream> out, std::vector<IncomingStream> in,
                         Memory& memory, const std::shared_ptr<const void>& owner, const StreamOptions& options,
                         int tag) {
  std::vector<Sender> senders;
  std::vector<Receiver> receivers;
  int64_t sent = 0;
  for (OutgoingStream& stream : out) {
    std::vector<StreamPiece<const std::byte>> parts;
    for (const OutgoingStream::Part& part : stream.parts) {
      parts.push_back({part.bytes, part.section});
      sent += static_cast<int64_t>(part.bytes.size());
    }
    senders.push_back({stream.peer, {std::move(parts), options.piece_bytes}, std::move(stream.is_ready)});
  }
  for (const IncomingStream& stream : in) {
    std::vector<StreamPiece<std::byte>> parts;
    for (const std::span<std::byte> part : stream.parts) parts.push_back({part});
    receivers.push_back({stream.peer, {std::move(parts), options.piece_bytes}});
  }
  std::string what = fmt::format("streams to {} and from {} ranks on '{}' (rank {} of {})", senders.size(),
                                 receivers.size(), group.name(), group.rank(), group.size());
  return {
      group.job(), std::move(what),
      std::make_unique<StreamsOperation>(group, std::move(senders), std::move(receivers), memory, owner, options, tag),
      sent};
}

}  // namespace cadre
