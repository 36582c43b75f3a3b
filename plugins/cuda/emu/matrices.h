// Loads of 8x8 matrices from shared memory, and the products of the matrix units.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/emu/place.h"

namespace moh::cuda::emu {

void load_matrices(const char* name, uint32_t* out, int count, const void* row, Place place);

inline void load_matrices_x4(uint32_t (&out)[4], const void* row, MOH_PLACE) {
  load_matrices("load_matrices_x4", out, 4, row, place);
}
inline void load_matrices_x2(uint32_t (&out)[2], const void* row, MOH_PLACE) {
  load_matrices("load_matrices_x2", out, 2, row, place);
}
inline void load_matrices_x4_transposed(uint32_t (&out)[4], const void* row, MOH_PLACE) {
  load_matrices("load_matrices_x4_transposed", out, 4, row, place);
}
inline void load_matrices_x2_transposed(uint32_t (&out)[2], const void* row, MOH_PLACE) {
  load_matrices("load_matrices_x2_transposed", out, 2, row, place);
}

enum class Operand { kHalf, kBFloat16, kTf32 };
void multiply(Operand operand, float* sum, const uint32_t* a, const uint32_t* b, Place place);

template <class T>
void mma_m16n8k16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], MOH_PLACE);

template <>
inline void mma_m16n8k16<__half>(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                 Place place) {
  multiply(Operand::kHalf, sum, a, b, place);
}

template <>
inline void mma_m16n8k16<__nv_bfloat16>(float (&sum)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2], Place place) {
  multiply(Operand::kBFloat16, sum, a, b, place);
}

inline void mma_m16n8k8_tf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             MOH_PLACE) {
  multiply(Operand::kTf32, sum, a, b, place);
}

uint32_t round_to_tf32(float value);
float exp2_approx(float x);

}  // namespace moh::cuda::emu
