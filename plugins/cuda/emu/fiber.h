// A computation with a stack of its own, which gives the processor away only where it says so.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(MOH_UCONTEXT)
#define MOH_UCONTEXT
#endif
#if defined(MOH_UCONTEXT)
#include <ucontext.h>
#endif

#include "cuda/emu/sanitizers.h"

namespace moh::cuda::emu {

class Fiber {
 public:
  // Accesses of what runs on it are ascribed to `identity`, which outlives it.
  explicit Fiber(Identity identity) : identity_(identity) {}
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // The next switch to this fiber calls `entry` on an empty stack; it begins with arrive() and ends
  // with leave_to(). A fiber that was never prepared stands for the code that switches away from
  // it.
  void prepare(void (*entry)());
  static void arrive();

  // Goes on with `to`; returns when another fiber switches to `from` again.
  static void switch_to(Fiber& from, Fiber& to);
  [[noreturn]] static void leave_to(Fiber& from, Fiber& to);

 private:
  static void transfer(Fiber& from, Fiber& to, bool for_good);
  void make_stack();

  Identity identity_;
  unsigned char* stack_ = nullptr;  // ours, if prepared
  const void* bottom_ = nullptr;    // of the stack, whose ever
  size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
#if defined(MOH_UCONTEXT)
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace moh::cuda::emu
