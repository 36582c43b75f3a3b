#include "cuda/conformance/conformance.h"

#include <cstring>
#include <string>

#include "cuda/conformance/lanes.cuh"
#include "cuda/conformance/matrices.cuh"
#include "cuda/conformance/memory.cuh"
#include "cuda/conformance/numbers.cuh"

namespace moh::cuda::conformance {

struct Params {
  const uint32_t* in;
  uint32_t* out;
};

template <class Primitive>
__global__ void conformance_kernel(const Params params) {
  Primitive::run(params.in + blockIdx.x * Primitive::kIn,
                 params.out + blockIdx.x * Primitive::kOut);
}

namespace {

struct Entry {
  const char* name;
  void (*kernel)(Params);
  int threads, in_words, out_words, shared_bytes;
};

template <class Primitive>
Entry entry(const char* name) {
  return {name,
          &conformance_kernel<Primitive>,
          Primitive::kThreads,
          Primitive::kIn,
          Primitive::kOut,
          Primitive::kShared};
}

const Entry kEntries[] = {
    entry<LoadMatrices<Load::kX4>>("load_matrices_x4"),
    entry<LoadMatrices<Load::kX4Transposed>>("load_matrices_x4_transposed"),
    entry<LoadMatrices<Load::kX2>>("load_matrices_x2"),
    entry<LoadMatrices<Load::kX2Transposed>>("load_matrices_x2_transposed"),
    entry<MultiplyMatrices<Product::kHalf>>("mma_m16n8k16_half"),
    entry<MultiplyMatrices<Product::kBFloat16>>("mma_m16n8k16_bfloat16"),
    entry<MultiplyMatrices<Product::kTf32>>("mma_m16n8k8_tf32"),
    entry<CopyAsync>("copy_async_16"),
    entry<Barrier>("syncthreads"),
    entry<AtomicSums>("atomic_add"),
    entry<ShuffleLanes<Shuffle::kLane>>("shfl_sync"),
    entry<ShuffleLanes<Shuffle::kXor>>("shfl_xor_sync"),
    entry<ShuffleLanes<Shuffle::kUp>>("shfl_up_sync"),
    entry<ShuffleLanes<Shuffle::kDown>>("shfl_down_sync"),
    entry<Votes>("votes"),
    entry<Bits>("bits"),
    entry<Number<Exp2>>("exp2_approx"),
    entry<Number<RoundToTf32>>("round_to_tf32"),
    entry<Number<FloatToHalf>>("float2half"),
    entry<Number<HalfToFloat>>("half2float"),
    entry<Number<FloatToBFloat16>>("float2bfloat16"),
    entry<Number<BFloat16ToFloat>>("bfloat162float"),
};

std::string list() {
  std::string result;
  for (const Entry& entry : kEntries) {
    result += std::string(entry.name) + " " + std::to_string(entry.in_words) + " " +
              std::to_string(entry.out_words) + "\n";
  }
  return result;
}

const Entry* find(const char* name) {
  for (const Entry& entry : kEntries) {
    if (std::strcmp(entry.name, name) == 0) {
      return &entry;
    }
  }
  return nullptr;
}

}  // namespace
}  // namespace moh::cuda::conformance

using namespace moh::cuda::conformance;

const char* moh_cuda_conformance_list() {
  static const std::string result = list();
  return result.c_str();
}

int moh_cuda_conformance(const char* name, const void* in, size_t in_bytes, void* out,
                         size_t out_bytes, CUstream_st* stream) {
  constexpr int kRefused = -1;
  const Entry* entry = find(name);
  if (entry == nullptr) {
    return kRefused;
  }
  const size_t in_unit = sizeof(uint32_t) * static_cast<size_t>(entry->in_words);
  const size_t out_unit = sizeof(uint32_t) * static_cast<size_t>(entry->out_words);
  const size_t blocks = in_bytes / in_unit;
  if (blocks == 0 || blocks * in_unit != in_bytes || blocks * out_unit != out_bytes) {
    return kRefused;
  }
  const Params params{static_cast<const uint32_t*>(in), static_cast<uint32_t*>(out)};
  return moh::cuda::launch(entry->kernel, dim3(static_cast<unsigned>(blocks)),
                           dim3(static_cast<unsigned>(entry->threads)),
                           static_cast<size_t>(entry->shared_bytes), stream, params);
}
