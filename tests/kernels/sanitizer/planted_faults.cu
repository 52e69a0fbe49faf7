/// One fault on purpose for each tool of compute-sanitizer, and the same work without it. scripts/gpu_sanitize demands that a
/// tool finds its fault before it believes what the tool says of the tests.
///   planted_faults none|memcheck|racecheck|synccheck|initcheck|copies
/// `copies` has no fault: it is work that racecheck reports if it does not follow copies that end at a barrier.

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

/// The same, right, through a ring of one place: one warp copies 16 bytes a lane, asynchronously, and each of its lanes arrives at a
/// barrier when its copy is there; the other warp reads them and lets the place go.
__global__ void copy_kernel(int* out, const int* in) {
#if __CUDA_ARCH__ >= 800
  __shared__ alignas(16) int place[threads];
  __shared__ alignas(8) unsigned long long full, empty;
  const auto address = [](const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); };
  const auto wait = [&](const void* barrier, unsigned parity) {
    unsigned done = 0;
    while (done == 0) {
      asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                   : "=r"(done)
                   : "r"(address(barrier)), "r"(parity)
                   : "memory");
    }
  };
  const auto lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared.b64 [%0], 32;" ::"r"(address(&full)) : "memory");
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(address(&empty)) : "memory");
  }
  __syncthreads();
  constexpr unsigned rounds = 4;
  for (unsigned round = 0; round < rounds; ++round) {
    if (threadIdx.x < 32) {
      wait(&empty, (round & 1) ^ 1);
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(place + 4 * lane)), "l"(in + 4 * lane) : "memory");
      asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(address(&full)) : "memory");
    } else {
      wait(&full, round & 1);
      for (int i = lane; i < threads; i += 32) { out[i] = place[threads - 1 - i]; }
      __syncwarp();
      if (lane == 0) {
        asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(address(&empty)) : "memory");
      }
    }
  }
#endif
}

bool ok(cudaError_t status, const char* what) {
  if (status == cudaSuccess) { return true; }
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string tool = argc == 2 ? argv[1] : "";
  if (tool != "none" && tool != "memcheck" && tool != "racecheck" && tool != "synccheck" && tool != "initcheck" &&
      tool != "copies") {
    std::fprintf(stderr, "usage: %s none|memcheck|racecheck|synccheck|initcheck|copies\n", argv[0]);
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
  if (tool == "copies") {
    copy_kernel<<<1, 64>>>(out, in);
  } else {
    reverse_kernel<<<1, threads>>>(
        out, in, {.out_of_bounds = tool == "memcheck", .race = tool == "racecheck", .wrong_barrier = tool == "synccheck"});
  }
  const bool finished = ok(cudaDeviceSynchronize(), "reverse_kernel");
  // Without a fault the program also checks that it did its work; with one, nothing is expected of it.
  if (tool == "none" || tool == "copies") {
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
