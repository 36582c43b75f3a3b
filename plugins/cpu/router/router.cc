// MoHRouter: softmax, top-k and weighing of each token's logits, in float32.
#include "cpu/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/router/router.cc"
#include "hwy/foreach_target.h"  // compiles this file once more for each instruction set

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/simd/vector-inl.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// Tokens that one call of the loop's body computes.
constexpr int64_t kTokensPerTask = 64;
constexpr float kEpsilon = 1.1920928955078125e-07f;  // of float32

// probabilities = softmax(logits), in float32. `probabilities` has room for whole vectors.
template <typename T>
void softmax(const T* logits, size_t size, float* probabilities) {
  const DF df;
  VF largest = hn::Set(df, -kInfinity);
  for (size_t i = 0; i < size; i += kLanes) {
    const size_t count = HWY_MIN(kLanes, size - i);
    const VF x = hn::IfThenElse(hn::FirstN(df, count), load_first(logits + i, count),
                                hn::Set(df, -kInfinity));
    largest = hn::Max(largest, x);
    hn::StoreU(x, df, probabilities + i);
  }
  const VF max = hn::MaxOfLanes(df, largest);
  VF sums = hn::Zero(df);
  for (size_t i = 0; i < size; i += kLanes) {
    const VF x = hn::Sub(hn::LoadU(df, probabilities + i), max);
    const VF e =
        hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(df, x));  // Exp takes NaN for a small number
    sums = hn::Add(sums, e);
    hn::StoreU(e, df, probabilities + i);
  }
  const VF sum = hn::SumOfLanes(df, sums);
  for (size_t i = 0; i < size; i += kLanes) {
    hn::StoreU(hn::Div(hn::LoadU(df, probabilities + i), sum), df, probabilities + i);
  }
}

// How many of the probabilities come before number i: the larger ones, and equal ones with a lower
// index.
inline size_t rank_of(size_t i, const float* probabilities, size_t size) {
  const DF df;
  const VF own = hn::Set(df, probabilities[i]), own_index = hn::Set(df, static_cast<float>(i));
  size_t rank = 0;
  for (size_t j = 0; j < size; j += kLanes) {  // behind the end are zeros with higher indices
    const VF other = hn::LoadU(df, probabilities + j);
    const auto earlier = hn::Lt(hn::Iota(df, static_cast<float>(j)), own_index);
    const auto not_smaller =
        hn::Not(hn::Gt(own, other));  // also of NaN: then the first k are chosen
    rank += hn::CountTrue(df, hn::Or(hn::Gt(other, own), hn::And(earlier, not_smaller)));
  }
  return rank;
}

// gates = k * p / max(sum of the k largest p, eps) for the k largest, else 0; or 1 and 0 if
// `mask_only`.
inline void write_routed_gates(const float* probabilities, size_t size, size_t top_k,
                               bool mask_only, float* gates) {
  float sum = 0.0f;
  for (size_t i = 0; i < size; ++i) {
    const bool chosen = rank_of(i, probabilities, size) < top_k;
    gates[i] = !chosen ? 0.0f : mask_only ? 1.0f : probabilities[i];
    sum += gates[i];
  }
  if (mask_only) {
    return;
  }
  const float divisor = sum < kEpsilon ? kEpsilon : sum;  // NaN stays NaN
  for (size_t i = 0; i < size; ++i) {
    gates[i] = static_cast<float>(top_k) * (gates[i] / divisor);
  }
}

// The gates of one token after the other, through float32 scratch of a thread.
template <typename T>
class TokenRouter {
 public:
  explicit TokenRouter(const RouterArgs& args)
      : args_(args),
        routed_(static_cast<size_t>(args.routed)),
        shared_(static_cast<size_t>(args.shared)),
        probabilities_(padded(HWY_MAX(HWY_MAX(routed_, shared_), size_t{2}))),
        gates_(padded(routed_ + shared_)) {}

  void route(int64_t token) {
    float* const probabilities = probabilities_.data();
    float* const shared_gates = gates_.data();
    float* const routed_gates = shared_gates + shared_;
    std::fill(shared_gates, routed_gates, 1.0f);
    if (args_.shared_logits != nullptr) {
      softmax(logits(args_.shared_logits, token, shared_), shared_, probabilities);
      for (size_t i = 0; i < shared_; ++i) {
        shared_gates[i] = static_cast<float>(shared_) * probabilities[i];
      }
    }
    if (routed_ != 0) {
      softmax(logits(args_.routed_logits, token, routed_), routed_, probabilities);
      write_routed_gates(probabilities, routed_, static_cast<size_t>(args_.top_k), args_.mask_only,
                         routed_gates);
    }
    if (args_.stage_logits != nullptr) {
      softmax(logits(args_.stage_logits, token, 2), 2, probabilities);
      for (size_t i = 0; i < shared_; ++i) {
        shared_gates[i] *= 2.0f * probabilities[0];
      }
      for (size_t i = 0; i < routed_; ++i) {  // a closed gate stays closed, whatever the weight is
        if (routed_gates[i] != 0.0f) {
          routed_gates[i] *= 2.0f * probabilities[1];
        }
      }
    }
    write(token);
  }

 private:
  static size_t padded(size_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

  static const T* logits(const void* logits, int64_t token, size_t size) {
    return static_cast<const T*>(logits) + token * static_cast<int64_t>(size);
  }

  void write(int64_t token) {
    const size_t size = shared_ + routed_;
    T* to = static_cast<T*>(args_.gates) + token * static_cast<int64_t>(size);
    for (size_t i = 0; i < size; i += kLanes) {
      store_first(hn::LoadU(DF(), gates_.data() + i), to + i, HWY_MIN(kLanes, size - i));
    }
  }

  const RouterArgs& args_;
  const size_t routed_, shared_;
  std::vector<float> probabilities_, gates_;
};

template <typename T>
void route_tokens(const RouterArgs& args, int64_t begin, int64_t end) {
  TokenRouter<T> router(args);
  for (int64_t token = begin; token < end; ++token) {
    router.route(token);
  }
}

// One call, as the threads see it.
struct RouterCall {
  const RouterArgs& args;
  std::atomic<bool> out_of_memory{false};

  static void run_one(void* call, size_t i) {
    auto& self = *static_cast<RouterCall*>(call);
    const int64_t begin = static_cast<int64_t>(i) * kTokensPerTask;
    const int64_t end = std::min(begin + kTokensPerTask, self.args.tokens);
    try {
      with_type(self.args.dtype,
                [&](auto type) { route_tokens<decltype(type)>(self.args, begin, end); });
    } catch (const std::bad_alloc&) {
      self.out_of_memory = true;
    }
  }
};

void router(const RouterArgs& args, const Parallel& parallel) {
  RouterCall call{args};
  parallel(static_cast<size_t>((args.tokens + kTokensPerTask - 1) / kTokensPerTask),
           &RouterCall::run_one, &call);
  if (call.out_of_memory) {
    throw std::bad_alloc();
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
