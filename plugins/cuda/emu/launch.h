// Launches, which are done when they return.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <type_traits>

#include "cuda/emu/limits.h"

namespace moh::cuda {

bool loads_only();

}  // namespace moh::cuda

namespace moh::cuda::emu {

cudaError_t launch_kernel(void (*call)(const void* kernel, const void* params), const void* kernel,
                          dim3 grid, dim3 block, size_t shared_bytes, const void* params,
                          size_t params_bytes);

template <class Params>
cudaError_t launch(void (*kernel)(Params), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t /*stream*/, const std::remove_const_t<Params>& params) {
  static_assert(std::is_trivially_copyable_v<Params> && sizeof(Params) <= kMostParameterBytes);
  if (loads_only()) {
    return cudaSuccess;
  }
  const auto call = [](const void* pointer, const void* argument) {
    reinterpret_cast<void (*)(Params)>(const_cast<void*>(pointer))(
        *static_cast<const Params*>(argument));
  };
  return launch_kernel(call, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
                       &params, sizeof params);
}

unsigned char* shared_memory();

}  // namespace moh::cuda::emu
