#pragma once
/// What one of several ranks that share the tokens of a step does of it, all derived from the StepInput that every rank gets.

#include <nvl/attention/attention_backend.hpp>
#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>
#include <nvl/ops/device_ops.hpp>
#include <nvl/parallel/parallel_strategy.hpp>
#include <nvl/parallel/token_shares.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {

/// A sequence that computes one token does so on the rank that keeps it. The rows of all others are shared out by ZigZag; they
/// are a share's first. K and V of a rank's rows are its part; they lie there from slot 0 on. The parts go round the ranks,
/// without the rows that are alone: in round k a rank has that of the share k before its own.
class SharedStep {
 public:
  /// One round: which keys of the part this rank's queries see, and which tokens of it this rank keeps.
  struct Round {
    std::int32_t num_rows = 0;             // of the part, without those that stay
    bool has_keys = false;                 // for any query
    std::vector<std::int32_t> key_begins;  // [runs of this rank] slots of the part that their queries see
    std::vector<std::int32_t> key_ends;
    std::vector<SlotCopy> kept;  // from the part to the rank's cache
  };

  /// Queries of all shares, gathered, against what this rank's cache had before the step: those of share i from row
  /// i * max_rows on.
  struct Past {
    std::int32_t max_rows = 0;               // of a share
    std::vector<std::int32_t> num_rows;      // of each share
    std::vector<std::int32_t> rows;          // of this rank's queries, those that have a past
    std::vector<std::int32_t> query_bounds;  // cu_query_lens of the runs of all shares
    std::vector<std::int32_t> num_keys;      // [those runs] that this rank has of them
    std::vector<BlockId> block_tables;       // [those runs, max_blocks_per_seq]
  };

  /// Sampled rows, gathered: those of share i from row i * max_rows on.
  struct Samples {
    std::int32_t max_rows = 0;
    std::vector<std::int32_t> sources;  // [R] where each row of the step is among them
  };

  /// \param share of `blocks.count` that this rank has
  SharedStep(std::uint32_t share, const StripedBlocks& blocks)
      : share_(share),
        blocks_(blocks),
        shares_(blocks.count),
        rounds_(blocks.count) {}

  /// Valid until the next step.
  void derive(const StepInput& whole) {
    share_out(whole);
    query_bounds_.assign(1, 0);
    for (const Run& run : shares_[share_].runs) { query_bounds_.push_back(run.local_row + run.count); }
    place_samples(whole);
    take_rows(whole);
    for (std::uint32_t k = 0; k < blocks_.count; ++k) { plan_round(whole, k); }
    plan_past(whole);
    std::int32_t most_rows = 0;
    for (const Share& share : shares_) { most_rows = std::max(most_rows, share.num_rows); }
    all_rows_.resize(static_cast<std::size_t>(mine().num_tokens()));
    std::iota(all_rows_.begin(), all_rows_.end(), 0);
    identity_.resize(static_cast<std::size_t>(ceil_div(most_rows, blocks_.block_size)));
    for (std::size_t i = 0; i < identity_.size(); ++i) { identity_[i] = BlockId{static_cast<std::uint32_t>(i)}; }
  }

  /// Parts go round; if not, every token's K and V are where they are kept, and no query sees another of the step.
  bool has_rounds() const noexcept { return num_shared_rows_ > 0; }
  /// This rank's tokens as a step of their own, with its sampled rows. Slots are those of its part; it has no sequences.
  const StepInput& mine() const noexcept { return buffer_.input(); }
  std::span<const std::int32_t> all_rows() const noexcept { return all_rows_; }  ///< of `mine`: 0, 1, ...
  const Samples& samples() const noexcept { return samples_; }
  const Past& past() const noexcept { return past_; }
  const Round& round(std::uint32_t k) const noexcept { return rounds_[k]; }
  /// The share whose part a rank has in round k.
  std::uint32_t origin(std::uint32_t k) const noexcept { return (share_ + blocks_.count - k) % blocks_.count; }

  /// This rank's queries against the part of round k. In round 0 that is its own, whose last run of keys ends with the queries.
  AttentionMetadata metadata_of_round(std::uint32_t k) const noexcept {
    AttentionMetadata metadata{.cu_query_lens = query_bounds_,
                               .seq_lens = rounds_[k].key_ends,
                               .block_tables = identity_,
                               .max_blocks_per_seq = 0,  // one table for all
                               .num_tokens = query_bounds_.back(),
                               .is_causal = k == 0,
                               .key_begins = rounds_[k].key_begins};
    set_query_lens(metadata);
    return metadata;
  }

  AttentionMetadata metadata_of_past(std::int32_t max_blocks_per_seq) const noexcept {
    AttentionMetadata metadata{.cu_query_lens = past_.query_bounds,
                               .seq_lens = past_.num_keys,
                               .block_tables = past_.block_tables,
                               .max_blocks_per_seq = max_blocks_per_seq,
                               .num_tokens = past_.query_bounds.back(),
                               .is_causal = false};
    set_query_lens(metadata);
    return metadata;
  }

 private:
  /// Consecutive rows of one sequence on one rank.
  struct Run {
    std::size_t seq = 0;
    std::int32_t first_row = 0;  // of the step
    std::int32_t local_row = 0;  // of the share
    std::int32_t count = 0;
  };
  struct Share {
    std::vector<Run> runs;
    std::int32_t num_rows = 0;
    std::int32_t num_shared_rows = 0;  // the first of them, those that go round

    void clear() noexcept {
      runs.clear();
      num_rows = num_shared_rows = 0;
    }
    void add(std::size_t seq, std::int32_t first_row, std::int32_t count) {
      runs.push_back({.seq = seq, .first_row = first_row, .local_row = num_rows, .count = count});
      num_rows += count;
    }
  };
  struct Place {
    std::uint32_t share = 0;
    std::int32_t row = 0;  // of the share
  };

  static std::int32_t num_queries_of(const StepInput& whole, std::size_t s) noexcept {
    return whole.cu_query_lens[s + 1] - whole.cu_query_lens[s];
  }
  /// [tokens] of sequence s before the step.
  static std::int32_t past_of(const StepInput& whole, std::size_t s) noexcept {
    return whole.seq_lens[s] - num_queries_of(whole, s);
  }

  void share_out(const StepInput& whole) {
    for (Share& share : shares_) { share.clear(); }
    const auto num_seqs = static_cast<std::size_t>(whole.num_seqs());
    num_shared_rows_ = 0;
    for (std::size_t s = 0; s < num_seqs; ++s) {
      num_shared_rows_ += num_queries_of(whole, s) > 1 ? num_queries_of(whole, s) : 0;
    }
    const ZigZag zig_zag(num_shared_rows_, blocks_.count);
    for (std::uint32_t share = 0; share < blocks_.count; ++share) {
      for (const Shard rows : {zig_zag.low(share), zig_zag.high(share)}) {
        std::int32_t first = 0;  // of sequence s, among the rows that are shared out
        for (std::size_t s = 0; s < num_seqs && first < rows.end; ++s) {
          const std::int32_t count = num_queries_of(whole, s);
          if (count < 2) { continue; }
          const std::int32_t begin = std::max(rows.begin, first), end = std::min(rows.end, first + count);
          if (begin < end) { shares_[share].add(s, whole.cu_query_lens[s] + begin - first, end - begin); }
          first += count;
        }
      }
      shares_[share].num_shared_rows = shares_[share].num_rows;
    }
    for (std::size_t s = 0; s < num_seqs; ++s) {
      if (num_queries_of(whole, s) == 1) { shares_[blocks_.share_of(whole.seq_lens[s] - 1)].add(s, whole.cu_query_lens[s], 1); }
    }
    places_.resize(static_cast<std::size_t>(whole.num_tokens()));
    for (std::uint32_t share = 0; share < blocks_.count; ++share) {
      for (const Run& run : shares_[share].runs) {
        for (std::int32_t i = 0; i < run.count; ++i) {
          const auto row = static_cast<std::size_t>(run.first_row) + static_cast<std::size_t>(i);
          places_[row] = {share, run.local_row + i};
        }
      }
    }
  }

  void place_samples(const StepInput& whole) {
    num_sampled_.assign(blocks_.count, 0);
    sampled_.clear();
    for (const std::int32_t row : whole.sample_rows) {
      const Place place = places_[static_cast<std::size_t>(row)];
      if (place.share == share_) { sampled_.push_back(place.row); }
      ++num_sampled_[place.share];
    }
    samples_.max_rows = *std::ranges::max_element(num_sampled_);
    num_sampled_.assign(blocks_.count, 0);
    samples_.sources.clear();
    for (const std::int32_t row : whole.sample_rows) {
      const std::uint32_t share = places_[static_cast<std::size_t>(row)].share;
      samples_.sources.push_back(static_cast<std::int32_t>(share) * samples_.max_rows + num_sampled_[share]++);
    }
  }

  void take_rows(const StepInput& whole) {
    const Share& mine = shares_[share_];
    StepInput& in =
        buffer_.layout({.num_tokens = static_cast<std::size_t>(mine.num_rows), .num_seqs = 0, .num_samples = sampled_.size()});
    in.step = whole.step;
    in.cu_query_lens[0] = 0;
    for (const Run& run : mine.runs) {
      const auto from = static_cast<std::size_t>(run.first_row), count = static_cast<std::size_t>(run.count);
      std::ranges::copy(whole.token_ids.subspan(from, count), in.token_ids.begin() + run.local_row);
      std::ranges::copy(whole.positions.subspan(from, count), in.positions.begin() + run.local_row);
    }
    std::iota(in.slot_mapping.begin(), in.slot_mapping.end(), SlotId{0});
    std::ranges::copy(sampled_, in.sample_rows.begin());
  }

  /// The slots of a part that the queries of a run see. Two runs of one sequence are the end of the lower chunk and the
  /// beginning of the higher one, so their slots are consecutive.
  static Shard keys_of(const Run& run, const Share& part) noexcept {
    Shard keys;
    for (const Run& other : part.runs) {
      if (other.local_row >= part.num_shared_rows) { break; }
      if (other.seq != run.seq || other.first_row > run.first_row) { continue; }
      if (keys.end == 0) { keys.begin = other.local_row; }
      keys.end = other.local_row + other.count;
    }
    return keys;
  }

  void plan_round(const StepInput& whole, std::uint32_t k) {
    Round& round = rounds_[k];
    round.has_keys = false;
    round.key_begins.clear();
    round.key_ends.clear();
    round.kept.clear();
    const Share& part = shares_[origin(k)];
    round.num_rows = part.num_shared_rows;
    const Share& mine = shares_[share_];
    for (const Run& run : mine.runs) {
      const bool is_alone = run.local_row >= mine.num_shared_rows;
      const Shard keys = is_alone ? Shard{run.local_row, run.local_row + (k == 0 ? 1 : 0)} : keys_of(run, part);
      round.key_begins.push_back(keys.begin);
      round.key_ends.push_back(keys.end);
      round.has_keys = round.has_keys || keys.size() > 0;
    }
    for (const Run& run : part.runs) {
      for (std::int32_t i = 0; i < run.count; ++i) {
        const auto row = static_cast<std::size_t>(run.first_row) + static_cast<std::size_t>(i);
        const SlotId slot = whole.slot_mapping[row];
        if (slot == no_slot || blocks_.share_of(whole.positions[row]) != share_) { continue; }
        round.kept.push_back({.from = run.local_row + i, .to = blocks_.local_slot(slot)});
      }
    }
  }

  void plan_past(const StepInput& whole) {
    past_.num_rows.assign(blocks_.count, 0);
    past_.rows.clear();
    past_.query_bounds.assign(1, 0);
    past_.num_keys.clear();
    past_.block_tables.clear();
    for (std::uint32_t share = 0; share < blocks_.count; ++share) {
      for_each_past_run(whole, share, [&](const Run& run) { past_.num_rows[share] += run.count; });
    }
    past_.max_rows = *std::ranges::max_element(past_.num_rows);
    for_each_past_run(whole, share_, [&](const Run& run) {
      for (std::int32_t i = 0; i < run.count; ++i) { past_.rows.push_back(run.local_row + i); }
    });
    const auto width = static_cast<std::size_t>(whole.max_blocks_per_seq);
    const auto add = [&](std::int32_t num_rows, std::int32_t num_keys, std::span<const BlockId> table) {
      past_.query_bounds.push_back(past_.query_bounds.back() + num_rows);
      past_.num_keys.push_back(num_keys);
      past_.block_tables.insert(past_.block_tables.end(), table.begin(), table.end());
      past_.block_tables.resize(past_.num_keys.size() * width);
    };
    for (std::uint32_t share = 0; share < blocks_.count; ++share) {
      for_each_past_run(whole, share, [&](const Run& run) {
        add(run.count, blocks_.tokens_of(share_, past_of(whole, run.seq)), whole.block_tables.subspan(run.seq * width, width));
      });
      const std::int32_t padding = past_.max_rows - past_.num_rows[share];
      if (padding > 0) { add(padding, 0, {}); }
    }
  }

  /// The runs of a share whose sequences have a past.
  template <class F>
  void for_each_past_run(const StepInput& whole, std::uint32_t share, F&& f) const {
    for (const Run& run : shares_[share].runs) {
      if (past_of(whole, run.seq) > 0) { f(run); }
    }
  }

  static void set_query_lens(AttentionMetadata& metadata) noexcept {
    for (std::size_t i = 0; i < metadata.seq_lens.size(); ++i) {
      const std::int32_t count = metadata.cu_query_lens[i + 1] - metadata.cu_query_lens[i];
      metadata.min_query_len = i == 0 ? count : std::min(metadata.min_query_len, count);
      metadata.max_query_len = std::max(metadata.max_query_len, count);
    }
  }

  std::uint32_t share_;
  StripedBlocks blocks_;
  std::vector<Share> shares_;
  std::vector<Place> places_;  // [tokens of the step]
  std::int32_t num_shared_rows_ = 0;
  StepBuffer buffer_;                       // of `mine`
  std::vector<std::int32_t> query_bounds_;  // cu_query_lens of this rank's runs
  std::vector<std::int32_t> sampled_;       // rows of `mine`
  std::vector<std::int32_t> num_sampled_;   // of each share
  std::vector<std::int32_t> all_rows_;
  std::vector<BlockId> identity_;  // the block table of every part
  std::vector<Round> rounds_;
  Past past_;
  Samples samples_;
};

}  // namespace nvl::inline NVL_ABI
