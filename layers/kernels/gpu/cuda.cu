// SPDX-License-Identifier: Apache-2.0
// All kernels of the GPU back end, compiled for devices.
#include <algorithm>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>

#include "layers/kernels/gpu/cuda.hpp"
#include "layers/kernels/gpu/cuda_machine.cuh"
#include "layers/kernels/gpu/cuda_products.cuh"
#include "layers/kernels/gpu/kernels_inl.hpp"

namespace cadre {
namespace gpu {
namespace {

constexpr size_t kScratchPiece = size_t{64} << 20;
constexpr size_t kPinnedPiece = size_t{8} << 20;
constexpr double kMiB = 1024.0 * 1024.0;

std::string mib(size_t bytes) {
  return std::to_string(static_cast<int64_t>(static_cast<double>(bytes) / kMiB)) + " MiB";
}

// Throws where the device has not that many bytes free.
void check_free(size_t bytes) {
  int device = 0;
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  CADRE_CUDA(cudaGetDevice(&device));
  CADRE_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
  if (bytes <= free_bytes) return;
  throw OutOfMemory(
      "CUDA device " + std::to_string(device) + " has " + mib(free_bytes) + " free of " + mib(total_bytes) + ", and " +
          mib(bytes) + " more are wanted",
      "lower train.batch, raise train.micro_batches, or use more devices; the plan is the table printed before");
}

}  // namespace

std::byte* PlainMemory::allocate(size_t bytes) {
  CADRE_CUDA(cudaSetDevice(device_));
  void* data = nullptr;
  if (kind_ == PlainKind::mapped) {
    CADRE_CUDA(cudaHostAlloc(&data, bytes, cudaHostAllocMapped));
  } else {
    check_free(bytes);
    CADRE_CUDA(cudaMalloc(&data, bytes));
  }
  ranges_.add(data, bytes);
  return static_cast<std::byte*>(data);
}

// At the end of a process there may be no driver any more.
void PlainMemory::release(std::byte* data) noexcept {
  ranges_.remove(data);
  std::ignore = cudaStreamSynchronize(stream_.get());
  if (kind_ == PlainKind::mapped) {
    std::ignore = cudaFreeHost(data);
  } else {
    std::ignore = cudaFree(data);
  }
}

void PlainMemory::fill(std::byte* data, std::byte value, size_t bytes) {
  if (!ranges_.contain(data, bytes)) return Memory::fill(data, value, bytes);
  CADRE_CUDA(cudaSetDevice(device_));
  if (bytes > 0) CADRE_CUDA(cudaMemsetAsync(data, std::to_integer<int>(value), bytes, stream_.get()));
}

std::byte* PlainMemory::piece() {
  CADRE_CUDA(cudaSetDevice(device_));
  if (piece_.empty()) piece_ = Buffer(kPinnedPiece, pinned_);
  return piece_.data();
}

void PlainMemory::read(std::byte* to, const std::byte* from, size_t bytes) {
  if (is_on_host()) return Memory::read(to, from, bytes);
  std::byte* const pinned = piece();
  for (size_t done = 0; done < bytes; done += kPinnedPiece) {
    const size_t here = std::min(kPinnedPiece, bytes - done);
    CADRE_CUDA(cudaMemcpyAsync(pinned, from + done, here, cudaMemcpyDefault, stream_.get()));
    stream_.wait();
    std::memcpy(to + done, pinned, here);
  }
}

void PlainMemory::write(std::byte* to, const std::byte* from, size_t bytes) {
  if (is_on_host()) return Memory::write(to, from, bytes);
  std::byte* const pinned = piece();
  for (size_t done = 0; done < bytes; done += kPinnedPiece) {
    const size_t here = std::min(kPinnedPiece, bytes - done);
    std::memcpy(pinned, from + done, here);
    CADRE_CUDA(cudaMemcpyAsync(to + done, pinned, here, cudaMemcpyDefault, stream_.get()));
    stream_.wait();
  }
}

ScratchMemory::~ScratchMemory() {
  for (const Piece& piece : pieces_) std::ignore = cudaFree(piece.data);
}

void ScratchMemory::add(size_t bytes) {
  bytes = std::max(bytes, kScratchPiece);
  size_t so_far = 0;
  for (const Piece& piece : pieces_) so_far += piece.bytes;
  bytes = std::max(bytes, so_far);
  check_free(bytes);
  void* data = nullptr;
  CADRE_CUDA(cudaMalloc(&data, bytes));
  pieces_.push_back({static_cast<std::byte*>(data), bytes});
}

void ScratchMemory::reset() {
  piece_ = 0;
  offset_ = 0;
}

std::byte* ScratchMemory::take(size_t bytes) {
  const size_t rounded = (bytes + 255) / 256 * 256;
  while (piece_ < pieces_.size() && offset_ + rounded > pieces_[piece_].bytes) {
    ++piece_;
    offset_ = 0;
  }
  if (piece_ == pieces_.size()) add(rounded);
  std::byte* data = pieces_[piece_].data + offset_;
  offset_ += rounded;
  return data;
}

namespace {

// Two events around what is launched in between, on the stream it is launched on.
class CudaClock final : public DeviceClock {
 public:
  CudaClock(int device, cudaStream_t stream) : device_(device), stream_(stream) {
    CADRE_CUDA(cudaSetDevice(device_));
    CADRE_CUDA(cudaEventCreate(&begin_));
    CADRE_CUDA(cudaEventCreate(&end_));
  }
  ~CudaClock() override {
    std::ignore = cudaEventDestroy(begin_);
    std::ignore = cudaEventDestroy(end_);
  }
  CudaClock(const CudaClock&) = delete;
  CudaClock& operator=(const CudaClock&) = delete;

  void start() override {
    CADRE_CUDA(cudaSetDevice(device_));
    CADRE_CUDA(cudaEventRecord(begin_, stream_));
  }
  double stop_ms() override {
    CADRE_CUDA(cudaSetDevice(device_));
    CADRE_CUDA(cudaEventRecord(end_, stream_));
    CADRE_CUDA(cudaEventSynchronize(end_));
    float ms = 0.0F;
    CADRE_CUDA(cudaEventElapsedTime(&ms, begin_, end_));
    return ms;
  }

 private:
  int device_;
  cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

}  // namespace

std::unique_ptr<DeviceClock> CudaMachine::make_clock() const {
  return std::make_unique<CudaClock>(device_, stream_.get());
}

CudaMachine::CudaMachine(int device)
    : device_(device), stream_(device), copies_(make_cuda_copies(device)), products_(std::make_unique<LtProducts>()) {}

CudaMachine::~CudaMachine() { std::ignore = cudaStreamSynchronize(stream_.get()); }

bool CudaMachine::multiplies_fp8() const { return LtProducts::multiply_fp8(device_); }

template <class Operand>
void CudaMachine::multiply(const ProductShape& shape, Operand a, Operand b, float* d) {
  products_->multiply(shape, a, b, d, stream_.get());
}

template <class Operand>
void CudaMachine::multiply_grouped(std::span<const Product<Operand>> products) {
  products_->multiply_grouped(products, stream_.get());
}

unsigned CudaMachine::grid(int64_t blocks) {
  CADRE_CHECK(blocks <= 0x7fffffff, "more blocks than a CUDA grid has", "use a smaller micro-batch");
  return static_cast<unsigned>(blocks);
}

}  // namespace gpu

CudaDevices find_cuda_devices() {
  CudaDevices found;
  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
    found.why_none = std::string("CUDA: ") + cudaGetErrorString(status);
    return found;
  }
  if (count == 0) found.why_none = "no CUDA device is visible";
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties = {};
    CudaDevice& one = found.list.emplace_back();
    CADRE_CUDA(cudaGetDeviceProperties(&properties, device));
    one.bytes = properties.totalGlobalMem;
    one.name = properties.name;
    one.major = properties.major;
    one.minor = properties.minor;
  }
  return found;
}

std::unique_ptr<Kernels> make_cuda_kernels(int device, Precision precision) {
  const CudaDevices devices = find_cuda_devices();
  if (device < 0 || static_cast<size_t>(device) >= devices.list.size()) {
    throw Error(ErrorKind::environment,
                devices.list.empty() ? devices.why_none : "there is no CUDA device " + std::to_string(device),
                "nvidia-smi lists the devices; compute.device=cpu needs none");
  }
  if (const CudaDevice& found = devices.list[static_cast<size_t>(device)]; found.major < 8) {
    throw Error(ErrorKind::environment,
                fmt::format("CUDA device {} ({}) has compute capability {}.{}, allowed: 8.0 and newer", device,
                            found.name, found.major, found.minor),
                "compute.device=cpu needs no device");
  }
  return make_gpu_kernels("cuda", std::make_shared<gpu::CudaMachine>(device), precision);
}

}  // namespace cadre
