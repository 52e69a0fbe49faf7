#pragma once
/// A transfer between host caches that is done when a test says so, and that fails when it says so.

#include <nvl/attention/kv_transfer.hpp>
#include <nvl/core/error.hpp>

#include <cstdint>
#include <deque>
#include <span>
#include <utility>
#include <vector>

namespace nvl_test {

/// Shared by all LateTransfers of the process: one test runs at a time.
struct TransferFaults {
  int delay = 0;           // times that num_done is asked before a copy is made
  int failing_start = 0;   // this call of start throws, counted from 1; 0: none
  int failing_answer = 0;  // from this call of num_done on, with a copy under way, it throws; 0: never
  int num_starts = 0, num_answers = 0;
};
inline TransferFaults transfer_faults;

struct WithTransferFaults {
  explicit WithTransferFaults(const TransferFaults& faults) { transfer_faults = faults; }
  WithTransferFaults(const WithTransferFaults&) = delete;
  WithTransferFaults& operator=(const WithTransferFaults&) = delete;
  ~WithTransferFaults() { transfer_faults = {}; }
};

/// Copies as late as it may: whoever writes or reads a block too early finds something else in it.
template <class T>
class LateTransfer {
 public:
  using Element = T;
  using Device = nvl::CpuDevice;

  LateTransfer(nvl::CpuDevice& device, const nvl::KvCache<T>& from, nvl::CpuDevice& device2, const nvl::KvCache<T>& to)
      : copy_(device, from, device2, to) {}
  ~LateTransfer() { make_copies(under_way_.size()); }

  void start(std::span<const nvl::BlockCopy> copies) {
    if (++transfer_faults.num_starts == transfer_faults.failing_start) { nvl::raise(nvl::Error("the test wants no copy")); }
    under_way_.push_back({std::vector<nvl::BlockCopy>(copies.begin(), copies.end()), transfer_faults.delay});
  }

  std::uint64_t num_done() {
    if (!under_way_.empty() && transfer_faults.failing_answer > 0 &&
        ++transfer_faults.num_answers >= transfer_faults.failing_answer) {
      under_way_.clear();
      has_failed_ = true;
    }
    if (has_failed_) { nvl::raise(nvl::Error("the test breaks the link")); }
    std::size_t ready = 0;
    for (Copy& one : under_way_) {
      if (one.patience-- > 0) { break; }
      ++ready;
    }
    make_copies(ready);
    return copy_.num_done();
  }

 private:
  struct Copy {
    std::vector<nvl::BlockCopy> copies;
    int patience;
  };

  void make_copies(std::size_t count) {
    for (; count > 0; --count) {
      copy_.start(under_way_.front().copies);
      under_way_.pop_front();
    }
  }

  nvl::HostKvTransfer<T> copy_;
  std::deque<Copy> under_way_;
  bool has_failed_ = false;
};
static_assert(nvl::require_kv_transfer<LateTransfer<float>>());

}  // namespace nvl_test
