// The functions of the CUDA runtime that launches call: a device without memory of its own.
#include <cuda_runtime_api.h>

#include "cuda/emu/control.h"
#include "cuda/emu/limits.h"

using namespace moh::cuda::emu;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 1000 * options().driver_cuda;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  if (options().driver_cuda < CUDART_VERSION / 1000) {
    return cudaErrorInsufficientDriver;
  }
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) {
    return cudaErrorInvalidDevice;
  }
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = options().multiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = options().compute_capability / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = options().compute_capability % 10;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(kMostSharedBytes);
      return cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}

// Every launch returns its own error.
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    default:
      return "an error that the emulator has no name for";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : last_error().c_str();
}
