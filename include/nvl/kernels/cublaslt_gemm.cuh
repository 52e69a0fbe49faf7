#pragma once
/// Linear layers through cuBLASLt: out[t, o] = sum_i x[t, i] w[o, i] (+ bias[o]), sums in float.
/// Oracle: kernels/reference/linear.hpp. What is measured and chosen: docs/kernels/linear.md.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/gemm_algo_cache.hpp>
#include <nvl/kernels/gemm_workspace.hpp>
#include <nvl/version.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include <cublasLt.h>
#include <cuda_runtime.h>

/// Throws CudaError if `call`, a cuBLASLt call, fails.
#define NVL_CUBLAS_CHECK(call) ::nvl::kernels::detail::check_cublas((call), #call)

namespace nvl::inline NVL_ABI {
namespace kernels {

namespace detail {

inline void check_cublas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]] { return; }
  raise(CudaError(static_cast<int>(status), call, cublasLtGetStatusString(status)));
}

inline cudaDataType_t cuda_dtype(DType type) {
  switch (type) {
    case DType::float32: return CUDA_R_32F;
    case DType::float16: return CUDA_R_16F;
    case DType::bfloat16: return CUDA_R_16BF;
    default: break;
  }
  raise(InvalidArgument("dtype of a matrix", std::string(info(type).name), "float32, float16 or bfloat16"));
}

/// Descriptors and algorithm of one kind of call. cuBLASLt is column-major, so it computes out^T = w x^T:
/// "A" is the weight, transposed, "B" is x, "D" is out.
struct CublasLtPlan {
  cublasLtMatmulDescOpaque_t desc{};
  cublasLtMatrixLayoutOpaque_t weight{}, x{}, out{};
  cublasLtMatmulAlgo_t algo{};
  std::uint64_t num_rows = 0;  // that `x` and `out` stand for
};

struct GemmKeyHash {
  std::size_t operator()(const GemmKey& key) const noexcept {
    std::uint64_t hash = (static_cast<std::uint64_t>(key.out_features) << 32 | static_cast<std::uint32_t>(key.in_features)) *
                         0x9e3779b97f4a7c15ull;
    hash ^= static_cast<std::uint64_t>(key.num_rows) << 16 | static_cast<std::uint64_t>(key.in) << 9 |
            static_cast<std::uint64_t>(key.out) << 1 | std::uint64_t{key.has_bias};
    return static_cast<std::size_t>(hash * 0x9e3779b97f4a7c15ull >> 20);
  }
};

struct DestroyCublasLt {
  void operator()(cublasLtHandle_t handle) const noexcept { static_cast<void>(cublasLtDestroy(handle)); }
};

}  // namespace detail

/// One linear layer. All pointers are device memory, aligned to 16 bytes; matrices row-major.
template <class T, class Out = T>
struct GemmParams {
  static_assert(std::is_same_v<Out, T> || std::is_same_v<Out, float>, "nvl: a GEMM writes its input type or float");

  Out* out = nullptr;             // [num_rows, out_features]; does not overlap the others
  const T* x = nullptr;           // [num_rows, in_features]
  const T* w = nullptr;           // [out_features, in_features], contiguous
  const Out* bias = nullptr;      // [out_features], or nullptr
  std::int32_t num_rows = 0;      // tokens; 0 is legal: nothing is launched
  std::int32_t out_features = 0;  // N
  std::int32_t in_features = 0;   // K
};

/// The matrices of GemmParams, without their types.
struct GemmOperands {
  void* out = nullptr;
  const void* x = nullptr;
  const void* w = nullptr;
  const void* bias = nullptr;  // or nullptr
};

/// What the choice of an algorithm for `p` depends on.
template <class T, class Out>
GemmKey gemm_key(const GemmParams<T, Out>& p) noexcept {
  return {dtype_of<T>, dtype_of<Out>, p.bias != nullptr, gemm_token_bucket(p.num_rows), p.out_features, p.in_features};
}

/// \throws InvalidArgument that names the field, its value and the rule
template <class T, class Out>
void check_gemm_params(const GemmParams<T, Out>& p) {
  NVL_EXPECTS(p.num_rows >= 0 && p.num_rows <= 1 << 30, "gemm num_rows", p.num_rows, "0 to 2^30");
  NVL_EXPECTS(p.out_features > 0 && p.out_features <= 1 << 30, "gemm out_features", p.out_features, "1 to 2^30");
  NVL_EXPECTS(p.in_features > 0 && p.in_features <= 1 << 30, "gemm in_features", p.in_features, "1 to 2^30");
  const auto address = [](const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); };
  const std::uintptr_t misaligned = (address(p.out) | address(p.x) | address(p.w) | address(p.bias)) % 16;
  NVL_EXPECTS(p.num_rows == 0 || misaligned == 0, "gemm pointers modulo 16", misaligned, "0");
}

/// Owns a cuBLASLt handle and, for each kind of call, its descriptors and its algorithm: the first choice of cuBLASLt's
/// heuristic, unless `set_algo` gave another. The first call of a kind asks the heuristic and lets the driver load a kernel, so
/// make it before the stream is captured or timed; later ones only launch.
///
/// Calls of one object run one after another in one stream (they share the workspace), from one thread at a time. Bits of a
/// result may depend on the number of tokens of the call; they do not change from run to run.
class CublasLtGemm {
 public:
  static constexpr std::size_t default_workspace_bytes = gemm_workspace_bytes;

  /// \param workspace device memory of the caller's, aligned to 256 bytes, that outlives the object and graphs captured with it;
  ///        of any size, none included: cuBLASLt then splits less
  explicit CublasLtGemm(std::span<std::byte> workspace = {}) : workspace_(workspace) {
    NVL_EXPECTS(reinterpret_cast<std::uintptr_t>(workspace.data()) % 256 == 0, "gemm workspace",
                reinterpret_cast<std::uintptr_t>(workspace.data()), "aligned to 256 bytes");
    cublasLtHandle_t handle = nullptr;
    NVL_CUBLAS_CHECK(cublasLtCreate(&handle));
    handle_.reset(handle);
    begin_first_query();
  }

  CublasLtGemm(const CublasLtGemm&) = delete;
  CublasLtGemm& operator=(const CublasLtGemm&) = delete;
  ~CublasLtGemm() { wait_for_first_query(); }

  /// For a device that hangs: loses the handle, whose destruction would wait for it.
  void abandon() noexcept {
    wait_for_first_query();
    static_cast<void>(handle_.release());
  }

  std::span<std::byte> workspace() const noexcept { return workspace_; }

  /// Asynchronous on `stream`; allocates no device memory; safe inside CUDA graph capture once the same kind of call was made.
  /// \throws InvalidArgument that names the field; CudaError that names the call
  template <class T, class Out>
  void run(const GemmParams<T, Out>& p, cudaStream_t stream) {
    check_gemm_params(p);
    if (p.num_rows == 0) { return; }
    run(gemm_key(p), p.num_rows, {p.out, p.x, p.w, p.bias}, stream);
  }

  /// The same without types: `key.num_rows` is the bucket of `num_rows`. Arguments are not checked.
  void run(const GemmKey& key, std::int32_t num_rows, const GemmOperands& operands, cudaStream_t stream) {
    Plan& plan = plan_of(key);
    cublasStatus_t status = launch(plan, num_rows, operands, plan.algo, stream);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) {
      // The algorithm is that of the bucket; the very number of tokens may not suit it.
      GemmKey exact = key;
      exact.num_rows = num_rows;
      const std::vector<GemmAlgo> found = candidates(exact, 1);
      if (!found.empty()) { status = launch(plan, num_rows, operands, to_cublaslt(found.front()), stream); }
    }
    detail::check_cublas(status, "cublasLtMatmul");
  }

  /// Up to `max_count` (>= 1) algorithms that compute `key`, cuBLASLt's favourite first.
  std::vector<GemmAlgo> candidates(const GemmKey& key, std::int32_t max_count) {
    NVL_EXPECTS(max_count >= 1, "gemm max_count", max_count, "at least 1");
    wait_for_first_query();
    return query(key, max_count);
  }

  /// Uses `algo` for calls of `key` from now on.
  /// \returns false, and changes nothing, if this cuBLASLt cannot run it (a cache file of a doctored origin, say)
  bool set_algo(const GemmKey& key, const GemmAlgo& algo) {
    if (algo.own_variant != GemmAlgo::cublaslt) { return false; }
    wait_for_first_query();
    const auto words = to_cublaslt(algo);
    Plan plan = make_plan(key);
    cublasLtMatmulHeuristicResult_t checked{};
    const cublasStatus_t status =
        cublasLtMatmulAlgoCheck(handle_.get(), &plan.desc, &plan.weight, &plan.x, &plan.out, &plan.out, &words, &checked);
    if (status != CUBLAS_STATUS_SUCCESS || checked.workspaceSize > workspace_.size()) { return false; }
    plan.algo = words;
    plans_.insert_or_assign(key, plan);
    return true;
  }

  /// The device that is current and the libraries at hand, as a cache file of theirs says.
  static GemmCacheIdentity identity() {
    int device = 0;
    cudaDeviceProp properties{};
    NVL_CUDA_CHECK(cudaGetDevice(&device));
    NVL_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    return {std::string(properties.name) + ", sm_" + std::to_string(properties.major) + std::to_string(properties.minor) + ", " +
                std::to_string(properties.multiProcessorCount) + " multiprocessors",
            "cuBLASLt " + std::to_string(cublasLtGetVersion()) + ", nvl " + std::to_string(NVL_VERSION_MAJOR) + "." +
                std::to_string(NVL_VERSION_MINOR) + "." + std::to_string(NVL_VERSION_PATCH)};
  }

 private:
  using Plan = detail::CublasLtPlan;
  using Words = decltype(GemmAlgo::words);

  static cublasLtMatmulAlgo_t to_cublaslt(const GemmAlgo& algo) noexcept {
    return std::bit_cast<cublasLtMatmulAlgo_t>(algo.words);
  }

  /// The first query of a process builds the library's tables, which takes 70 to 110 ms: a thread makes it, so that weights can
  /// be loaded meanwhile.
  void begin_first_query() {
    int device = 0;
    NVL_CUDA_CHECK(cudaGetDevice(&device));
    const auto ask = [this, device] {
      contain(
          [&] {
            NVL_CUDA_CHECK(cudaSetDevice(device));
            static_cast<void>(query({DType::bfloat16, DType::bfloat16, false, 512, 512, 512}, 1));
          },
          [](const char*) {});  // who needs an answer asks again
    };
    contain([&] { first_query_ = std::thread(ask); }, [](const char*) {});  // without a thread the first call takes longer
  }
  void wait_for_first_query() {
    if (first_query_.joinable()) { first_query_.join(); }
  }

  std::vector<GemmAlgo> query(const GemmKey& key, std::int32_t max_count) const {
    Plan plan = make_plan(key);
    cublasLtMatmulPreferenceOpaque_t preference{};
    const std::uint64_t workspace = workspace_.size();
    const std::uint32_t alignment = 16;
    // Parts of a split sum stay float until they are added: never the reduction that rounds each part to the output type.
    const std::uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      NVL_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)));
    };
    NVL_CUBLAS_CHECK(cublasLtMatmulPreferenceInit(&preference));
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
    if (key.has_bias) {
      // Not read: only that there is one matters here.
      const void* const bias = workspace_.data();
      NVL_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(&plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias)));
    }
    // A struct of ours around cuBLASLt's, which has no name: a vector of that one stops nvcc 13.0 with an internal error.
    struct Result {
      cublasLtMatmulHeuristicResult_t value{};
    };
    static_assert(sizeof(Result) == sizeof(cublasLtMatmulHeuristicResult_t));
    std::vector<Result> results(static_cast<std::size_t>(max_count));
    int found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle_.get(), &plan.desc, &plan.weight, &plan.x, &plan.out, &plan.out, &preference,
                                       max_count, &results.front().value, &found);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) { return {}; }
    detail::check_cublas(status, "cublasLtMatmulAlgoGetHeuristic");
    std::vector<GemmAlgo> list;
    for (int i = 0; i < found; ++i) {
      const cublasLtMatmulHeuristicResult_t& result = results[static_cast<std::size_t>(i)].value;
      if (result.state == CUBLAS_STATUS_SUCCESS) {
        list.push_back({GemmAlgo::cublaslt, result.workspaceSize, std::bit_cast<Words>(result.algo)});
      }
    }
    return list;
  }

  static void set_num_rows(Plan& plan, std::int32_t num_rows) {
    plan.num_rows = static_cast<std::uint64_t>(num_rows);
    for (cublasLtMatrixLayoutOpaque_t* layout : {&plan.x, &plan.out}) {
      NVL_CUBLAS_CHECK(
          cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &plan.num_rows, sizeof(plan.num_rows)));
    }
  }

  static Plan make_plan(const GemmKey& key) {
    Plan plan;
    const auto n = static_cast<std::uint64_t>(key.out_features);
    const auto k = static_cast<std::uint64_t>(key.in_features);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    NVL_CUBLAS_CHECK(cublasLtMatmulDescInit(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    NVL_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(&plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
    if (key.has_bias) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      const cudaDataType_t type = detail::cuda_dtype(key.out);
      NVL_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(&plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue)));
      NVL_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(&plan.desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof(type)));
    }
    const std::uint64_t tokens = static_cast<std::uint64_t>(key.num_rows);
    NVL_CUBLAS_CHECK(cublasLtMatrixLayoutInit(&plan.weight, detail::cuda_dtype(key.in), k, n, key.in_features));
    NVL_CUBLAS_CHECK(cublasLtMatrixLayoutInit(&plan.x, detail::cuda_dtype(key.in), k, tokens, key.in_features));
    NVL_CUBLAS_CHECK(cublasLtMatrixLayoutInit(&plan.out, detail::cuda_dtype(key.out), n, tokens, key.out_features));
    plan.num_rows = tokens;
    return plan;
  }

  Plan& plan_of(const GemmKey& key) {
    const auto at = plans_.find(key);
    if (at != plans_.end()) [[likely]] { return at->second; }
    const std::vector<GemmAlgo> found = candidates(key, 1);
    if (found.empty()) {
      raise(CudaError(CUBLAS_STATUS_NOT_SUPPORTED, "cublasLtMatmulAlgoGetHeuristic",
                      "no algorithm for " + std::to_string(key.num_rows) + " x " + std::to_string(key.out_features) + " x " +
                          std::to_string(key.in_features) + " " + std::string(info(key.in).name)));
    }
    Plan plan = make_plan(key);
    plan.algo = to_cublaslt(found.front());
    return plans_.emplace(key, plan).first->second;
  }

  cublasStatus_t launch(Plan& plan, std::int32_t num_rows, const GemmOperands& at, const cublasLtMatmulAlgo_t& algo,
                        cudaStream_t stream) {
    if (plan.num_rows != static_cast<std::uint64_t>(num_rows)) { set_num_rows(plan, num_rows); }
    if (at.bias != nullptr) {
      NVL_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(&plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at.bias, sizeof(at.bias)));
    }
    const float one = 1.0f;
    const float zero = 0.0f;
    return cublasLtMatmul(handle_.get(), &plan.desc, &one, at.w, &plan.weight, at.x, &plan.x, &zero, at.out, &plan.out, at.out,
                          &plan.out, &algo, workspace_.data(), workspace_.size(), stream);
  }

  std::span<std::byte> workspace_;
  std::unique_ptr<std::remove_pointer_t<cublasLtHandle_t>, detail::DestroyCublasLt> handle_;
  std::unordered_map<GemmKey, Plan, detail::GemmKeyHash> plans_;
  std::thread first_query_;
};

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
