// Brings queries, keys, values and outputs between the tensors' layout and the one that
// products-inl.h computes in.
#if defined(MOH_CPU_ATTENTION_OPERANDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_ATTENTION_OPERANDS_INL_H_
#undef MOH_CPU_ATTENTION_OPERANDS_INL_H_
#else
#define MOH_CPU_ATTENTION_OPERANDS_INL_H_
#endif

#include <type_traits>

#include "cpu/attention/products-inl.h"
#include "cpu/prefetch.h"
#include "cpu/scratch.h"
#include "cpu/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// Keys per block: about equal blocks of at most `most`. A row's result depends on where blocks end,
// so this depends on the number of keys alone.
inline size_t keys_per_block(size_t keys, size_t most) {
  const size_t blocks = HWY_MAX(size_t{1}, (keys + most - 1) / most);
  return round_up(HWY_MAX(size_t{1}, (keys + blocks - 1) / blocks), 2 * kStep);
}

// kLanes rows of `size` elements, times `factor`, to panel[feature][vector]; `panel` points to the
// vector of feature 0.
template <class Products, typename T>
HWY_INLINE void pack_rows(const T* const (&rows)[kLanes], size_t size, float factor, size_t width,
                          float* panel) {
  const DF df;
  for (size_t d = 0; d < size; d += kLanes) {
    VF block[kLanes];
#pragma GCC unroll 16
    for (size_t i = 0; i < kLanes; ++i) {
      block[i] = hn::Mul(load_part(rows[i], d, size), hn::Set(df, factor));
    }
    transpose(block);
    constexpr size_t kDepth = Products::kDepth;
#pragma GCC unroll 16
    for (size_t i = 0; i < kLanes; i += kDepth) {
      hn::Store(Products::pack(block[i], block[i + kDepth - 1]), df,
                panel + (d + i) / kDepth * width * kLanes);
    }
  }
}

// The reverse: panel[feature][vector] * factor[lane] to the first `count` of kLanes rows.
template <typename T>
HWY_INLINE void unpack_rows(const float* panel, size_t width, VF factor, size_t size, size_t count,
                            T* const (&rows)[kLanes]) {
  for (size_t d = 0; d < size; d += kLanes) {
    VF block[kLanes];  // behind the last feature the panel has room; what is there is not stored
#pragma GCC unroll 16
    for (size_t i = 0; i < kLanes; ++i) {
      block[i] = hn::Mul(hn::Load(DF(), panel + (d + i) * width * kLanes), factor);
    }
    transpose(block);
    if (count == kLanes) {
#pragma GCC unroll 16
      for (size_t i = 0; i < kLanes; ++i) {
        store_part(block[i], rows[i], d, size);
      }
    } else {
      for (size_t i = 0; i < count; ++i) {
        store_part(block[i], rows[i], d, size);
      }
    }
  }
}

// Rows whose distance is a multiple of a page fall into few cache sets and push each other out.
constexpr ptrdiff_t kAliasingBytes = 4096;

// Operands of a row in scratch memory.
template <class Products>
constexpr size_t row_operands(size_t size) {
  return (size + Products::kDepth - 1) / Products::kDepth;
}

// `count` rows as operands whose depth is the feature: in place, or copied to `copy`.
template <class Products, typename T>
HWY_INLINE OperandRows<typename Products::Operand> key_operands(const T* rows, ptrdiff_t stride,
                                                                size_t count, size_t size,
                                                                typename Products::Operand* copy) {
  using Operand = typename Products::Operand;
  if constexpr (std::is_same<T, Operand>::value) {
    if (stride * static_cast<ptrdiff_t>(sizeof(T)) % kAliasingBytes != 0) {
      return {rows, stride};
    }
  }
  const size_t length = row_operands<Products>(size);
  for (size_t row = 0; row < count; ++row) {
    const T* from = rows + static_cast<ptrdiff_t>(row) * stride;
    prefetch_row(from + kRowsAhead * stride, size);
    if constexpr (Products::kDepth == 1) {
      for (size_t d = 0; d < size; d += kLanes) {
        store_part(load_part(from, d, size), copy + row * length, d, size);
      }
    } else {
      auto* to = reinterpret_cast<hwy::bfloat16_t*>(copy + row * length);
      for (size_t d = 0; d < size; d += kLanes) {
        store_part(load_part(from, d, size), to, d, length * Products::kDepth);
      }
    }
  }
  return {copy, static_cast<ptrdiff_t>(length)};
}

// The same with the key as depth: operand [key / kDepth][feature] holds kDepth keys.
template <class Products, typename T>
HWY_INLINE OperandRows<typename Products::Operand> value_operands(
    const T* rows, ptrdiff_t stride, size_t count, size_t size, typename Products::Operand* copy) {
  if constexpr (Products::kDepth == 1) {
    return key_operands<Products>(rows, stride, count, size, copy);
  } else {
    const hn::RebindToUnsigned<DF> du32;
    for (size_t row = 0; row < count; row += 2) {
      const T* low = rows + static_cast<ptrdiff_t>(row) * stride;
      const T* high = row + 1 < count ? low + stride : nullptr;
      prefetch_row(low + kRowsAhead * stride, size);
      prefetch_row(low + (kRowsAhead + 1) * stride, size);
      for (size_t d = 0; d < size; d += kLanes) {
        const VF pairs = Products::pack(load_part(low, d, size),
                                        high ? load_part(high, d, size) : hn::Zero(DF()));
        hn::StoreN(hn::BitCast(du32, pairs), du32, copy + row / 2 * size + d,
                   HWY_MIN(kLanes, size - d));
      }
    }
    return {copy, static_cast<ptrdiff_t>(size)};
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif
