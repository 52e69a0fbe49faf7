#pragma once
/// The ranks of a strategy that one process drives: a context and a thread for each.

#include <nvl/core/config.hpp>
#include <nvl/parallel/rank_threads.hpp>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Movable; contexts stay where they are. If the work of one rank throws, its context aborts, so that the others do not wait for it:
/// the group is then of no use any more.
template <class Context>
class LocalRanks {
 public:
  /// \param contexts of the ranks, at least one
  explicit LocalRanks(std::vector<Context> contexts) : ranks_(std::make_unique<Ranks>(std::move(contexts))) {}

  /// A context of each of `ends`, in their order.
  template <class End>
  static LocalRanks of(std::vector<End> ends) {
    std::vector<Context> contexts;
    contexts.reserve(ends.size());
    for (End& end : ends) { contexts.emplace_back(std::move(end)); }
    return LocalRanks(std::move(contexts));
  }

  /// Of one rank only: the others are in other processes.
  static LocalRanks of(Context context) {
    std::vector<Context> contexts;
    contexts.push_back(std::move(context));
    return LocalRanks(std::move(contexts));
  }

  std::uint32_t size() const noexcept { return ranks_->threads.count(); }

  /// Calls f(context, i) for each, side by side; returns when all did. The first exception of any is thrown again here.
  template <class F>
  void for_each(F&& f) {
    std::vector<Context>& contexts = ranks_->contexts;
    ranks_->threads.run([&](std::uint32_t i) { f(contexts[i], i); },
                        [&](std::uint32_t i, const char* what) noexcept { contexts[i].abort(what); });
  }

 private:
  struct Ranks {
    explicit Ranks(std::vector<Context> those)
        : contexts(std::move(those)),
          threads(static_cast<std::uint32_t>(contexts.size())) {}
    std::vector<Context> contexts;
    RankThreads threads;
  };

  std::unique_ptr<Ranks> ranks_;
};

}  // namespace nvl::inline NVL_ABI
