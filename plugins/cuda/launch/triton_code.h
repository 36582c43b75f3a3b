// Attention kernels that Triton compiled when the library was built: their machine code, and what a
// launch of it needs. plugins/cuda/triton/compile.py writes them; without Triton the list is empty.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

#include "moh/tensor.h"

namespace moh::cuda {

struct TritonCode {
  int32_t compute_capability;  // of the GPUs that run it: no others do
  DType dtype;
  int32_t columns;  // head_dim and value_dim may be up to this
  int32_t tile_rows, threads, shared_bytes;
  const char* kernel;  // its name in the code
  const void* code;
  size_t code_bytes;
};

struct TritonCodes {
  const TritonCode* first;
  size_t count;

  const TritonCode* begin() const { return first; }
  const TritonCode* end() const { return first + count; }
};

// In ascending order of columns for each GPU and dtype.
TritonCodes triton_codes();

}  // namespace moh::cuda
