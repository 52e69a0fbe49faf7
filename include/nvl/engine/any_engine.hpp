#pragma once
/// An engine whose type is chosen at run time: the same calls behind a virtual interface.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/engine/engine_stats.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/model/any_weight_source.hpp>
#include <nvl/model/weights.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// What each member does: engine/engine.hpp.
class AnyEngine {
 public:
  using LogitsVisitor = std::function<void(std::int32_t position, std::span<const float> logits)>;

  virtual ~AnyEngine() = default;
  AnyEngine(const AnyEngine&) = delete;
  AnyEngine& operator=(const AnyEngine&) = delete;

  virtual void validate(const Request& request) const = 0;
  virtual RequestId submit(Request request, RequestCallbacks callbacks = {}) = 0;
  virtual bool abort(RequestId id) = 0;
  virtual bool step() = 0;
  virtual bool has_work() const = 0;
  virtual std::vector<Completion> generate(std::vector<Request> requests) = 0;
  virtual void prompt_logits(std::span<const TokenId> ids, const LogitsVisitor& visit, std::int32_t first = 0) = 0;
  virtual EngineStats stats() const = 0;
  virtual const std::string& failure() const = 0;
  virtual const ModelConfig& config() const = 0;
  virtual const MemoryPlan& memory_plan() const = 0;
  virtual std::vector<std::string> warnings() const = 0;

 protected:
  AnyEngine() = default;
};

namespace detail {

template <class E>
class AnyEngineOf final : public AnyEngine {
 public:
  template <class... Args>
  explicit AnyEngineOf(Args&&... args) : engine_(std::forward<Args>(args)...) {}

  void validate(const Request& request) const override { engine_.validate(request); }
  RequestId submit(Request request, RequestCallbacks callbacks) override {
    return engine_.submit(std::move(request), std::move(callbacks));
  }
  bool abort(RequestId id) override { return engine_.abort(id); }
  bool step() override { return engine_.step(); }
  bool has_work() const override { return engine_.has_work(); }
  std::vector<Completion> generate(std::vector<Request> requests) override { return engine_.generate(std::move(requests)); }
  void prompt_logits(std::span<const TokenId> ids, const LogitsVisitor& visit, std::int32_t first) override {
    engine_.prompt_logits(ids, visit, first);
  }
  EngineStats stats() const override { return engine_.stats(); }
  const std::string& failure() const override { return engine_.failure(); }
  const ModelConfig& config() const override { return engine_.config(); }
  const MemoryPlan& memory_plan() const override { return engine_.memory_plan(); }
  std::vector<std::string> warnings() const override { return engine_.warnings(); }

 private:
  E engine_;
};

}  // namespace detail

/// An `E`, behind the interface. `source` is any WeightSource. A host that wants fast builds declares this function
/// `extern template` for its engine type and instantiates it in one file of its own.
template <class E>
std::unique_ptr<AnyEngine> make_any_engine(const ModelConfig& config, AnyWeightSource source, const EngineOptions& options,
                                           const LoadProgress& progress, typename E::ParallelType parallel = {}) {
  return std::make_unique<detail::AnyEngineOf<E>>(config, source, options, progress, std::move(parallel));
}

}  // namespace nvl::inline NVL_ABI
