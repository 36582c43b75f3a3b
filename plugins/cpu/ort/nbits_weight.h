// A weight of few bits as nodes have it: two inputs, and numbers among the attributes.
#pragma once

#include "moh/projection.h"
#include "ort/ort.h"

namespace moh::ort {

struct NBitsWeightSizes {
  int64_t rows, columns, bits;

  Shape digits_shape() const { return {columns, blocks(), bits * kBlock / 8}; }
  Shape scales_shape() const { return {columns, blocks()}; }

  NBitsWeight weight(const Input& digits, const Input& scales) const {
    return {static_cast<const uint8_t*>(digits.data), static_cast<const float*>(scales.data),
            static_cast<int32_t>(rows), static_cast<int32_t>(columns), static_cast<int32_t>(bits)};
  }

 private:
  static constexpr int64_t kBlock = 32;

  int64_t blocks() const { return (rows + kBlock - 1) / kBlock; }
};

}  // namespace moh::ort
