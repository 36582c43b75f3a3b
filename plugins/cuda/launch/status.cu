#include "cuda/launch/status.h"

#include <cstdarg>
#include <cstdio>

#include "moh/op_contract.h"

namespace moh::cuda {

namespace {

thread_local char last_error[512] = "";
thread_local bool load_only = false;

}  // namespace

bool loads_only() { return load_only; }

Status fail(Status status, const char* format, ...) {
  va_list values;
  va_start(values, format);
  std::vsnprintf(last_error, sizeof(last_error), format, values);
  va_end(values);
  return status;
}

Status check_dtype(const char* op, DType dtype) {
  if (dtype == DType::kFloat32 || dtype == DType::kFloat16 || dtype == DType::kBFloat16) {
    return Status::kOk;
  }
  return fail(Status::kUnsupported, "%s: dtype %d; expected %s.", op, static_cast<int>(dtype),
              contract::kFloatTypesText);
}

Status launch_status(cudaError_t error, const char* kernel) {
  if (error == cudaSuccess) {
    return Status::kOk;
  }
  return fail(Status::kCudaError, "%s: the launch failed with cudaError_t %d.", kernel,
              static_cast<int>(error));
}

}  // namespace moh::cuda

const char* moh_cuda_last_error() { return moh::cuda::last_error; }
void moh_cuda_load_only(bool load_only) { moh::cuda::load_only = load_only; }
