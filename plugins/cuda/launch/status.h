// How the C interface reports.
#pragma once

#include <cstddef>

#include "cuda/device/port.cuh"
#include "moh/cuda.h"

namespace moh::cuda {

// What every GPU since sm_80 gives to a block.
constexpr size_t kMaxSharedBytes = 99 * 1024;

// Returns `status`, and keeps the formatted text for moh_cuda_last_error.
[[gnu::format(printf, 2, 3)]] Status fail(Status status, const char* format, ...);

// Refuses tensors that are not of a floating-point type.
Status check_dtype(const char* op, DType dtype);

// The status of a launch; `kernel` is for the text.
Status launch_status(cudaError_t error, const char* kernel);

}  // namespace moh::cuda
