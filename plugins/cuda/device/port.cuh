// What kernels ask of the machine. The only file that knows whether nvcc compiles for a GPU, or a
// C++ compiler for the emulator (MOH_EMULATED). Names that CUDA itself gives (threadIdx,
// __syncthreads, __shfl_xor_sync,
// __ballot_sync, __popc, atomicAdd, ...) mean the same in both.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#if defined(MOH_EMULATED)
#include "cuda/emu/emulator.h"
#else
#include <cuda_runtime.h>
#endif

namespace moh::cuda {

// Whether `launch` loads kernels, and launches none, on this thread (moh_cuda_load_only).
bool loads_only();

constexpr int kWarpSize = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

#if defined(MOH_EMULATED)

using emu::commit_copies;
using emu::copy_async_16;
using emu::exp2_approx;
using emu::launch;
using emu::load_matrices_x2;
using emu::load_matrices_x2_transposed;
using emu::load_matrices_x4;
using emu::load_matrices_x4_transposed;
using emu::mma_m16n8k16;
using emu::mma_m16n8k8_tf32;
using emu::round_to_tf32;
using emu::shared_memory;
using emu::wait_for_copies;

#else

// The dynamic shared memory of the block, aligned for vector loads.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char moh_shared_memory[];
  return moh_shared_memory;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 8x8 matrices of 16-bit numbers. Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes,
// aligned) and gets the pair of row l / 4, columns 2 * (l % 4) and the next, of each matrix;
// transposed: of its transpose.
__device__ __forceinline__ void load_matrices_x4(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void load_matrices_x4_transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void load_matrices_x2(uint32_t (&out)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void load_matrices_x2_transposed(uint32_t (&out)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(shared_address(row))
               : "memory");
}

// sum += a b, float32 sums. Fragments as in the PTX ISA: lane l has rows l / 4 and l / 4 + 8 of
// sum, columns 2 * (l % 4) and the next; a [16, 16] row by row, b [16, 8] column by column.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&sum)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(float (&sum)[4], const uint32_t (&a)[4],
                                                     const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(float (&sum)[4], const uint32_t (&a)[4],
                                                            const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with a [16, 8] and b [8, 8] of tf32: lane l has a[0] at row l / 4, column l % 4; a[1] 8
// rows further down; a[2], a[3] 4 columns further right; b[0] at row l % 4, column l / 4; b[1] 4
// rows further down.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&sum)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The nearest number of 11 significant bits, as the bits of a float32; ties away from zero.
__device__ __forceinline__ uint32_t round_to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// Copies 16 bytes from global to shared memory, or writes 16 zeros and reads nothing. Done after
// the wait_for_copies that covers its group; other threads see it after a barrier behind that.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// Closes a group of copies.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `kOpen` of this thread's newest groups are not done.
template <int kOpen>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

// 2^x within 2 units in the last place; results below the normal numbers are 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// Enqueues a kernel, whose one parameter is a plain struct.
template <class Params>
inline cudaError_t launch(void (*kernel)(Params), dim3 grid, dim3 block, size_t shared_bytes,
                          cudaStream_t stream, const Params& params) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      return error;
    }
  }
  if (loads_only()) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, kernel);
  }
  Params copy = params;
  void* arguments[] = {&copy};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments,
                          shared_bytes, stream);
}

#endif

}  // namespace moh::cuda
