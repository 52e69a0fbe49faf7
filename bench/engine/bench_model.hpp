#pragma once
/// The model of a benchmark, from a file or made up, and engines for it.

#include "bench/support/device_report.hpp"
#include "bench/support/report.hpp"
#include "bench/support/roofline.hpp"
#include "bench/support/verify.hpp"
#include "support/engines.hpp"
#include "support/model_options.hpp"
#include "support/options.hpp"

#include <nvl/core/dtype.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/engine/any_engine.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/io/checkpoint.hpp>
#include <nvl/model/random_weights.hpp>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace nvl_bench {

/// Which model runs where, and what is checked and written. Options of all commands.
struct CommonOptions {
  nvl_examples::ModelOptions model;
  nvl_examples::CapacityOptions capacity;
  std::optional<std::string> random_weights;
  bool batch_invariant = false;
  std::uint64_t seed = 0;
  std::optional<std::int32_t> num_verified;  // requests; none: 16, and 0 on the CPU
  VerifyOptions verify;
  bool verify_control = false;
  PeakRates peak;  // as given: 0 = that of the device, if it is known
  std::optional<std::filesystem::path> output_json;

  void add_model_to(nvl_examples::OptionParser& parser);
  void add_rest_to(nvl_examples::OptionParser& parser);
  /// \throws UsageError
  void validate();
  std::string model_name() const { return model.model.filename().string(); }
};

/// \throws UsageError unless `value` is 1 to 2^24
void require_at_least_one(const std::string& name, std::int64_t value);

class BenchModel {
 public:
  /// Opens the checkpoint, or makes up the weights. \throws UsageError, FileError, Unsupported
  explicit BenchModel(const CommonOptions& common);

  const nvl::ModelConfig& config() const { return checkpoint_ ? checkpoint_->config() : config_; }
  nvl::DType dtype() const { return dtype_; }  ///< of activations and KV
  ModelBytes bytes() const;

  /// Without a tokenizer: prompts are random ids and nobody reads the text.
  /// \throws UsageError if `options.max_model_len`, the longest request, is beyond what the model was made for
  std::unique_ptr<nvl::AnyEngine> make_engine(const CommonOptions& common, nvl::EngineOptions options,
                                              const nvl::LoadProgress& progress) const;
  /// The float32 CPU engine that judges.
  std::unique_ptr<nvl::AnyEngine> make_reference(const CommonOptions& common, nvl::EngineOptions options) const;
  /// Exchanges two matrices of the random weights: an engine made before must not agree with one made afterwards.
  void spoil();
  /// The random weights.
  void write_checkpoint_to(const std::filesystem::path& directory) const;

 private:
  nvl::AnyWeightSource source() const;

  nvl::ModelConfig config_;
  nvl::DType dtype_ = nvl::DType::float32;
  std::optional<nvl::RandomWeights> weights_;
  std::optional<nvl::Checkpoint> checkpoint_;
};

/// The device of a measurement that has just ended: its clocks are those of this moment.
DeviceReport describe_device(const CommonOptions& common);

/// An engine, and what its report says about it.
struct OpenedEngine {
  std::unique_ptr<nvl::AnyEngine> engine;
  double load_seconds = 0;
};

/// On standard error, what was odd at the engine's start but did no harm.
void print_warnings(const nvl::AnyEngine& engine);

OpenedEngine open_engine(const BenchModel& model, const CommonOptions& common, const nvl::EngineOptions& options);

/// Runs the check of verify.hpp in front of a measurement, with `batch` requests of `load` at once.
/// \param answers that are judged too
/// \return nothing if no check was asked for
/// \throws std::runtime_error if an answer is wrong
std::optional<Verdict> verify_engine(nvl::AnyEngine& engine, BenchModel& model, const CommonOptions& common, const Workload& load,
                                     std::size_t batch, std::vector<Answer> answers = {});

}  // namespace nvl_bench
