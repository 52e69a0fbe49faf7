/// One fault on purpose for each tool of compute-sanitizer, and the same work without it. scripts/gpu_sanitize demands that a
/// tool finds its fault before it believes what the tool says of the tests.
///   planted_faults none|memcheck|racecheck|synccheck|initcheck

#include <cstdio>
#include <string>

#include <cuda_runtime.h>

namespace {

constexpr int threads = 128;

struct Faults {
  bool out_of_bounds = false, race = false, wrong_barrier = false;
};

/// Reverses a block's values through shared memory.
__global__ void reverse_kernel(int* out, const int* in, Faults faults) {
  __shared__ int values[threads];
  const auto thread = static_cast<int>(threadIdx.x);
  values[thread] = in[thread];
  if (!faults.race) { __syncthreads(); }
  // Every lane waits for the last lane of its warp, and only that one is where it says it is.
  if (faults.wrong_barrier) { __syncwarp(1u << 31); }
  out[thread + (faults.out_of_bounds && thread == threads - 1 ? threads : 0)] = values[threads - 1 - thread];
}

bool ok(cudaError_t status, const char* what) {
  if (status == cudaSuccess) { return true; }
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string tool = argc == 2 ? argv[1] : "";
  if (tool != "none" && tool != "memcheck" && tool != "racecheck" && tool != "synccheck" && tool != "initcheck") {
    std::fprintf(stderr, "usage: %s none|memcheck|racecheck|synccheck|initcheck\n", argv[0]);
    return 2;
  }
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::fprintf(stderr, "no CUDA device\n");
    return 4;
  }
  int values[threads], *in = nullptr, *out = nullptr;
  for (int i = 0; i < threads; ++i) { values[i] = i; }
  if (!ok(cudaMalloc(&in, sizeof values), "cudaMalloc") || !ok(cudaMalloc(&out, sizeof values), "cudaMalloc")) { return 1; }
  if (tool != "initcheck" && !ok(cudaMemcpy(in, values, sizeof values, cudaMemcpyHostToDevice), "cudaMemcpy")) { return 1; }
  reverse_kernel<<<1, threads>>>(
      out, in, {.out_of_bounds = tool == "memcheck", .race = tool == "racecheck", .wrong_barrier = tool == "synccheck"});
  const bool finished = ok(cudaDeviceSynchronize(), "reverse_kernel");
  // Without a fault the program also checks that it did its work; with one, nothing is expected of it.
  if (tool == "none") {
    int result[threads];
    if (!finished || !ok(cudaMemcpy(result, out, sizeof result, cudaMemcpyDeviceToHost), "cudaMemcpy")) { return 1; }
    for (int i = 0; i < threads; ++i) {
      if (result[i] != threads - 1 - i) { return 1; }
    }
  }
  static_cast<void>(cudaFree(in));
  static_cast<void>(cudaFree(out));
  return 0;
}
