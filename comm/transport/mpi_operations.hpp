// SPDX-License-Identifier: Apache-2.0
// What the transport over MPI is made of: return codes, types of rows and blocks, operations under way.
#pragma once

#include <mpi.h>

#include <atomic>
#include <memory>
#include <source_location>
#include <span>
#include <string>
#include <vector>

#include "comm/transport/transport.hpp"

namespace cadre {

// Throws ErrorKind::environment with MPI's own text, and a stack trace.
void check_mpi(int code, const char* call, std::source_location where = std::source_location::current());

#define CADRE_MPI(call) ::cadre::check_mpi((call), #call)

// What transports and windows of one process share.
struct MpiProcess {
  std::atomic<int> ranks_on_host = 1;             // of the job, on this host
  std::atomic<size_t> shared_bytes_promised = 0;  // of windows; pages that were not touched yet count as free
  std::atomic<int> generation = 0;  // grows when the world becomes smaller: what is older is not freed any more
};

// Freeing a group or a window is collective. After an exception, a death or the end of MPI the peers may be waiting elsewhere:
// then they are left.
class CollectiveCleanupGuard {
 public:
  CollectiveCleanupGuard(const JobContext& job, std::shared_ptr<const MpiProcess> process);
  bool safe_to_free() const;

 private:
  const JobContext& job_;
  std::shared_ptr<const MpiProcess> process_;
  int exceptions_;
  int generation_;
};

// A row as one MPI element, so that counts are rows and stay below 2^31.
class RowType {
 public:
  explicit RowType(size_t row_bytes);
  // MPI keeps a type that pending messages use; the return code is dropped because a destructor cannot throw.
  ~RowType() { static_cast<void>(MPI_Type_free(&type_)); }
  RowType(const RowType&) = delete;
  RowType& operator=(const RowType&) = delete;
  MPI_Datatype get() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

// A block of any size as one MPI element.
class BlockType {
 public:
  explicit BlockType(size_t bytes);
  ~BlockType() { static_cast<void>(MPI_Type_free(&type_)); }
  BlockType(const BlockType&) = delete;
  BlockType& operator=(const BlockType&) = delete;
  MPI_Datatype get() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

MPI_Datatype mpi_type(DType dtype);
MPI_Op mpi_op(ReduceOp op);

// A nonblocking collective: MPI does not tell which peer is late.
class CollectiveOperation : public PendingOperation {
 public:
  explicit CollectiveOperation(int size) : size_(size) {}
  MPI_Request* handle() { return &request_; }
  bool test() override;
  std::string missing() const override;

 private:
  MPI_Request request_ = MPI_REQUEST_NULL;
  int size_;
};

// A set of messages, each with the peer it is from or to.
class MessagesOperation : public PendingOperation {
 public:
  // Room for up to `count` messages: MPI holds the addresses of their handles only while a call runs.
  explicit MessagesOperation(int count);

  // `peer` is a world rank.
  MPI_Request* add(bool receiving, int peer, size_t bytes);
  bool test() override;
  std::string missing() const override;

 private:
  struct Message {
    bool receiving;
    int peer;
    size_t bytes;
  };
  void check_sizes() const;

  std::vector<MPI_Request> requests_;
  std::vector<MPI_Status> statuses_;
  std::vector<Message> messages_;
};

// Takes the communicator over.
std::unique_ptr<Transport> make_mpi_transport(JobContext& job, std::shared_ptr<MpiProcess> process, MPI_Comm comm);

}  // namespace cadre
