// The current device.
#include "cuda/device/port.cuh"
#include "cuda/launch/status.h"
#include "moh/cuda.h"

moh::cuda::Status moh_cuda_device(moh::cuda::Device* device) {
  int index = 0, major = 0, minor = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&index);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, index);
  }
  if (error != cudaSuccess) {
    return moh::cuda::fail(moh::cuda::Status::kCudaError,
                           "The current CUDA device cannot be asked: cudaError_t %d.",
                           static_cast<int>(error));
  }
  *device = {multiprocessors, 10 * major + minor};
  return moh::cuda::Status::kOk;
}
