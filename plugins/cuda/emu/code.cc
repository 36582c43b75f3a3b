// The functions of the CUDA runtime that load machine code and launch it. No CPU runs such code: a
// test's hook does what its kernel would, with the parameters that a GPU would get.
#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "cuda/emu/control.h"
#include "cuda/emu/limits.h"

namespace moh::cuda::emu {
namespace {

constexpr size_t kSharedBytesWithoutAsking = 48 * 1024;

struct LoadedKernel {
  const void* code;
  std::string name;
  size_t most_shared_bytes = kSharedBytesWithoutAsking;
};

cudaError_t refuse(cudaError_t error, const std::string& reason) {
  last_error() = reason;
  return error;
}

// Kept until the process ends, as those of the runtime.
LoadedKernel* kernel_of(const void* code, const char* name) {
  static std::map<std::pair<const void*, std::string>, std::unique_ptr<LoadedKernel>> kernels;
  auto& kernel = kernels[{code, name}];
  if (kernel == nullptr) {
    kernel = std::make_unique<LoadedKernel>(LoadedKernel{code, name});
  }
  return kernel.get();
}

}  // namespace
}  // namespace moh::cuda::emu

using namespace moh::cuda::emu;

cudaError_t cudaLibraryLoadData(cudaLibrary_t* library, const void* code, cudaJitOption*, void**,
                                unsigned, cudaLibraryOption*, void**, unsigned) {
  if (code == nullptr) {
    return refuse(cudaErrorInvalidValue, "code at null");
  }
  ++counts().loads;
  *library = reinterpret_cast<cudaLibrary_t>(const_cast<void*>(code));
  return cudaSuccess;
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t* kernel, cudaLibrary_t library, const char* name) {
  *kernel = reinterpret_cast<cudaKernel_t>(kernel_of(library, name));
  return cudaSuccess;
}

cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t kernel, cudaFuncAttribute attribute,
                                            int value, int device) {
  if (device != 0 || attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      static_cast<size_t>(value) > kMostSharedBytesOfCode) {
    return refuse(cudaErrorInvalidValue, std::to_string(value) + " for an attribute of a kernel");
  }
  reinterpret_cast<LoadedKernel*>(kernel)->most_shared_bytes = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** arguments) {
  const auto& kernel = *static_cast<const LoadedKernel*>(function);
  ++counts().launches;
  if (config->dynamicSmemBytes > kernel.most_shared_bytes) {
    return refuse(cudaErrorInvalidValue, std::to_string(config->dynamicSmemBytes) +
                                             " bytes of shared memory; the kernel was given " +
                                             std::to_string(kernel.most_shared_bytes));
  }
  if (code_hook() == nullptr) {
    return refuse(cudaErrorLaunchFailure, "only a GPU runs machine code");
  }
  const uint32_t grid[] = {config->gridDim.x, config->gridDim.y, config->gridDim.z};
  const uint32_t block[] = {config->blockDim.x, config->blockDim.y, config->blockDim.z};
  return static_cast<cudaError_t>(code_hook()(kernel.code, kernel.name.c_str(), grid, block,
                                              config->dynamicSmemBytes, arguments));
}
