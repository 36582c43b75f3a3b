// The current device.
#include "cuda/device/port.cuh"
#include "cuda/launch/status.h"
#include "moh/cuda.h"

namespace moh::cuda {
namespace {

// Minor versions of CUDA get along with each other's drivers, major ones do not.
constexpr int kNeededCuda = CUDART_VERSION / 1000;

// CUDA has one error for "no driver" and "an old driver".
Status device_status(cudaError_t error) {
  int driver = 0;
  if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess &&
      driver > 0) {
    return fail(Status::kDriverTooOld,
                "The NVIDIA driver takes CUDA %d.%d; this library was compiled with %d.%d, and"
                " needs a driver for %d.0 or later.",
                driver / 1000, driver % 1000 / 10, kNeededCuda, CUDART_VERSION % 1000 / 10,
                kNeededCuda);
  }
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice) {
    return fail(Status::kNoDevice, "There is no NVIDIA driver, or it finds no GPU.");
  }
  return fail(Status::kCudaError, "The current CUDA device cannot be asked: cudaError_t %d.",
              static_cast<int>(error));
}

}  // namespace
}  // namespace moh::cuda

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
    return moh::cuda::device_status(error);
  }
  *device = {multiprocessors, 10 * major + minor};
  return moh::cuda::Status::kOk;
}
