#pragma once
/// The ranks of a strategy that one process drives: a context and a thread for each.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
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

  /// A context of each place of a grid, made of the ends of two new groups: that of its row and that of its column. Row by row.
  /// \param what is said of a number of rows that is refused
  template <class Group>
  static LocalRanks grid(std::uint32_t num_rows, std::uint32_t num_columns, const char* what) {
    NVL_EXPECTS(num_rows >= 1, what, num_rows, "at least 1");
    std::vector<std::vector<Group>> columns;
    for (std::uint32_t column = 0; column < num_columns; ++column) { columns.push_back(Group::make(num_rows)); }
    std::vector<Context> contexts;
    for (std::uint32_t r = 0; r < num_rows; ++r) {
      std::vector<Group> row = Group::make(num_columns);
      for (std::uint32_t column = 0; column < num_columns; ++column) {
        contexts.emplace_back(std::move(row[column]), std::move(columns[column][r]));
      }
    }
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
