#pragma once
/// A WeightSource of whatever type, so that what loads from it is compiled once for all of them.

#include <nvl/core/config.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/model/weights.hpp>

#include <concepts>
#include <string_view>

namespace nvl::inline NVL_ABI {

/// Refers to a source, which outlives it. A function that takes one is called with any source.
class AnyWeightSource {
 public:
  template <WeightSource Source>
    requires(!std::same_as<Source, AnyWeightSource>)
  AnyWeightSource(const Source& source) noexcept  // NOLINT(google-explicit-constructor): see above
      : source_(&source),
        find_([](const void* object, std::string_view name) -> const HostTensor* {
          return static_cast<const Source*>(object)->find(name);
        }) {}

  const HostTensor* find(std::string_view canonical_name) const { return find_(source_, canonical_name); }

 private:
  const void* source_;
  const HostTensor* (*find_)(const void*, std::string_view);
};
static_assert(WeightSource<AnyWeightSource>);

}  // namespace nvl::inline NVL_ABI
