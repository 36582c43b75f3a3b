// Tiles of rows in shared memory. tensor_core.cuh says how they lie.
#pragma once

#include "cuda/device/element.cuh"
#include "cuda/device/integers.cuh"
#include "cuda/device/port.cuh"

namespace moh::cuda {

// Loads a tile of kRows rows of kColumns elements with kThreads threads: `columns` elements of row
// r from row(r), a pointer, and zeros behind them; zeros also in rows from `rows` >= 1 on.
//
// It has arrived after wait_for_copies and a barrier. `vectors`: every row starts at a multiple of
// 16 bytes and has a multiple of 16 bytes; then the copy is asynchronous.
template <int kRows, int kColumns, int kThreads, class T, class RowPointer>
__device__ __forceinline__ void load_tile(T* tile, int stride, int rows, int columns, bool vectors,
                                          RowPointer row) {
  if (vectors) {
    constexpr int kParts = kColumns / kVector<T>;
    // Neighbouring threads copy neighbouring parts of a row, whatever the number of parts is.
    constexpr int kNeighbours = smaller(kParts & -kParts, kWarpSize);
    const int first = threadIdx.x % kNeighbours;
#pragma unroll 1
    for (int r = threadIdx.x / kNeighbours; r < kRows; r += kThreads / kNeighbours) {
      const T* from = row(r < rows ? r : 0);
#pragma unroll
      for (int part = 0; part < kParts; part += kNeighbours) {
        const int column = (part + first) * kVector<T>;
        const bool valid = r < rows && column < columns;
        copy_async_16(tile + r * stride + column, from + (column < columns ? column : 0), valid);
      }
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
      const int r = i / kColumns, column = i % kColumns;
      const bool valid = r < rows && column < columns;
      tile[r * stride + column] = valid ? row(r)[column] : from_float<T>(0.0f);
    }
  }
}

}  // namespace moh::cuda
