#pragma once
/// nvl.hpp and the CUDA backend: kernels, ops, attention, engines. Needs the CUDA Toolkit; links cudart and cuBLASLt.

#include <nvl/attention/cuda_kv_transfer.cuh>
#include <nvl/attention/paged_attention.cuh>
#include <nvl/engine/cuda_engines.cuh>
#include <nvl/nvl.hpp>
#include <nvl/ops/cuda_ops.cuh>
