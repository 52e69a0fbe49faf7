#pragma once
/// A BlockAllocator beside a model that knows what it must do. After every operation the two are compared.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/block_table.hpp>
#include <nvl/kv/prefix_cache.hpp>
#include <nvl/testing/violations.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI::testing {

/// Drives one allocator. Holders stand for sequences: each has one reference to each block of its table. Operations take any
/// numbers and reduce them to what is possible, so that a list of random numbers is a test.
template <BlockAllocator A>
class AllocatorModel {
 public:
  explicit AllocatorModel(const BlockPoolShape& shape) : AllocatorModel(shape, A(shape)) {}
  AllocatorModel(const BlockPoolShape& shape, A allocator)
      : shape_(shape),
        allocator_(std::move(allocator)),
        num_owners_(shape.num_blocks, 0),
        content_(shape.num_blocks),
        ids_(shape.num_blocks),
        host_content_(shape.num_host_blocks),
        host_ids_(shape.num_host_blocks),
        host_is_held_(shape.num_host_blocks, false) {
    check("after construction");
  }

  /// A new holder with `count` new blocks, if there are so many.
  bool allocate(std::uint32_t count) {
    Holder holder;
    const bool ok = take_new(holder, count);
    if (ok && count > 0) { holders_.push_back(std::move(holder)); }
    check("after try_allocate(" + std::to_string(count) + ")");
    return ok;
  }

  /// The holder gives up its blocks, all at once, or one by one in the order of `order`.
  void release(std::size_t which, std::optional<std::uint64_t> order = std::nullopt) {
    if (holders_.empty()) { return; }
    which %= holders_.size();
    std::vector<BlockId> table = std::move(holders_[which].table);
    holders_.erase(holders_.begin() + static_cast<std::ptrdiff_t>(which));
    for (const BlockId id : table) { --num_owners_[index_of(id)]; }
    if (order) {
      for (std::uint64_t r = *order; !table.empty(); r = r * 6364136223846793005u + 1442695040888963407u) {
        const auto victim = table.begin() + static_cast<std::ptrdiff_t>((r >> 33) % table.size());
        allocator_.release(std::span(&*victim, 1));
        table.erase(victim);
      }
    } else {
      allocator_.release(table);
    }
    check("after release");
  }

  /// A second holder of the same blocks.
  void share(std::size_t which)
    requires SharingAllocator<A>
  {
    if (holders_.empty()) { return; }
    Holder copy = holders_[which % holders_.size()];
    allocator_.share(copy.table);
    for (const BlockId id : copy.table) { ++num_owners_[index_of(id)]; }
    copy.num_published = 0;  // it found its blocks through no prefix
    copy.may_publish = false;
    holders_.push_back(std::move(copy));
    check("after share");
  }

  /// What admission of a sequence does: match, then new blocks for the rest of `tokens`. False: no room, all given back.
  bool admit(const std::string& salt, const std::vector<TokenId>& tokens)
    requires PrefixCachingAllocator<A>
  {
    const std::size_t size = shape_.block_size;
    Holder holder;
    holder.salt = salt;
    holder.tokens = tokens;
    holder.may_publish = true;
    holder.prefix = allocator_.root(salt);
    violations_.expect(allocator_.root(salt) == holder.prefix, "root: the same salt has two roots");
    const std::uint32_t found = allocator_.lookup(holder.prefix, holder.tokens);
    const std::uint32_t free_before = allocator_.num_free();
    const PrefixId root = holder.prefix;
    const PrefixCacheStats before = stats();
    holder.prefix = allocator_.match(root, holder.tokens, holder.table);
    const std::size_t matched = holder.table.size();
    if constexpr (ManagedPrefixCache<A>) {
      violations_.expect(stats().queried_tokens == before.queried_tokens + holder.tokens.size() &&
                             stats().hit_tokens == before.hit_tokens + matched * size,
                         "match counted other tokens than it was asked for and found");
    }
    violations_.expect(found == matched * size, "lookup found " + std::to_string(found) + " tokens, match " +
                                                    std::to_string(matched) + " blocks of " + std::to_string(size));
    violations_.expect(matched > 0 || holder.prefix == root, "match found nothing and did not return the root");
    if (!violations_.expect(matched * size <= holder.tokens.size(), "match returned more blocks than the tokens fill")) {
      return false;
    }
    std::uint32_t woken = 0;
    for (std::size_t i = 0; i < matched; ++i) {
      const std::uint32_t b = index_of(holder.table[i]);
      if (!violations_.expect(b < shape_.num_blocks, "match returned an id that is out of range")) { return false; }
      violations_.expect(content_[b].has_value() && *content_[b] == history(holder, i + 1),
                         "match returned block " + std::to_string(b) + ", which holds something else");
      if (num_owners_[b]++ == 0) { ++woken; }
      holder.epochs.push_back(epoch_of(history(holder, i + 1)));
    }
    holder.num_published = matched;
    violations_.expect(allocator_.num_free() + woken == free_before,
                       "num_free after match is not what it was less the blocks taken");
    check("after match");
    const bool is_in_host = match_host(holder);
    if (!is_in_host) { match_head(holder); }

    const auto need =
        static_cast<std::uint32_t>(blocks_for(static_cast<std::int32_t>(holder.tokens.size()), static_cast<std::int32_t>(size)));
    const bool ok = take_new(holder, need - static_cast<std::uint32_t>(matched));
    if (!ok) {
      for (const BlockId id : holder.table) { --num_owners_[index_of(id)]; }
      allocator_.release(holder.table);
    } else if (!holder.table.empty()) {
      holders_.push_back(std::move(holder));
    }
    check("after admission");
    return ok;
  }

  /// The holder has computed its next full block.
  void publish(std::size_t which)
    requires PrefixCachingAllocator<A>
  {
    if (holders_.empty()) { return; }
    Holder& holder = holders_[which % holders_.size()];
    const std::size_t i = holder.num_published;
    if (!holder.may_publish || (i + 1) * shape_.block_size > holder.tokens.size()) { return; }
    const History now = history(holder, i + 1);
    const BlockId own = holder.table[i];
    content_[index_of(own)] = now;
    const auto tokens = std::span<const TokenId>(holder.tokens).subspan(i * shape_.block_size, shape_.block_size);
    const PrefixId parent = holder.prefix;
    holder.prefix = allocator_.publish(parent, tokens, holder.table[i]);
    if (const BlockId merged = holder.table[i]; merged != own) {
      if (!violations_.expect(index_of(merged) < shape_.num_blocks && content_[index_of(merged)] == now,
                              "publish put in a block that holds something else")) {
        return;
      }
      content_[index_of(own)].reset();
      --num_owners_[index_of(own)];
      ++num_owners_[index_of(merged)];
    }
    ids_[index_of(holder.table[i])] = holder.prefix;
    violations_.expect(allocator_.publish(parent, tokens, holder.table[i]) == holder.prefix,
                       "publishing a block twice gave two ids");
    holder.epochs.push_back(epoch_of(now));
    ++holder.num_published;
    check("after publish");
  }

  /// The content of one block of a holder turned out to be damaged.
  void forget(std::size_t which, std::size_t block)
    requires PrefixCachingAllocator<A>
  {
    if (holders_.empty()) { return; }
    const Holder& holder = holders_[which % holders_.size()];
    const BlockId id = holder.table[block % holder.table.size()];
    if (auto& content = content_[index_of(id)]) {
      ++epochs_[*content];
      for (std::size_t h = 0; h < host_content_.size(); ++h) {
        if (host_ids_[h] == ids_[index_of(id)]) { host_content_[h].reset(); }
      }
      content.reset();
    }
    allocator_.forget(id);
    check("after forget");
  }

  /// The end of `schedule`: at most `most` idle blocks go to the host.
  void demote(std::size_t most)
    requires TieredPrefixCache<A>
  {
    std::vector<BlockTransfer> transfers;
    allocator_.take_demotions(most, transfers);
    violations_.expect(transfers.size() <= most, "take_demotions gave more than it was asked for");
    std::set<HostBlockId> targets;
    for (const BlockTransfer& transfer : transfers) {
      const std::uint32_t b = index_of(transfer.device), h = index_of(transfer.host);
      if (!violations_.expect(b < shape_.num_blocks && h < shape_.num_host_blocks, "a transfer's id is out of range")) { return; }
      violations_.expect(num_owners_[b] == 0 && content_[b].has_value(),
                         "a block is written out that is in use or holds nothing");
      violations_.expect(!host_is_held_[h] && !host_owned_.contains(transfer.host) && targets.insert(transfer.host).second,
                         "a host block is written that is in use");
      host_content_[h] = content_[b];
      host_ids_[h] = ids_[b];
    }
    host_is_held_.assign(shape_.num_host_blocks, false);
    check("after take_demotions");
  }

  /// `count` host blocks for a sequence that is swapped out.
  void allocate_host(std::uint32_t count)
    requires TieredAllocator<A>
  {
    std::vector<HostBlockId> taken(count);
    const std::uint32_t free_before = allocator_.num_free_host();
    const bool ok = allocator_.try_allocate_host(taken);
    violations_.expect(ok == (count <= free_before), "try_allocate_host does not do what num_free_host promises");
    for (const HostBlockId id : ok ? taken : std::vector<HostBlockId>()) {
      if (!violations_.expect(index_of(id) < shape_.num_host_blocks, "a host id is out of range")) { return; }
      violations_.expect(host_owned_.insert(id).second, "try_allocate_host gave a block that has an owner");
      violations_.expect(!host_is_held_[index_of(id)], "try_allocate_host gave a block that is about to be read");
      host_content_[index_of(id)].reset();
    }
    check("after try_allocate_host");
  }

  void release_host(std::size_t which)
    requires TieredAllocator<A>
  {
    if (host_owned_.empty()) { return; }
    const auto victim = std::next(host_owned_.begin(), static_cast<std::ptrdiff_t>(which % host_owned_.size()));
    const HostBlockId id = *victim;
    host_owned_.erase(victim);
    allocator_.release_host(std::span(&id, 1));
    check("after release_host");
  }

  /// What a holder published is pinned, or not any more.
  void pin(std::size_t which, bool pinned)
    requires ManagedPrefixCache<A>
  {
    if (holders_.empty()) { return; }
    const Holder& holder = holders_[which % holders_.size()];
    const PrefixId root = allocator_.root(holder.salt);
    const std::uint32_t found = allocator_.lookup(root, holder.tokens);
    const std::uint32_t done = pinned ? allocator_.pin(root, holder.tokens) : allocator_.unpin(root, holder.tokens);
    violations_.expect(done <= found && done % shape_.block_size == 0 && (pinned || done == found),
                       "pin or unpin reached other tokens than those that are cached");
    check(pinned ? "after pin" : "after unpin");
  }

  void reset()
    requires ManagedPrefixCache<A>
  {
    allocator_.reset();
    ++num_resets_;
    content_.assign(shape_.num_blocks, std::nullopt);
    host_content_.assign(shape_.num_host_blocks, std::nullopt);
    for (const Holder& holder : holders_) {
      violations_.expect(allocator_.lookup(allocator_.root(holder.salt), holder.tokens) == 0, "something is found after reset");
    }
    check("after reset");
  }

  void release_all() {
    if constexpr (TieredAllocator<A>) {
      while (!host_owned_.empty()) { release_host(0); }
    }
    if constexpr (TieredPrefixCache<A>) { demote(0); }
    while (!holders_.empty()) { release(holders_.size() - 1); }
    violations_.expect(allocator_.num_free() == shape_.num_blocks, "not every block is free after the last release");
  }

  std::size_t num_holders() const noexcept { return holders_.size(); }
  A& allocator() noexcept { return allocator_; }
  const Violations& violations() const noexcept { return violations_; }

 private:
  using History = std::pair<std::string, std::vector<TokenId>>;  // salt and all tokens up to the end of a block

  struct Holder {
    std::vector<BlockId> table;
    std::string salt;
    std::vector<TokenId> tokens;
    std::size_t num_published = 0;      // [blocks] at the head of the table
    PrefixId prefix{};                  // ends the last of them
    std::vector<std::uint32_t> epochs;  // of each of them: how often its history had been forgotten by then
    bool may_publish = false;
  };

  History history(const Holder& holder, std::size_t num_blocks) const {
    const auto end = holder.tokens.begin() + static_cast<std::ptrdiff_t>(num_blocks * shape_.block_size);
    return {holder.salt, std::vector<TokenId>(holder.tokens.begin(), end)};
  }
  std::uint32_t epoch_of(const History& history) const {
    const auto found = epochs_.find(history);
    return num_resets_ + (found == epochs_.end() ? 0 : found->second);
  }
  PrefixCacheStats stats() const {
    if constexpr (ManagedPrefixCache<A>) { return allocator_.stats(); }
    return {};
  }

  /// What follows the matched blocks of `holder` and is in host memory. False: nothing.
  bool match_host(const Holder& holder) {
    if constexpr (TieredPrefixCache<A>) {
      const std::size_t matched = holder.table.size();
      std::vector<HostBlockId> hosts;
      const PrefixId end = allocator_.match_host(
          holder.prefix, std::span<const TokenId>(holder.tokens).subspan(matched * shape_.block_size), hosts);
      violations_.expect(hosts.empty() == (end == holder.prefix), "match_host found something and returned the prefix before it");
      for (std::size_t i = 0; i < hosts.size(); ++i) {
        const std::uint32_t h = index_of(hosts[i]);
        if (!violations_.expect(h < shape_.num_host_blocks && (matched + i + 1) * shape_.block_size <= holder.tokens.size(),
                                "match_host returned an id that is out of range, or too many")) {
          return true;
        }
        violations_.expect(host_content_[h] == history(holder, matched + i + 1),
                           "match_host returned host block " + std::to_string(h) + ", which holds something else");
        host_is_held_[h] = true;
      }
      check("after match_host");
      return !hosts.empty();
    }
    return false;
  }

  void match_head(const Holder& holder) {
    if constexpr (PartialMatchAllocator<A>) {
      const std::size_t known = holder.table.size() * shape_.block_size;
      const std::span<const TokenId> rest = std::span<const TokenId>(holder.tokens).subspan(known);
      const PartialMatch found = allocator_.match_head(holder.prefix, rest);
      if (found.num_tokens == 0) { return; }
      const std::uint32_t b = index_of(found.block);
      if (!violations_.expect(b < shape_.num_blocks && content_[b].has_value() && found.num_tokens < shape_.block_size &&
                                  found.num_tokens <= rest.size(),
                              "match_head returned no cached block, or more of it than there is")) {
        return;
      }
      const auto& [salt, tokens] = *content_[b];
      violations_.expect(salt == holder.salt && tokens.size() == known + shape_.block_size &&
                             std::equal(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(known + found.num_tokens),
                                        holder.tokens.begin()),
                         "match_head returned a block that begins with something else");
      ++num_owners_[b];
      check("after match_head");
      --num_owners_[b];
      allocator_.release(std::span(&found.block, 1));
      check("after match_head was given back");
    }
  }

  bool take_new(Holder& holder, std::uint32_t count) {
    const std::uint32_t free_before = allocator_.num_free();
    std::vector<BlockId> fresh(count);
    const bool ok = allocator_.try_allocate(fresh);
    violations_.expect(ok == (count <= free_before), "try_allocate(" + std::to_string(count) + ") said " +
                                                         (ok ? "true" : "false") + " with " + std::to_string(free_before) +
                                                         " free");
    violations_.expect(allocator_.num_free() == free_before - (ok ? count : 0),
                       "try_allocate moved num_free by another number than it gave");
    if (!ok) { return false; }
    for (const BlockId id : fresh) {
      const std::uint32_t b = index_of(id);
      if (!violations_.expect(b < shape_.num_blocks,
                              "try_allocate gave the id " + std::to_string(b) + ", which is out of range")) {
        continue;
      }
      violations_.expect(num_owners_[b] == 0, "try_allocate gave block " + std::to_string(b) + ", which has an owner");
      ++num_owners_[b];
      content_[b].reset();
      holder.table.push_back(id);
    }
    return true;
  }

  void check(const std::string& when) {
    violations_.during(when);
    violations_.expect(allocator_.num_blocks() == shape_.num_blocks, "num_blocks has changed");
    std::uint32_t unowned = 0;
    for (std::uint32_t b = 0; b < shape_.num_blocks; ++b) {
      unowned += num_owners_[b] == 0 ? 1 : 0;
      if constexpr (SharingAllocator<A>) {
        const std::uint32_t owners = allocator_.num_owners(BlockId{b});
        violations_.expect(owners == num_owners_[b], "block " + std::to_string(b) + " has " + std::to_string(num_owners_[b]) +
                                                         " owners, num_owners says " + std::to_string(owners));
      }
    }
    violations_.expect(allocator_.num_free() == unowned, "num_free is " + std::to_string(allocator_.num_free()) + ", " +
                                                             std::to_string(unowned) + " blocks have no owner");
    if constexpr (TieredAllocator<A>) {
      const auto num_held = static_cast<std::size_t>(std::count(host_is_held_.begin(), host_is_held_.end(), true));
      violations_.expect(allocator_.num_host_blocks() == shape_.num_host_blocks, "num_host_blocks has changed");
      violations_.expect(allocator_.num_free_host() == shape_.num_host_blocks - host_owned_.size() - num_held,
                         "num_free_host is not the number of host blocks that nobody owns or is about to read");
    }
    if constexpr (PrefixCachingAllocator<A>) {
      for (const Holder& holder : holders_) { check_found(holder); }
    }
    violations_.during("");
  }

  /// What a holder has published and still holds is found, unless it or what it was computed from was forgotten.
  void check_found(const Holder& holder) {
    std::size_t expected = 0;
    while (expected < holder.num_published && holder.epochs[expected] == epoch_of(history(holder, expected + 1))) { ++expected; }
    const std::uint32_t found = allocator_.lookup(allocator_.root(holder.salt), holder.tokens);
    violations_.expect(found >= expected * shape_.block_size, "published blocks in use are not found: " + std::to_string(found) +
                                                                  " tokens of " + std::to_string(expected * shape_.block_size));
  }

  BlockPoolShape shape_;
  A allocator_;
  std::vector<std::uint32_t> num_owners_;        // [num_blocks]
  std::vector<std::optional<History>> content_;  // [num_blocks] what was last published in it and not forgotten
  std::vector<PrefixId> ids_;                    // [num_blocks] that it was published with
  std::map<History, std::uint32_t> epochs_;      // how often each history was forgotten
  std::uint32_t num_resets_ = 0;
  std::vector<std::optional<History>> host_content_;  // [num_host_blocks] copied there and not overwritten
  std::vector<PrefixId> host_ids_;                    // [num_host_blocks] that the content was published with
  std::vector<bool> host_is_held_;                    // [num_host_blocks] found since the last demote
  std::set<HostBlockId> host_owned_;                  // by sequences that are swapped out
  std::vector<Holder> holders_;
  Violations violations_;
};

}  // namespace nvl::inline NVL_ABI::testing
