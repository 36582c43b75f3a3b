// MoHAttention: plans the rows that have to be computed, and computes them task by task.
#include "cpu/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention/attention.cc"
#include "hwy/foreach_target.h"  // compiles this file once more for each instruction set

#include <atomic>
#include <cstring>
#include <new>

#include "cpu/attention/addressing.h"
#include "cpu/attention/few_rows-inl.h"
#include "cpu/attention/plan.h"
#include "cpu/attention/sights-inl.h"
#include "cpu/attention/tiles-inl.h"
#include "cpu/kernels.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

constexpr auto kTileRows = static_cast<int32_t>(kMaxVectors * kLanes);
constexpr TaskSizes kTaskSizes{static_cast<int32_t>(kLanes), kTileRows,
                               static_cast<int32_t>(kTilesPerTask) * kTileRows};

template <typename T>
void zero_other_rows(const TaskView& view) {
  const int32_t* next = view.task.rows;
  const int32_t* const end = next + view.task.row_count;
  for (int64_t place = view.task.zero_begin; place < view.task.zero_end; ++place) {
    if (next != end && *next == place) {
      ++next;
    } else {
      std::memset(view.template output<T>(view.row_at(place)), 0,
                  static_cast<size_t>(view.args.value_dim) * sizeof(T));
    }
  }
}

// Products are of float32, or of `Rounded` where Compute::kBFloat16 allows it.
template <class Rounded, typename T>
void run_task(const TaskView& view, Compute compute) {
  thread_local Scratch scratch;
  zero_other_rows<T>(view);
  if (view.task.row_count == 0) {
    return;
  }
  if (static_cast<size_t>(view.task.row_count) <= kFewRows) {
    return FewRowsTask<T>(view, scratch).run();
  }
  if (compute == Compute::kBFloat16) {
    return TileTask<Rounded, T>(view, scratch).run();
  }
  TileTask<Float32Products, T>(view, scratch).run();
}

// One call, as the threads see it.
template <class Rounded>
struct Call {
  const AttentionArgs& args;
  Compute compute;
  const Sights& sights;
  const Plan& plan;
  std::atomic<bool> out_of_memory{false};

  static void run_one(void* call, size_t i) {
    auto& self = *static_cast<Call*>(call);
    const TaskView view{self.args, self.sights, self.plan.tasks()[i]};
    try {
      with_type(self.args.dtype,
                [&](auto type) { run_task<Rounded, decltype(type)>(view, self.compute); });
    } catch (const std::bad_alloc&) {
      self.out_of_memory = true;
    }
  }
};

template <class Rounded>
void compute_attention(const AttentionArgs& args, Compute compute, const Parallel& parallel) {
  thread_local SightMaker sight_maker;
  thread_local Plan plan;
  const Sights sights = sight_maker.make(args, parallel);
  plan.make(args, sights, kTaskSizes);
  Call<Rounded> call{args, compute, sights, plan};
  parallel(plan.tasks().size(), &Call<Rounded>::run_one, &call);
  if (call.out_of_memory) {
    throw std::bad_alloc();
  }
}

void attention(const AttentionArgs& args, Compute compute, const Parallel& parallel) {
#if MOH_BFLOAT16_PRODUCTS
  compute_attention<BFloat16Products>(args, compute, parallel);
#else
  compute_attention<Float32Products>(args, compute, parallel);
#endif
}

#if MOH_AMX_PRODUCTS
void amx_attention(const AttentionArgs& args, Compute compute, const Parallel& parallel) {
  compute_attention<MatrixProducts<AmxRegisters>>(args, compute, parallel);
}
#endif

#if MOH_EMULATED_AMX
void emulated_amx_attention(const AttentionArgs& args, Compute compute, const Parallel& parallel) {
  compute_attention<MatrixProducts<EmulatedRegisters<kLanes>>>(args, compute, parallel);
}
#endif

extern const bool kHasBFloat16;
const bool kHasBFloat16 = MOH_BFLOAT16_PRODUCTS;

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
