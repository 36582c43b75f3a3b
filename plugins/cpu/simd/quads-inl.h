// Vectors as blocks of 4 lanes, and the transposition of 4 features of as many tokens as there are
// lanes: fewer shuffles than squares of a whole vector take, and nothing left over for 24 features.
#if defined(MOH_CPU_SIMD_QUADS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_SIMD_QUADS_INL_H_
#undef MOH_CPU_SIMD_QUADS_INL_H_
#else
#define MOH_CPU_SIMD_QUADS_INL_H_
#endif

#include <type_traits>

#include "cpu/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

constexpr size_t kQuad = 4;
using DQuad = hn::Full128<float>;
using VQuad = hn::Vec<DQuad>;

template <typename T>
HWY_INLINE VQuad load_quad(const T* from) {
  if constexpr (kLanes == kQuad) {
    return load_floats(from);
  } else if constexpr (std::is_same<T, float>::value) {
    return hn::LoadU(DQuad(), from);
  } else {
    return hn::PromoteTo(DQuad(), hn::LoadU(hn::Rebind<T, DQuad>(), from));
  }
}

template <typename T>
HWY_INLINE void store_quad(VQuad quad, T* to) {
  if constexpr (std::is_same<T, float>::value) {
    hn::StoreU(quad, DQuad(), to);
  } else {
    const hn::Rebind<T, DQuad> dt;
    hn::StoreU(hn::DemoteTo(dt, quad), dt, to);
  }
}

// A vector whose block b is quad(b).
template <class Quad>
HWY_INLINE VF join_quads(const Quad& quad) {
  static_assert(kLanes == kQuad || kLanes == 2 * kQuad || kLanes == 4 * kQuad, "");
  VF joined = hn::ResizeBitCast(DF(), quad(0));
  if constexpr (kLanes > kQuad) {
    joined = hn::InsertBlock<1>(joined, quad(1));
  }
  if constexpr (kLanes > 2 * kQuad) {
    joined = hn::InsertBlock<2>(joined, quad(2));
    joined = hn::InsertBlock<3>(joined, quad(3));
  }
  return joined;
}

// Calls use(b, quad) for each block b of a vector.
template <class Use>
HWY_INLINE void split_quads(VF joined, const Use& use) {
  use(0, hn::ResizeBitCast(DQuad(), joined));
  if constexpr (kLanes > kQuad) {
    use(1, hn::ExtractBlock<1>(joined));
  }
  if constexpr (kLanes > 2 * kQuad) {
    use(2, hn::ExtractBlock<2>(joined));
    use(3, hn::ExtractBlock<3>(joined));
  }
}

// In each block of 4 lanes, lane j of rows[i] goes to lane i of rows[j].
HWY_INLINE void transpose_blocks(VF (&rows)[kQuad]) {
  const DF df;
  const hn::Repartition<double, DF> dd;
  const auto pairs = [&](VF x) HWY_ATTR { return hn::BitCast(dd, x); };
  const VF low01 = hn::InterleaveLower(df, rows[0], rows[1]);
  const VF high01 = hn::InterleaveUpper(df, rows[0], rows[1]);
  const VF low23 = hn::InterleaveLower(df, rows[2], rows[3]);
  const VF high23 = hn::InterleaveUpper(df, rows[2], rows[3]);
  rows[0] = hn::BitCast(df, hn::InterleaveLower(dd, pairs(low01), pairs(low23)));
  rows[1] = hn::BitCast(df, hn::InterleaveUpper(dd, pairs(low01), pairs(low23)));
  rows[2] = hn::BitCast(df, hn::InterleaveLower(dd, pairs(high01), pairs(high23)));
  rows[3] = hn::BitCast(df, hn::InterleaveUpper(dd, pairs(high01), pairs(high23)));
}

// columns[j] = element j of kLanes quads: lane i is from the quad that load(i) gives.
template <class Load>
HWY_INLINE void pack_quads(const Load& load, VF (&columns)[kQuad]) {
#pragma GCC unroll 4
  for (size_t j = 0; j < kQuad; ++j) {
    columns[j] = join_quads([&](size_t b) HWY_ATTR { return load(kQuad * b + j); });
  }
  transpose_blocks(columns);
}

// The reverse: calls store(i, quad) for each lane i.
template <class Store>
HWY_INLINE void unpack_quads(VF (&columns)[kQuad], const Store& store) {
  transpose_blocks(columns);
#pragma GCC unroll 4
  for (size_t j = 0; j < kQuad; ++j) {
    split_quads(columns[j], [&](size_t b, VQuad quad) HWY_ATTR { store(kQuad * b + j, quad); });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif
