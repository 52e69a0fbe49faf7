#include "bench/kernels/support/gpu_ceilings.cuh"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <type_traits>

namespace nvl_bench {
namespace {

/// One 16-byte word a thread, as many blocks as that takes: of all the shapes tried (up to 16 words a thread, persistent grids,
/// blocks of 128 to 1024) this one copies fastest, by 3 % on an H200.
template <int threads>
__global__ void __launch_bounds__(threads) copy_kernel(uint4* out, const uint4* data, std::size_t size) {
  const std::size_t i = std::size_t{blockIdx.x} * threads + threadIdx.x;
  if (i < size) { __stcs(out + i, __ldcs(data + i)); }
}

/// GB/s of `launch(call, stream)`, which moves `bytes`.
template <class Launch>
double gbps(KernelTimer& timer, double bytes, Launch&& launch) {
  return bytes / timer.measure(launch, 1, false).median_us * 1e-3;
}

void check_cublas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) { nvl::raise(nvl::CudaError(status, call, cublasLtGetStatusString(status))); }
}

/// Alone, with a pause before each, and back to back.
struct GemmRates {
  double single = 0, sustained = 0;  // [TFLOP/s]
};

GemmRates bf16_gemm_rates(KernelTimer& timer) {
  constexpr std::int64_t n = 8192;
  constexpr std::size_t elements = static_cast<std::size_t>(n * n), workspace_bytes = std::size_t{64} << 20;
  const DeviceBuffer<nvl::bf16> a = random_normal_buffer<nvl::bf16>(elements, 1, 1);
  const DeviceBuffer<nvl::bf16> b = random_normal_buffer<nvl::bf16>(elements, 1, 2);
  DeviceBuffer<nvl::bf16> out(elements);
  DeviceBuffer<std::uint8_t> workspace(workspace_bytes);

  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t layout = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  check_cublas(cublasLtCreate(&handle), "cublasLtCreate");
  check_cublas(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  check_cublas(cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed), "TRANSA");
  check_cublas(cublasLtMatrixLayoutCreate(&layout, CUDA_R_16BF, n, n, n), "cublasLtMatrixLayoutCreate");
  check_cublas(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  check_cublas(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
                                                    sizeof workspace_bytes),
               "MAX_WORKSPACE_BYTES");
  std::array<cublasLtMatmulHeuristicResult_t, 4> found{};
  int num_found = 0;
  check_cublas(cublasLtMatmulAlgoGetHeuristic(handle, product, layout, layout, layout, layout, preference,
                                              static_cast<int>(found.size()), found.data(), &num_found),
               "cublasLtMatmulAlgoGetHeuristic");
  GemmRates best;
  for (int i = 0; i < num_found; ++i) {
    const float one = 1.0f, zero = 0.0f;
    const auto launch = [&](int, cudaStream_t stream) {
      check_cublas(
          cublasLtMatmul(handle, product, &one, a.data(), layout, b.data(), layout, &zero, out.data(), layout, out.data(), layout,
                         &found[static_cast<std::size_t>(i)].algo, workspace.data(), workspace_bytes, stream),
          "cublasLtMatmul");
    };
    const auto tflops = [&](int calls) { return 2.0 * n * n * n / timer.measure(launch, calls, false).median_us * 1e-6; };
    best.single = std::max(best.single, tflops(1));
    best.sustained = std::max(best.sustained, tflops(8));
  }
  cublasLtMatmulPreferenceDestroy(preference);
  cublasLtMatrixLayoutDestroy(layout);
  cublasLtMatmulDescDestroy(product);
  cublasLtDestroy(handle);
  return best;
}

struct Datasheet {
  const char* name;  // part of the device's name
  double gbps, bf16_tflops;
};
/// Dense rates of the SXM parts, or of the only part of that name.
constexpr Datasheet datasheets[] = {{"H200", 4800, 989.4}, {"H100 80GB HBM3", 3352, 989.4}, {"A100-SXM4-80GB", 2039, 312},
                                    {"L40S", 864, 362},    {"RTX 4090", 1008, 165.2},       {"RTX 3090", 936, 71}};

/// NVML, looked up at run time: a machine without a driver has no such library, and programs must still link and start there.
class Management {
 public:
  Management() : library_(dlopen("libnvidia-ml.so.1", RTLD_NOW)) {
    if (library_ == nullptr) { return; }
    int device = 0;
    char bus[32] = "";
    if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetPCIBusId(bus, sizeof bus, device) != cudaSuccess) { return; }
    if (call<int()>("nvmlInit_v2") != 0) { return; }
    initialized_ = true;
    if (call<int(const char*, void**)>("nvmlDeviceGetHandleByPciBusId_v2", bus, &handle_) != 0) { handle_ = nullptr; }
  }
  Management(const Management&) = delete;
  Management& operator=(const Management&) = delete;
  ~Management() {
    if (initialized_) { call<int()>("nvmlShutdown"); }
    if (library_ != nullptr) { dlclose(library_); }
  }

  GpuState state() {
    if (handle_ == nullptr) { return {}; }
    constexpr int sm_clock = 1, memory_clock = 2, gpu_sensor = 0;
    unsigned sm = 0, memory = 0, milliwatts = 0, celsius = 0;
    call<int(void*, int, unsigned*)>("nvmlDeviceGetClockInfo", handle_, sm_clock, &sm);
    call<int(void*, int, unsigned*)>("nvmlDeviceGetClockInfo", handle_, memory_clock, &memory);
    call<int(void*, unsigned*)>("nvmlDeviceGetPowerUsage", handle_, &milliwatts);
    call<int(void*, int, unsigned*)>("nvmlDeviceGetTemperature", handle_, gpu_sensor, &celsius);
    return {static_cast<int>(sm), static_cast<int>(memory), static_cast<int>(milliwatts / 1000), static_cast<int>(celsius)};
  }

 private:
  template <class Function, class... Args>
  int call(const char* name, Args... args) {
    auto* const function = reinterpret_cast<Function*>(dlsym(library_, name));
    return function == nullptr ? -1 : function(args...);
  }

  void* library_ = nullptr;
  void* handle_ = nullptr;
  bool initialized_ = false;
};

}  // namespace

Ceilings measure_ceilings(KernelTimer& timer, bool gemm) {
  Ceilings ceilings;
  {
    constexpr std::size_t words = (std::size_t{1} << 30) / sizeof(uint4);
    constexpr double bytes = 2.0 * words * sizeof(uint4);
    DeviceBuffer<uint4> buffer(2 * words);
    fill_random_normal(reinterpret_cast<float*>(buffer.data()), buffer.size() * 4, 1);
    ceilings.read_gbps = gbps(timer, bytes, [&](int, cudaStream_t stream) { launch_read(buffer.data(), 2 * words, stream); });
    const auto copy = [&]<int threads>(std::integral_constant<int, threads>) {
      return gbps(timer, bytes, [&](int, cudaStream_t stream) {
        copy_kernel<threads><<<words / threads, threads, 0, stream>>>(buffer.data() + words, buffer.data(), words);
        NVL_CUDA_CHECK(cudaGetLastError());
      });
    };
    ceilings.copy_gbps = std::max(copy(std::integral_constant<int, 128>{}), copy(std::integral_constant<int, 256>{}));
  }
  if (gemm) {
    const GemmRates rates = bf16_gemm_rates(timer);
    ceilings.bf16_tflops = rates.single;
    ceilings.bf16_sustained_tflops = rates.sustained;
  }
  const std::string name = gpu_identity().name;
  for (const Datasheet& sheet : datasheets) {
    if (name.find(sheet.name) == std::string::npos) { continue; }
    ceilings.datasheet_gbps = sheet.gbps;
    ceilings.datasheet_tflops = sheet.bf16_tflops;
    break;
  }
  return ceilings;
}

GpuState busy_gpu_state(KernelTimer& timer) {
  Management management;
  for (int i = 0; i < 40; ++i) { timer.flush_l2(); }
  // The clocks rise within the first of these; the reading falls among the last.
  cudaEvent_t started = nullptr;
  NVL_CUDA_CHECK(cudaEventCreate(&started));
  NVL_CUDA_CHECK(cudaEventRecord(started, timer.stream()));
  for (int i = 0; i < 40; ++i) { timer.flush_l2(); }
  NVL_CUDA_CHECK(cudaEventSynchronize(started));
  const GpuState state = management.state();
  NVL_CUDA_CHECK(cudaStreamSynchronize(timer.stream()));
  NVL_CUDA_CHECK(cudaEventDestroy(started));
  return state;
}

GpuIdentity gpu_identity() {
  int device = 0;
  NVL_CUDA_CHECK(cudaGetDevice(&device));
  cudaDeviceProp properties{};
  NVL_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  GpuIdentity gpu{.name = properties.name, .toolkit_version = CUDART_VERSION, .num_sms = properties.multiProcessorCount};
  gpu.l2_bytes = static_cast<std::size_t>(properties.l2CacheSize);
  gpu.memory_bytes = properties.totalGlobalMem;
  NVL_CUDA_CHECK(cudaDriverGetVersion(&gpu.driver_version));
  NVL_CUDA_CHECK(cudaRuntimeGetVersion(&gpu.runtime_version));
  return gpu;
}

}  // namespace nvl_bench
