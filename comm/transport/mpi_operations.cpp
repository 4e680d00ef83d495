// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/mpi_operations.hpp"

#include <array>
#include <cstring>
#include <exception>
#include <tuple>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/transport/mpi.hpp"

namespace cadre {
namespace {

constexpr size_t kChunk = size_t{1} << 20;

}  // namespace

CollectiveCleanupGuard::CollectiveCleanupGuard(const JobContext& job, std::shared_ptr<const MpiProcess> process)
    : job_(job),
      process_(std::move(process)),
      exceptions_(std::uncaught_exceptions()),
      generation_(process_->generation.load()) {}

bool CollectiveCleanupGuard::safe_to_free() const {
  const Liveness* processes = job_.liveness();
  int over = 0;
  return std::uncaught_exceptions() == exceptions_ && generation_ == process_->generation.load() &&
         (processes == nullptr || !processes->news()) && MPI_Finalized(&over) == MPI_SUCCESS && over == 0;
}

void check_mpi(int code, const char* call, std::source_location where) {
  if (code == MPI_SUCCESS) [[likely]]
    return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  std::ignore = MPI_Error_string(code, text, &length);  // the text stays empty if even this fails
  int error_class = MPI_SUCCESS;
  std::ignore = MPI_Error_class(code, &error_class);
  // A message longer than its receive was posted for.
  const ErrorKind kind = error_class == MPI_ERR_TRUNCATE ? ErrorKind::peer : ErrorKind::environment;
  const Error error(kind, fmt::format("{} failed: {}", call, text), {}, where);
  note_stack(error.text());
  throw Error(error);
}

RowType::RowType(size_t row_bytes) {
  CADRE_MPI(MPI_Type_contiguous(checked_int(row_bytes, "bytes of a row"), MPI_BYTE, &type_));
  CADRE_MPI(MPI_Type_commit(&type_));
}

BlockType::BlockType(size_t bytes) {
  const RowType chunk(kChunk);
  const std::array<int, 2> counts = {checked_int(bytes / kChunk, "chunks of a message"),
                                     static_cast<int>(bytes % kChunk)};
  const std::array<MPI_Aint, 2> offsets = {0, static_cast<MPI_Aint>(bytes / kChunk * kChunk)};
  const std::array<MPI_Datatype, 2> types = {chunk.get(), MPI_BYTE};
  CADRE_MPI(MPI_Type_create_struct(2, counts.data(), offsets.data(), types.data(), &type_));
  CADRE_MPI(MPI_Type_commit(&type_));
}

MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::f32: return MPI_FLOAT;
    case DType::f64: return MPI_DOUBLE;
    case DType::i32: return MPI_INT32_T;
    case DType::i64: return MPI_INT64_T;
    default: break;
  }
  throw Error(ErrorKind::internal, fmt::format("MPI cannot reduce {}", name_of(dtype)));
}

MPI_Op mpi_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum: return MPI_SUM;
    case ReduceOp::max: return MPI_MAX;
    case ReduceOp::min: return MPI_MIN;
  }
  throw Error(ErrorKind::internal, "unknown reduction");
}

bool CollectiveOperation::test() {
  int done = 0;
  CADRE_MPI(MPI_Test(&request_, &done, MPI_STATUS_IGNORE));
  return done != 0;
}

std::string CollectiveOperation::missing() const { return fmt::format("one or more of its {} ranks", size_); }

MessagesOperation::MessagesOperation(int count) {
  requests_.reserve(static_cast<size_t>(count));
  messages_.reserve(static_cast<size_t>(count));
}

MPI_Request* MessagesOperation::add(bool receiving, int peer, size_t bytes) {
  messages_.push_back({receiving, peer, bytes});
  return &requests_.emplace_back(MPI_REQUEST_NULL);
}

bool MessagesOperation::test() {
  int done = 0;
  statuses_.resize(requests_.size());
  CADRE_MPI(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, statuses_.data()));
  if (done == 0) return false;
  check_sizes();
  return true;
}

std::string MessagesOperation::missing() const {
  std::string text;
  for (size_t i = 0; i < requests_.size(); ++i) {
    int done = 0;
    if (MPI_Request_get_status(requests_[i], &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done != 0) continue;
    const Message& message = messages_[i];
    if (!text.empty()) text += ", ";
    text += message.receiving ? fmt::format("rank {} (expected {} bytes, received none)", message.peer, message.bytes)
                              : fmt::format("rank {} (to take {} bytes)", message.peer, message.bytes);
  }
  return text.empty() ? "no rank" : text;
}

// A message that is too long fails in MPI; one that is too short would pass.
void MessagesOperation::check_sizes() const {
  for (size_t i = 0; i < messages_.size(); ++i) {
    const Message& message = messages_[i];
    if (!message.receiving) continue;
    MPI_Count received = 0;
    CADRE_MPI(MPI_Get_elements_x(&statuses_[i], MPI_BYTE, &received));
    CADRE_CHECK_PEER(
        static_cast<size_t>(received) == message.bytes,
        fmt::format("expected {} bytes from rank {} and received {}", message.bytes, message.peer, received));
  }
}

}  // namespace cadre
