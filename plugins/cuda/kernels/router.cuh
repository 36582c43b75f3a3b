// MoHRouter: softmax, top-k and weighing of each token's logits in float32, one warp a token.
//
// A warp keeps the numbers of its token in shared memory: lane l owns heads l, l + 32, ... of them,
// and reads those of the others only to rank its own.
#pragma once

#include "cuda/device/port.cuh"
#include "cuda/device/warp.cuh"

namespace moh::cuda {

constexpr int kMaxRouterWarps = 8;  // of a block
// At once on a multiprocessor; with a larger number, or none, the compiler spills.
constexpr int kResidentRouterBlocks = 3;

template <class T>
struct RouterParams {
  const T* routed_logits;  // [tokens, routed] or null
  const T* shared_logits;  // [tokens, shared] or null
  const T* stage_logits;   // [tokens, 2] or null
  T* gates;                // [tokens, shared + routed]
  int32_t* head_counts;    // [shared + routed] or null
  int64_t tokens;
  int32_t routed, shared, top_k;
  bool mask_only;
};

// Shared memory of a block: two rows of numbers for each warp, then the block's counts.
struct RouterMemory {
  int row;     // numbers for the heads of either kind; a multiple of 4, as they are read in fours
  int counts;  // 0 if counts are not asked for

  __host__ __device__ RouterMemory(int routed, int shared, bool counting)
      : row(((routed > shared ? routed : shared) + 3) / 4 * 4),
        counts(counting ? routed + shared : 0) {}

  __host__ __device__ size_t bytes(int warps) const {
    return sizeof(float) * (static_cast<size_t>(2 * warps) * row + counts);
  }
};

// probabilities[i] = softmax(logits)[i]: each lane writes those that it owns.
template <class T>
__device__ __forceinline__ void softmax(const T* logits, int size, float* probabilities) {
  float largest = -INFINITY;
  for (int i = lane_index(); i < size; i += kWarpSize) {
    probabilities[i] = static_cast<float>(logits[i]);
    largest = fmaxf(largest, probabilities[i]);
  }
  largest = warp_max(largest);
  float sum = 0.0f;
  for (int i = lane_index(); i < size; i += kWarpSize) {
    probabilities[i] = expf(probabilities[i] - largest);
    sum += probabilities[i];
  }
  sum = warp_sum(sum);
  for (int i = lane_index(); i < size; i += kWarpSize) {
    probabilities[i] /= sum;
  }
}

// Whether head j is chosen before head i: for a larger probability, or an equal one and a lower
// index. Among NaN it is the index.
__device__ __forceinline__ int precedes(float other, int j, float own, int i) {
  return other > own || (j < i && !(own > other));
}

// How many heads are chosen before head i. Up to a multiple of 4, numbers below all others follow
// the probabilities.
__device__ __forceinline__ int rank_of(int i, const float* probabilities, int size) {
  const float own = probabilities[i];
  int rank = 0;
  for (int j = 0; j < size; j += 4) {
    const float4 others = *reinterpret_cast<const float4*>(probabilities + j);
    rank += precedes(others.x, j, own, i) + precedes(others.y, j + 1, own, i) +
            precedes(others.z, j + 2, own, i) + precedes(others.w, j + 3, own, i);
  }
  return rank;
}

// The factors of shared and of routed gates.
struct StageWeights {
  float shared = 1.0f, routed = 1.0f;
};

template <class T>
__device__ __forceinline__ StageWeights stage_weights(const T* logits) {
  const float first = static_cast<float>(logits[0]), second = static_cast<float>(logits[1]);
  const float largest = fmaxf(first, second);
  const float shared = expf(first - largest), routed = expf(second - largest);
  const float factor = 2.0f / (shared + routed);
  return {factor * shared, factor * routed};
}

// One token. `row` and what follows it belong to the warp: two times row_size numbers.
template <class T>
class TokenRouter {
 public:
  __device__ TokenRouter(const RouterParams<T>& params, int64_t token, float* row, int row_size,
                         int32_t* counts)
      : params_(params),
        token_(token),
        probabilities_(row),
        chosen_(row + row_size),
        row_size_(row_size),
        counts_(counts),
        gates_(params.gates + token * (params.shared + params.routed)) {}

  __device__ void route() {
    StageWeights stage;
    if (params_.stage_logits != nullptr) {
      stage = stage_weights(params_.stage_logits + token_ * 2);
    }
    write_shared_gates(stage.shared);
    if (params_.routed != 0) {
      write_routed_gates(stage.routed);
    }
  }

 private:
  __device__ void write_shared_gates(float weight) {
    const int size = params_.shared;
    const bool weighted = params_.shared_logits != nullptr;
    if (weighted) {
      softmax(params_.shared_logits + token_ * size, size, probabilities_);
    }
    for (int i = lane_index(); i < size; i += kWarpSize) {
      const float gate = weighted ? static_cast<float>(size) * probabilities_[i] : 1.0f;
      gates_[i] = static_cast<T>(gate * weight);
      count(i);
    }
  }

  __device__ void write_routed_gates(float weight) {
    const int size = params_.routed;
    softmax(params_.routed_logits + token_ * size, size, probabilities_);
    for (int i = lane_index(); i < row_size_; i += kWarpSize) {
      if (i >= size) {
        probabilities_[i] = -1.0f;
      }
    }
    __syncwarp();
    const float sum = choose();
    __syncwarp();
    const float divisor = sum < 0x1p-23f ? 0x1p-23f : sum;  // NaN stays NaN
    for (int i = lane_index(); i < size; i += kWarpSize) {
      const float gate = params_.mask_only
                             ? chosen_[i]
                             : static_cast<float>(params_.top_k) * (chosen_[i] / divisor);
      // A closed gate stays closed, whatever the weight is.
      gates_[params_.shared + i] = static_cast<T>(gate == 0.0f ? 0.0f : gate * weight);
    }
  }

  // Writes the probabilities (or 1) of the chosen heads, 0 for the others, and gives their sum.
  __device__ float choose() {
    float sum = 0.0f;
    for (int i = lane_index(); i < params_.routed; i += kWarpSize) {
      const bool is_chosen = rank_of(i, probabilities_, params_.routed) < params_.top_k;
      chosen_[i] = !is_chosen ? 0.0f : params_.mask_only ? 1.0f : probabilities_[i];
      sum += chosen_[i];
      if (is_chosen) {
        count(params_.shared + i);
      }
    }
    return warp_sum(sum);
  }

  __device__ void count(int head) {
    if (counts_ != nullptr) {
      atomicAdd(&counts_[head], 1);
    }
  }

  const RouterParams<T>& params_;
  int64_t token_;
  float* probabilities_;
  float* chosen_;
  int row_size_;
  int32_t* counts_;
  T* gates_;
};

// Warps take tokens in turn. With head_counts, each block adds what it counted at its end.
template <class T>
__global__ void __launch_bounds__(kMaxRouterWarps* kWarpSize, kResidentRouterBlocks)
    route_tokens(const RouterParams<T> params) {
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int warp = warp_index();
  const RouterMemory memory(params.routed, params.shared, params.head_counts != nullptr);
  float* rows = reinterpret_cast<float*>(shared_memory());
  int32_t* counts =
      memory.counts == 0 ? nullptr : reinterpret_cast<int32_t*>(rows + 2 * warps * memory.row);
  for (int i = static_cast<int>(threadIdx.x); i < memory.counts;
       i += static_cast<int>(blockDim.x)) {
    counts[i] = 0;
  }
  __syncthreads();

  const int64_t step = static_cast<int64_t>(gridDim.x) * warps;
  for (int64_t token = static_cast<int64_t>(blockIdx.x) * warps + warp; token < params.tokens;
       token += step) {
    TokenRouter<T>(params, token, rows + 2 * warp * memory.row, memory.row, counts).route();
  }

  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < memory.counts;
       i += static_cast<int>(blockDim.x)) {
    if (counts[i] != 0) {
      atomicAdd(&params.head_counts[i], counts[i]);
    }
  }
}

}  // namespace moh::cuda
