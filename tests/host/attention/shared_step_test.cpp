#include <nvl/attention/shared_step.hpp>

#include "support/property.hpp"

#include <catch2/catch_test_macros.hpp>
#include <rapidcheck.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace shared_step_test {

using namespace nvl;

namespace {

/// [tokens] of a sequence before a step and in it.
struct Lengths {
  std::int32_t past = 0;
  std::int32_t num_queries = 1;
};

constexpr std::int32_t block_size = 4;

/// A step of such sequences over blocks of `num_shares` x block_size tokens. Token ids tell the rows apart; the last sequence's
/// tokens are stored nowhere if `hides_last`.
class WholeStep {
 public:
  WholeStep(std::span<const Lengths> seqs, std::uint32_t num_shares, bool hides_last = false)
      : seqs_(seqs.begin(), seqs.end()),
        blocks_{.block_size = block_size, .count = num_shares} {
    std::size_t num_tokens = 0, width = 0;
    for (const Lengths& s : seqs_) {
      num_tokens += static_cast<std::size_t>(s.num_queries);
      width = std::max(width, static_cast<std::size_t>(ceil_div(s.past + s.num_queries, blocks_.tokens_per_block())));
    }
    StepInput& in = buffer_.layout(
        {.num_tokens = num_tokens, .num_seqs = seqs_.size(), .max_blocks_per_seq = width, .num_samples = 2 * seqs_.size()});
    std::uint32_t next_block = 3;
    std::size_t row = 0;
    in.cu_query_lens[0] = 0;
    for (std::size_t s = 0; s < seqs_.size(); ++s) {
      for (std::size_t i = 0; i < width; ++i) { in.block_tables[s * width + i] = BlockId{next_block++}; }
      in.seq_lens[s] = seqs_[s].past + seqs_[s].num_queries;
      for (std::int32_t p = seqs_[s].past; p < in.seq_lens[s]; ++p, ++row) {
        in.token_ids[row] = static_cast<TokenId>(row);
        in.positions[row] = p;
        const auto block = index_of(in.block_tables[s * width + static_cast<std::size_t>(p / blocks_.tokens_per_block())]);
        const bool is_hidden = hides_last && s + 1 == seqs_.size();
        in.slot_mapping[row] = is_hidden ? no_slot : SlotId{block} * blocks_.tokens_per_block() + p % blocks_.tokens_per_block();
      }
      in.cu_query_lens[s + 1] = static_cast<std::int32_t>(row);
      in.sample_rows[2 * s] = static_cast<std::int32_t>(row) - 1;  // two choices that begin with the same row
      in.sample_rows[2 * s + 1] = static_cast<std::int32_t>(row) - 1;
    }
    for (std::uint32_t share = 0; share < num_shares; ++share) {
      shares_.emplace_back(share, blocks_);
      shares_.back().derive(in);
    }
  }

  const StepInput& in() const { return buffer_.input(); }
  const SharedStep& share(std::size_t i) const { return shares_[i]; }
  std::size_t num_shares() const { return shares_.size(); }

  std::size_t seq_of(std::size_t row) const {
    const auto end = std::ranges::upper_bound(in().cu_query_lens, static_cast<std::int32_t>(row));
    return static_cast<std::size_t>(end - in().cu_query_lens.begin()) - 1;
  }

  /// What is wrong with it, or nothing.
  std::string problem() const {
    std::map<TokenId, int> computed;
    for (const SharedStep& share : shares_) {
      for (const TokenId id : share.mine().token_ids) { ++computed[id]; }
      if (share.mine().num_tokens() > max_share_rows(in().num_tokens(), in().num_seqs(), blocks_.count)) {
        return "a share has more rows than memory is planned for";
      }
    }
    if (computed.size() != in().token_ids.size()) { return "a row is computed by nobody"; }
    for (const auto& [id, count] : computed) {
      if (count != 1) { return "row " + std::to_string(id) + " is computed " + std::to_string(count) + " times"; }
    }
    if (const std::string why = storage_problem(); !why.empty()) { return why; }
    if (const std::string why = samples_problem(); !why.empty()) { return why; }
    return visibility_problem();
  }

 private:
  /// Every token is kept once, by the rank and in the slot that its position says.
  std::string storage_problem() const {
    std::set<std::tuple<std::size_t, SlotId>> kept;
    for (std::size_t i = 0; i < shares_.size(); ++i) {
      for (std::uint32_t k = 0; k < (shares_[i].has_rounds() ? blocks_.count : 1); ++k) {
        for (const SlotCopy& copy : shares_[i].round(k).kept) {
          if (k > 0 && copy.from >= shares_[i].round(k).num_rows) { return "a row is kept that does not go round"; }
          const auto row = row_of(shares_[i].origin(k), copy.from);
          const SlotId slot = in().slot_mapping[row];
          const auto at = in().positions[row] % blocks_.tokens_per_block();
          const SlotId expected = slot / blocks_.tokens_per_block() * block_size + at % block_size;
          if (i != static_cast<std::size_t>(at / block_size) || copy.to != expected) {
            return "a token is kept in a wrong place";
          }
          if (!kept.emplace(i, copy.to).second) { return "a token is kept twice"; }
        }
      }
    }
    const auto stored = std::ranges::count_if(in().slot_mapping, [](SlotId slot) { return slot != no_slot; });
    return std::ssize(kept) == stored ? "" : "a token is not kept";
  }

  std::string samples_problem() const {
    for (std::size_t r = 0; r < in().sample_rows.size(); ++r) {
      const SharedStep::Samples& samples = shares_.front().samples();
      const auto source = static_cast<std::size_t>(samples.sources[r]), width = static_cast<std::size_t>(samples.max_rows);
      const StepInput& mine = shares_[source / width].mine();
      const auto row = static_cast<std::size_t>(mine.sample_rows[source % width]);
      if (mine.token_ids[row] != in().token_ids[static_cast<std::size_t>(in().sample_rows[r])]) {
        return "another row is sampled";
      }
    }
    return "";
  }

  /// Over all rounds and ranks each query sees each key up to its own position, and each once.
  std::string visibility_problem() const {
    std::vector<std::multiset<std::int32_t>> seen(in().token_ids.size());  // positions, by row of the query
    for (std::size_t i = 0; i < shares_.size(); ++i) {
      for (std::uint32_t k = 0; k < (shares_[i].has_rounds() ? blocks_.count : 1); ++k) {
        const AttentionMetadata metadata = shares_[i].metadata_of_round(k);
        for (std::size_t run = 0; run < metadata.seq_lens.size(); ++run) {
          const std::int32_t first = metadata.cu_query_lens[run], end = metadata.cu_query_lens[run + 1];
          for (std::int32_t q = first; q < end; ++q) {
            const std::size_t query = row_of(i, q);
            const std::int32_t end_of_keys = metadata.seq_lens[run] - (metadata.is_causal ? end - 1 - q : 0);
            for (std::int32_t slot = metadata.key_begins[run]; slot < end_of_keys; ++slot) {
              if (k > 0 && slot >= shares_[i].round(k).num_rows) { return "a key is read that does not go round"; }
              const std::size_t key = row_of(shares_[i].origin(k), slot);
              if (seq_of(key) != seq_of(query)) { return "a query sees another sequence"; }
              seen[query].insert(in().positions[key]);
            }
          }
        }
      }
      if (const std::string why = see_past(i, seen); !why.empty()) { return why; }
    }
    for (std::size_t row = 0; row < seen.size(); ++row) {
      std::int32_t next = 0;
      for (const std::int32_t position : seen[row]) {
        if (position != next++) { return "row " + std::to_string(row) + " misses a key or sees one twice"; }
      }
      if (next != in().positions[row] + 1) { return "row " + std::to_string(row) + " sees too few or too many keys"; }
    }
    return "";
  }

  std::string see_past(std::size_t i, std::vector<std::multiset<std::int32_t>>& seen) const {
    const SharedStep::Past& past = shares_[i].past();
    const AttentionMetadata metadata = shares_[i].metadata_of_past(in().max_blocks_per_seq);
    if (metadata.num_tokens != past.max_rows * static_cast<std::int32_t>(shares_.size())) {
      return "gathered queries are left out";
    }
    const auto width = static_cast<std::size_t>(in().max_blocks_per_seq);
    for (std::size_t run = 0; run < metadata.seq_lens.size(); ++run) {
      for (std::int32_t q = metadata.cu_query_lens[run]; q < metadata.cu_query_lens[run + 1]; ++q) {
        const auto owner = static_cast<std::size_t>(q / past.max_rows), nth = static_cast<std::size_t>(q % past.max_rows);
        if (nth >= shares_[owner].past().rows.size()) {
          if (metadata.seq_lens[run] != 0) { return "a query that is not there sees keys"; }
          continue;
        }
        const std::size_t query = row_of(owner, shares_[owner].past().rows[nth]);
        const auto table = metadata.block_tables.subspan(run * width, width);
        if (!std::ranges::equal(table, in().block_tables.subspan(seq_of(query) * width, width))) { return "another block table"; }
        for (std::int32_t key = 0; key < metadata.seq_lens[run]; ++key) {  // the key-th that rank i keeps of the sequence
          seen[query].insert(key / block_size * blocks_.tokens_per_block() + static_cast<std::int32_t>(i) * block_size +
                             key % block_size);
        }
      }
    }
    return "";
  }

  /// The row of the step that is row `local` of a share.
  std::size_t row_of(std::size_t share, std::int64_t local) const {
    return static_cast<std::size_t>(shares_[share].mine().token_ids[static_cast<std::size_t>(local)]);
  }

  std::vector<Lengths> seqs_;
  StripedBlocks blocks_;
  StepBuffer buffer_;
  std::vector<SharedStep> shares_;
};

}  // namespace

TEST_CASE("however tokens are shared out, each is computed once, kept once, and sees what it should", "[attention][host]") {
  check_property("shared steps", 300, [] {
    const auto num_shares = *rc::gen::inRange<std::uint32_t>(1, 6);
    const auto lengths =
        rc::gen::map(rc::gen::pair(rc::gen::inRange(0, 60), rc::gen::oneOf(rc::gen::just(1), rc::gen::inRange(1, 50))),
                     [](const std::pair<int, int>& p) { return std::pair(p.first, p.second); });
    const auto drawn = *rc::gen::nonEmpty(rc::gen::container<std::vector<std::pair<int, int>>>(lengths));
    std::vector<Lengths> seqs;
    for (const auto& [past, num_queries] : drawn) { seqs.push_back({past, num_queries}); }
    const WholeStep step(seqs, num_shares, *rc::gen::arbitrary<bool>());
    const std::string problem = step.problem();
    RC_LOG() << problem;
    RC_ASSERT(problem.empty());
  });
}

TEST_CASE("a long prompt is as much work for one rank as for another", "[attention][host]") {
  const std::vector<Lengths> seqs{{0, 4000}};
  for (const std::uint32_t num_shares : {2u, 4u, 8u}) {
    const WholeStep step(seqs, num_shares);
    std::vector<std::int64_t> work;  // pairs of a query and a key
    for (std::size_t i = 0; i < step.num_shares(); ++i) {
      work.push_back(0);
      for (const std::int32_t position : step.share(i).mine().positions) { work.back() += position + 1; }
      CHECK(step.share(i).mine().num_tokens() == 4000 / static_cast<int>(num_shares));
    }
    const auto [least, most] = std::ranges::minmax(work);
    CHECK(static_cast<double>(most) < 1.001 * static_cast<double>(least));
  }
}

TEST_CASE("sequences that decode are computed where their tokens are kept, and nothing goes round", "[attention][host]") {
  const std::vector<Lengths> seqs{{0, 1}, {3, 1}, {4, 1}, {11, 1}, {12, 1}, {17, 1}};
  const WholeStep step(seqs, 3);
  CHECK(step.problem().empty());
  const std::vector<std::vector<TokenId>> expected{{0, 1, 4}, {2, 5}, {3}};
  for (std::size_t i = 0; i < step.num_shares(); ++i) {
    CHECK_FALSE(step.share(i).has_rounds());
    const auto ids = step.share(i).mine().token_ids;
    CHECK(std::vector<TokenId>(ids.begin(), ids.end()) == expected[i]);
    CHECK(step.share(i).round(0).kept.size() == expected[i].size());
  }
}

}  // namespace shared_step_test
