// In the place of what plugins/cuda/triton/compile.py writes: what a test says that there is.
#include "cuda/launch/triton_code.h"

namespace {

moh::cuda::TritonCodes codes{nullptr, 0};

}  // namespace

// They stay the caller's.
extern "C" void moh_emulator_set_triton_codes(const moh::cuda::TritonCode* first, size_t count) {
  codes = {first, count};
}

moh::cuda::TritonCodes moh::cuda::triton_codes() { return codes; }
