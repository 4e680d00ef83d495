// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/gather_results.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstring>
#include <map>
#include <span>
#include <string_view>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr int kResultTag = 0;
constexpr size_t kResultBytes = size_t{256} << 20;  // MPI counts are int

size_t bytes_of(DType dtype, const std::vector<int64_t>& shape) {
  size_t bytes = size_of(dtype);
  for (const int64_t extent : shape) bytes *= static_cast<size_t>(extent);
  return bytes;
}

// What rank 0 must know to receive the pieces, in their order.
std::string describe_pieces(const std::vector<ResultPiece>& pieces) {
  nlohmann::json list = nlohmann::json::array();
  for (const ResultPiece& piece : pieces) {
    list.push_back({piece.name, static_cast<int>(piece.dtype), piece.shape, piece.first_row, piece.memory.bytes()});
  }
  return list.dump();
}

std::vector<ResultPiece> pieces_described(std::string_view text) {
  std::vector<ResultPiece> pieces;
  for (const nlohmann::json& item : nlohmann::json::parse(text)) {
    pieces.push_back({.name = item[0],
                      .dtype = static_cast<DType>(item[1].get<int>()),
                      .shape = item[2],
                      .first_row = item[3],
                      .memory = Buffer(item[4].get<size_t>())});
  }
  return pieces;
}

void send_result(const Worker& worker, const Buffer& memory) {
  for (size_t first = 0; first < memory.bytes(); first += kResultBytes) {
    const size_t count = std::min(kResultBytes, memory.bytes() - first);
    Request sent = worker.world().send(memory.span().subspan(first, count), memory.share(), 0, kResultTag);
    worker.await(sent);
  }
}

void receive_result(const Worker& worker, Buffer& memory, int peer) {
  for (size_t first = 0; first < memory.bytes(); first += kResultBytes) {
    const size_t count = std::min(kResultBytes, memory.bytes() - first);
    Request arrived = worker.world().receive(memory.span().subspan(first, count), memory.share(), peer, kResultTag);
    worker.await(arrived);
  }
}

Buffer bytes_of(const std::string& text) {
  Buffer copy(text.size());
  std::memcpy(copy.data(), text.data(), text.size());
  return copy;
}

class Collection {
 public:
  void add(const ResultPiece& piece) {
    const auto [found, fresh] = tensors_.try_emplace(piece.name);
    ResultTensor& tensor = found->second.tensor;
    if (fresh) tensor = {piece.name, piece.dtype, piece.shape, Buffer(bytes_of(piece.dtype, piece.shape))};
    CADRE_CHECK_PEER(tensor.dtype == piece.dtype && tensor.shape == piece.shape && piece.first_row >= 0,
                     fmt::format("ranks disagree on the type or the shape of {}", piece.name));
    const size_t row_bytes = tensor.memory.bytes() / static_cast<size_t>(std::max<int64_t>(1, piece.shape.front()));
    const size_t begin = static_cast<size_t>(piece.first_row) * row_bytes;
    CADRE_CHECK_PEER(begin + piece.memory.bytes() <= tensor.memory.bytes(),
                     fmt::format("rows of {} lie behind its end", piece.name));
    if (!piece.memory.empty()) std::memcpy(tensor.memory.data() + begin, piece.memory.data(), piece.memory.bytes());
    found->second.bytes_here += piece.memory.bytes();
  }

  std::vector<ResultTensor> take() {
    std::vector<ResultTensor> list;
    for (auto& [name, part] : tensors_) {
      CADRE_CHECK_PEER(part.bytes_here == part.tensor.memory.bytes(),
                       fmt::format("{} of the {} bytes of {} came", part.bytes_here, part.tensor.memory.bytes(), name));
      list.push_back(std::move(part.tensor));
    }
    return list;
  }

 private:
  struct Part {
    ResultTensor tensor;
    size_t bytes_here = 0;
  };
  std::map<std::string, Part> tensors_;
};

}  // namespace

std::vector<ResultTensor> gather_results(const Worker& worker, std::vector<ResultPiece> mine) {
  const Communicator& world = worker.world();
  const std::string text = describe_pieces(mine);
  const std::vector<int64_t> sizes = worker.await(world.all_gather(static_cast<int64_t>(text.size())));
  if (world.rank() > 0) {
    send_result(worker, bytes_of(text));
    for (const ResultPiece& piece : mine) send_result(worker, piece.memory);
    return {};
  }
  Collection all;
  for (const ResultPiece& piece : mine) all.add(piece);
  mine.clear();
  for (int rank = 1; rank < world.size(); ++rank) {
    Buffer theirs(static_cast<size_t>(sizes[static_cast<size_t>(rank)]));
    receive_result(worker, theirs, rank);
    for (ResultPiece& piece : pieces_described({theirs.as<char>(), theirs.bytes()})) {
      receive_result(worker, piece.memory, rank);
      all.add(piece);
      piece.memory = Buffer();
    }
  }
  return all.take();
}

}  // namespace cadre
