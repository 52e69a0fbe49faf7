#pragma once
/// Weights from host memory to the device while they are being read: threads copy pieces out of the page cache into page-locked
/// memory, from where the device fetches and, where the type differs, converts them. docs/kernels/linear.md has the numbers.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/kernels/convert.cuh>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/ops/cuda_device.cuh>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <cuda_runtime.h>
#include <sys/mman.h>
#include <unistd.h>

namespace nvl::inline NVL_ABI {

struct UploadOptions {
  std::size_t staging_bytes = std::size_t{16} << 20;  // page-locked memory; as much on the device while types are converted
  std::int32_t num_threads = 0;                       // that copy; 0: as many as are of use here
};

/// Copies tensors to device memory of the current device, in order with the other work of one stream.
class WeightUploader {
 public:
  static constexpr std::int32_t max_threads = 64;
  static constexpr std::size_t min_piece_bytes = 4096;

  /// \param stream outlives the uploader; where the copies run
  /// \throws InvalidArgument; OutOfMemory if there is no page-locked memory or no thread; CudaError
  explicit WeightUploader(cudaStream_t stream, const UploadOptions& options = {}) : stream_(stream) {
    NVL_EXPECTS(options.num_threads >= 0 && options.num_threads <= max_threads, "upload num_threads", options.num_threads,
                "0 (chosen) to " + std::to_string(max_threads));
    const auto cores = static_cast<std::int32_t>(std::thread::hardware_concurrency());
    const std::int32_t num_threads = options.num_threads != 0 ? options.num_threads : std::clamp(cores / 2, 1, 8);
    const std::size_t num_slots = static_cast<std::size_t>(num_threads) * slots_per_thread;
    piece_bytes_ = options.staging_bytes / num_slots / 256 * 256;
    NVL_EXPECTS(piece_bytes_ >= min_piece_bytes, "upload staging_bytes", options.staging_bytes,
                "at least " + std::to_string(num_slots * min_piece_bytes) + " for " + std::to_string(num_threads) + " threads");
    NVL_CUDA_CHECK(cudaGetDevice(&ordinal_));
    staging_ = PinnedBuffer(num_slots * piece_bytes_);
    slots_.reserve(num_slots);
    for (std::size_t i = 0; i < num_slots; ++i) { slots_.emplace_back(staging_.data() + i * piece_bytes_); }
    start_threads(num_threads);
  }

  WeightUploader(const WeightUploader&) = delete;
  WeightUploader& operator=(const WeightUploader&) = delete;

  /// Waits for the copies that were begun; what was not is dropped.
  ~WeightUploader() {
    stop_threads();
    for (const Slot& slot : slots_) { static_cast<void>(cudaEventSynchronize(slot.free.get())); }
    static_cast<void>(cudaFree(device_staging_));
  }

  /// Begins to copy the elements of `tensor` to `out` as T. Returns at once: the bytes of the tensor have to stay until
  /// finish() returns. Work that is given to the stream after finish() sees the elements.
  /// \param out device memory for all elements of the tensor
  /// \throws InvalidArgument for a tensor of integers or one whose bytes are not those of its shape
  template <class T>
  void upload(const HostTensor& tensor, T* out) {
    const std::int64_t count = checked_count(tensor);
    if (count == 0) { return; }
    if (tensor.dtype != dtype_of<T>) { reserve_device_staging(); }
    const auto convert = [](void* to, const std::byte* source, DType type, std::int64_t elements, cudaStream_t stream) {
      kernels::launch_convert<T>({.out = static_cast<T*>(to), .source = source, .type = type, .count = elements}, stream, false);
    };
    {
      const std::lock_guard lock(mutex_);
      jobs_.push_back({.name = tensor.name,
                       .type = tensor.dtype,
                       .source = tensor.data.data(),
                       .out = reinterpret_cast<std::byte*>(out),
                       .left = count,
                       .out_element_bytes = sizeof(T),
                       .convert = tensor.dtype == dtype_of<T> ? nullptr : +convert});
    }
    work_.notify_all();
  }

  /// Waits until every piece was read and given to the stream (not until it has arrived).
  /// \throws what went wrong with any tensor since the last call: FileError if its file was truncated, CudaError
  void finish() {
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [&] { return jobs_.empty() && num_busy_ == 0; });
    rethrow(std::exchange(error_, nullptr));
  }

 private:
  static constexpr std::size_t slots_per_thread = 2;  // one is filled while the other is on its way

  using Convert = void (*)(void* out, const std::byte* source, DType type, std::int64_t count, cudaStream_t stream);

  /// What is left of a tensor; or one piece of it.
  struct Job {
    std::string name;
    DType type = DType::float32;
    const std::byte* source = nullptr;
    std::byte* out = nullptr;
    std::int64_t left = 0;  // [elements]
    std::size_t out_element_bytes = 0;
    Convert convert = nullptr;  // nullptr: the bytes are what is wanted

    std::size_t num_bytes() const noexcept {
      return static_cast<std::size_t>(left) / info(type).block_elements * info(type).block_bytes;
    }
  };

  struct Slot {
    explicit Slot(std::byte* memory) : host(memory), free(cudaEventDisableTiming | cudaEventBlockingSync) {}
    std::byte* host;
    CudaEvent free;  // the last copy out of it is done
  };

  /// [elements] of a tensor whose bytes are as many as its shape says.
  static std::int64_t checked_count(const HostTensor& tensor) {
    const DTypeInfo& type = info(tensor.dtype);
    NVL_EXPECTS(tensor.dtype != DType::int8 && tensor.dtype != DType::int32 && tensor.dtype != DType::int64,
                "type of weight " + tensor.name, type.name, "a floating-point or block-quantised type");
    std::int64_t count = 1;
    for (const std::int64_t extent : tensor.shape) {
      const std::optional<std::int64_t> product = extent >= 0 ? checked_mul(count, extent) : std::nullopt;
      NVL_EXPECTS(product.has_value(), "shape of weight " + tensor.name, extent,
                  "extents of at least 0, not more than 2^63 elements");
      count = *product;
    }
    const std::int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
    NVL_EXPECTS(row % type.block_elements == 0, "shape of weight " + tensor.name, row,
                "rows of whole blocks of " + std::string(type.name));
    const auto blocks = static_cast<std::uint64_t>(count) / type.block_elements;
    NVL_EXPECTS(tensor.data.size() / type.block_bytes == blocks && tensor.data.size() % type.block_bytes == 0,
                "bytes of weight " + tensor.name, tensor.data.size(),
                std::to_string(blocks) + " x " + std::to_string(type.block_bytes) + ", as its shape says");
    return count;
  }

  /// Memory on the device for what has to be converted there: a slot's piece goes through the same place of it. Kept apart from
  /// the page-locked memory, because checkpoints of the engine's own type never need it.
  void reserve_device_staging() {
    if (device_staging_ != nullptr) { return; }
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, staging_.size_bytes());
    if (status != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      raise(OutOfMemory("the device does not give " + std::to_string(staging_.size_bytes()) +
                        " bytes in which weights are converted: " + cudaGetErrorString(status)));
    }
    device_staging_ = static_cast<std::byte*>(memory);
  }

  void start_threads(std::int32_t num_threads) {
    const auto start_all = [&] {
      threads_.reserve(static_cast<std::size_t>(num_threads));
      for (std::int32_t i = 0; i < num_threads; ++i) {
        threads_.emplace_back([this, i] { work(static_cast<std::size_t>(i) * slots_per_thread); });
      }
    };
#if defined(__cpp_exceptions)
    try {
      start_all();
    } catch (const std::system_error& error) {
      stop_threads();
      raise(OutOfMemory("an upload thread cannot be started: " + std::string(error.what())));
    }
#else
    start_all();
#endif
  }

  void stop_threads() noexcept {
    {
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
      jobs_.clear();
    }
    work_.notify_all();
    for (std::thread& thread : threads_) { thread.join(); }
    threads_.clear();
  }

  /// A thread: takes pieces until there are none, with the slots from `first_slot` on in turn.
  void work(std::size_t first_slot) {
    for (std::size_t turn = 0;; turn = (turn + 1) % slots_per_thread) {
      Job piece;
      {
        std::unique_lock lock(mutex_);
        work_.wait(lock, [&] { return is_stopping_ || !jobs_.empty(); });
        if (is_stopping_) { return; }
        piece = take_piece();
        ++num_busy_;
      }
      std::exception_ptr error = copy_contained(piece, slots_[first_slot + turn]);
      const std::lock_guard lock(mutex_);
      --num_busy_;
      if (error && !error_) {
        error_ = std::move(error);
        jobs_.clear();
      }
      if (jobs_.empty() && num_busy_ == 0) { idle_.notify_all(); }
    }
  }

  /// The first elements of the first job: as many as fit into a slot.
  Job take_piece() {
    Job& job = jobs_.front();
    const DTypeInfo& type = info(job.type);
    const auto fit = static_cast<std::int64_t>(piece_bytes_ / type.block_bytes * type.block_elements);
    Job piece = job;
    piece.left = std::min(fit, job.left);
    job.left -= piece.left;
    job.source += piece.num_bytes();
    job.out += static_cast<std::size_t>(piece.left) * job.out_element_bytes;
    if (job.left == 0) { jobs_.pop_front(); }
    return piece;
  }

  std::exception_ptr copy_contained(const Job& piece, Slot& slot) {
#if defined(__cpp_exceptions)
    try {
      copy(piece, slot);
    } catch (...) { return std::current_exception(); }
#else
    copy(piece, slot);
#endif
    return nullptr;
  }
  static void rethrow(const std::exception_ptr& error) {
#if defined(__cpp_exceptions)
    if (error) { std::rethrow_exception(error); }
#else
    static_cast<void>(error);
#endif
  }

  void copy(const Job& piece, Slot& slot) {
    NVL_CUDA_CHECK(cudaSetDevice(ordinal_));
    const std::size_t num_bytes = piece.num_bytes();
    NVL_CUDA_CHECK(cudaEventSynchronize(slot.free.get()));
    fault_in(piece, num_bytes);
    std::memcpy(slot.host, piece.source, num_bytes);
    if (piece.convert == nullptr) {
      NVL_CUDA_CHECK(cudaMemcpyAsync(piece.out, slot.host, num_bytes, cudaMemcpyHostToDevice, stream_));
    } else {
      std::byte* const raw = device_staging_ + (slot.host - staging_.data());
      NVL_CUDA_CHECK(cudaMemcpyAsync(raw, slot.host, num_bytes, cudaMemcpyHostToDevice, stream_));
      piece.convert(piece.out, raw, piece.type, piece.left, stream_);
    }
    slot.free.record(stream_);
  }

  /// Maps all pages of a piece at once, several times as fast as one fault a page; and where a truncation has taken pages away,
  /// it fails instead of raising SIGBUS.
  static void fault_in([[maybe_unused]] const Job& piece, [[maybe_unused]] std::size_t num_bytes) {
#if defined(__linux__)
    constexpr int populate_read = 22;  // MADV_POPULATE_READ, Linux 5.14
    const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<std::uintptr_t>(piece.source) / page * page;
    const auto end = reinterpret_cast<std::uintptr_t>(piece.source) + num_bytes;
    if (::madvise(reinterpret_cast<void*>(begin), end - begin, populate_read) != 0 && errno == EFAULT) {
      raise(FileError("weight " + piece.name, "cannot be read: its file was truncated while it was in use"));
    }
#endif
  }

  cudaStream_t stream_;
  int ordinal_ = 0;
  std::size_t piece_bytes_ = 0;
  PinnedBuffer staging_;
  std::byte* device_staging_ = nullptr;  // as large as staging_, once it is needed
  std::vector<Slot> slots_;
  std::vector<std::thread> threads_;

  std::mutex mutex_;
  std::condition_variable work_;  // there are jobs, or the end
  std::condition_variable idle_;  // no job is left or in work
  std::deque<Job> jobs_;
  std::int32_t num_busy_ = 0;
  bool is_stopping_ = false;
  std::exception_ptr error_;
};

}  // namespace nvl::inline NVL_ABI
