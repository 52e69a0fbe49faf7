#pragma once
/// What the GPU reaches at best, measured in the run whose rows are divided by it.

#include "bench/kernels/support/gpu_timer.cuh"

namespace nvl_bench {

/// Bandwidth of reading 2 GiB and of copying 1 GiB. With `gemm` also the bf16 rate of cuBLASLt. Fills in the datasheet's figures by
/// the device's name.
Ceilings measure_ceilings(KernelTimer& timer, bool gemm);

/// Clocks, power and temperature in the middle of about 10 ms of work.
GpuState busy_gpu_state(KernelTimer& timer);

GpuIdentity gpu_identity();

}  // namespace nvl_bench
