// In the place of what plugins/cuda/triton/compile.py writes, where Triton is not installed.
#include "cuda/launch/triton_code.h"

namespace moh::cuda {

TritonCodes triton_codes() { return {nullptr, 0}; }

}  // namespace moh::cuda
