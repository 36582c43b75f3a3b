// The queries of a block: which are open, and what their scores and their window's weights are
// computed from.
#pragma once

#include "cuda/device/softmax.cuh"
#include "cuda/device/tile.cuh"
#include "cuda/kernels/aggregated/memory.cuh"

namespace moh::cuda {

// The places where a warp's lanes are true: those of a lane before it, and all.
struct LaneVotes {
  uint32_t votes;

  __device__ explicit LaneVotes(bool vote) : votes(__ballot_sync(kAllLanes, vote)) {}
  __device__ int before() const { return __popc(votes & ((1u << lane_index()) - 1)); }
  __device__ int count() const { return __popc(votes); }
};

// One query a thread: thread i looks at pixel i of the tile, if it has that many.
template <class T>
struct TilePixel {
  int token = -1;  // -1: outside of the image
  Pixel position{0};
  float gate = 0.0f;

  __device__ TilePixel(const AggregatedParams<T>& params, const AggregatedWork& work) {
    const int index = static_cast<int>(threadIdx.x);
    const int y = index / params.tile_width, x = index % params.tile_width;
    if (y < params.tile_height && work.y + y < params.height && work.x + x < params.width) {
      token = (work.y + y) * params.width + work.x + x;
      position = Pixel::at(y, x);
      const int64_t row = static_cast<int64_t>(work.image) * params.tokens() + token;
      gate = to_float(params.gates[row * params.heads + work.head]);
    }
  }

  __device__ bool is_open() const { return gate != 0.0f; }  // NaN is open
  __device__ bool is_closed() const { return token >= 0 && !is_open(); }
};

// Where channel 0 of a token's head is in queries and output.
template <class T>
__device__ __forceinline__ int64_t query_offset(const AggregatedParams<T>& params,
                                                const AggregatedWork& work, int token) {
  const int64_t row = static_cast<int64_t>(work.image) * params.tokens() + token;
  return (row * params.heads + work.head) * params.head_dim;
}

// Writes zeros for the closed pixels of a warp, one after the other.
template <class T>
__device__ __forceinline__ void close_rows(const AggregatedParams<T>& params,
                                           const AggregatedWork& work, int first_channel,
                                           int channels, const TilePixel<T>& pixel) {
  for (uint32_t closed = LaneVotes(pixel.is_closed()).votes; closed != 0; closed &= closed - 1) {
    const int token = __shfl_sync(kAllLanes, pixel.token, __ffs(closed) - 1);
    T* row = params.output + query_offset(params, work, token) + first_channel;
    for (int i = lane_index(); i < channels; i += kWarpSize) {
      row[i] = from_float<T>(0.0f);
    }
  }
}

// Lists the open queries of the tile in `rows`, in the order of the image, and gives their number.
// The list is there after a barrier.
template <int kWarps, class T>
__device__ __forceinline__ int list_open_queries(QueryRow* rows, int32_t* open_counts,
                                                 const TilePixel<T>& pixel) {
  const LaneVotes open(pixel.is_open());
  if (lane_index() == 0) {
    open_counts[warp_index()] = open.count();
  }
  __syncthreads();
  int row = open.before(), count = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    row += warp < warp_index() ? open_counts[warp] : 0;
    count += open_counts[warp];
  }
  if (pixel.is_open()) {
    rows[row] = {pixel.token, pixel.position, pixel.gate};
  }
  return count;
}

// factors[r] = 1 / max(|row r|, epsilon) of a tile, four lanes a row.
template <int kRows, int kThreads, class T>
__device__ __forceinline__ void inverse_lengths(float* factors, const T* tile, int stride,
                                                int columns, float epsilon) {
  constexpr int kAtOnce = kThreads / 4;
  static_assert(kRows % kAtOnce == 0, "every lane takes part in the sums");
  for (int r = static_cast<int>(threadIdx.x) / 4; r < kRows; r += kAtOnce) {
    float sum = 0.0f;
    for (int i = lane_index() % 4; i < columns; i += 4) {
      const float x = to_float(tile[r * stride + i]);
      sum = fmaf(x, x, sum);
    }
    sum = row_sum(sum);
    if (lane_index() % 4 == 0) {
      factors[r] = 1.0f / fmaxf(sqrtf(sum), epsilon);
    }
  }
}

// What queries become on the way into the products.
template <class T, int kHeadDim>
class BlockQueries {
  using Memory = AggregatedMemory<T, kHeadDim>;
  using Sizes = AggregatedSizes<T, kHeadDim>;

 public:
  __device__ BlockQueries(const AggregatedParams<T>& params, const AggregatedWork& work,
                          const Memory& memory, int rows)
      : params_(params), work_(work), memory_(memory), rows_(rows) {}

  // Whether the second tile of queries holds anything.
  __device__ bool has_low_tile() const {
    return Sizes::kQueryTiles == 2 && (params_.normalize || params_.query_embedding != nullptr);
  }

  __device__ void load() const {
    load_tile<Sizes::kRows, kHeadDim, Sizes::kThreads>(
        memory_.queries, Sizes::kStride, rows_, params_.head_dim, params_.query_vectors,
        [&](int r) { return params_.query + query_offset(params_, work_, memory_.rows[r].token); });
  }

  // After load() and a barrier; ends with a barrier.
  __device__ void prepare() const {
    if (params_.normalize) {
      inverse_lengths<Sizes::kRows, Sizes::kThreads>(memory_.query_factors, memory_.queries,
                                                     Sizes::kStride, params_.head_dim,
                                                     params_.epsilon);
    } else if (threadIdx.x < Sizes::kRows) {
      memory_.query_factors[threadIdx.x] = 1.0f;
    }
    __syncthreads();
    if (params_.weighs_window()) {
      weigh_windows();
      __syncthreads();
    }
    if (params_.normalize || params_.query_embedding != nullptr) {
      normalize_and_embed();
      __syncthreads();
    }
  }

 private:
  // window_weights[r, l] = q' window_tokens[:, l] + window_offset[l]
  __device__ void weigh_windows() const {
    const int places = params_.places();
    for (int i = static_cast<int>(threadIdx.x); i < rows_ * places; i += Sizes::kThreads) {
      const int row = i / places, place = i % places;
      float weight = 0.0f;
      if (params_.window_tokens != nullptr) {
        weight = memory_.query_factors[row] * product_with_window_token(row, place);
      }
      if (params_.window_offset != nullptr) {
        weight += to_float(params_.window_offset[work_.head * places + place]);
      }
      memory_.window_weights[i] = weight;
    }
  }

  __device__ float product_with_window_token(int row, int place) const {
    const int places = params_.places();
    const T* query = memory_.queries + row * Sizes::kStride;
    const T* token = params_.window_tokens +
                     static_cast<int64_t>(work_.head) * params_.head_dim * places + place;
    float sum = 0.0f;
#pragma unroll 4
    for (int d = 0; d < params_.head_dim; ++d) {
      sum = fmaf(to_float(query[d]), to_float(token[static_cast<int64_t>(d) * places]), sum);
    }
    return sum;
  }

  // Queries become q' + query_embedding, in two parts if they have 16 bits.
  __device__ void normalize_and_embed() const {
    const T* embedding = params_.query_embedding == nullptr
                             ? nullptr
                             : params_.query_embedding + work_.head * params_.head_dim;
    for (int i = static_cast<int>(threadIdx.x); i < Sizes::kRows * kHeadDim; i += Sizes::kThreads) {
      const int row = i / kHeadDim, d = i % kHeadDim;
      T* high = memory_.queries + row * Sizes::kStride + d;
      float x = to_float(*high) * memory_.query_factors[row];
      if (embedding != nullptr && d < params_.head_dim) {
        x += to_float(embedding[d]);
      }
      *high = from_float<T>(x);
      if constexpr (Sizes::kQueryTiles == 2) {
        high[Sizes::kRows * Sizes::kStride] = from_float<T>(x - to_float(*high));
      }
    }
  }

  const AggregatedParams<T>& params_;
  const AggregatedWork& work_;
  const Memory& memory_;
  int rows_;
};

}  // namespace moh::cuda
