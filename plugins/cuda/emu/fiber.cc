#include "cuda/emu/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#include "cuda/emu/sanitizers.h"

#if !defined(MOH_UCONTEXT)
// Saves what a function must preserve on the stack, and that stack's pointer at *save; goes on
// where another call of this function left off.
extern "C" void moh_emulator_switch(void** save, void* stack_pointer);
__asm__(
    ".text\n"
    ".hidden moh_emulator_switch\n"
    ".globl moh_emulator_switch\n"
    ".type moh_emulator_switch,@function\n"
    "moh_emulator_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp,(%rdi)\n"
    "  movq %rsi,%rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size moh_emulator_switch,.-moh_emulator_switch\n");
#endif

namespace moh::cuda::emu {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 4096;

Fiber* leaving = nullptr;  // who made the switch that is under way

}  // namespace

Fiber::~Fiber() {
  if (stack_ != nullptr) {
    munmap(stack_ - kGuardBytes, kGuardBytes + kStackBytes);
  }
}

void Fiber::make_stack() {
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) {
    abort();
  }
  stack_ = static_cast<unsigned char*>(memory) + kGuardBytes;
  bottom_ = stack_;
  stack_bytes_ = kStackBytes;
}

void Fiber::prepare(void (*entry)()) {
  if (stack_ == nullptr) {
    make_stack();
  }
  allow(stack_, kStackBytes);  // what an abandoned computation left
  fake_stack_ = nullptr;
#if defined(MOH_UCONTEXT)
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#else
  // As if the entry had been called: aligned, except for a return address, which is null.
  constexpr size_t kSavedRegisters = 6;
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (size_t i = 0; i < kSavedRegisters; ++i) {
    *--top = nullptr;
  }
  stack_pointer_ = top;
#endif
}

void Fiber::switch_to(Fiber& from, Fiber& to) { transfer(from, to, false); }

void Fiber::leave_to(Fiber& from, Fiber& to) {
  transfer(from, to, true);
  abort();
}

void Fiber::transfer(Fiber& from, Fiber& to, [[maybe_unused]] bool for_good) {
  leaving = &from;
#if defined(__SANITIZE_ADDRESS__)
  void** fake_stack = for_good ? nullptr : &from.fake_stack_;  // null: it is freed
  __sanitizer_start_switch_fiber(fake_stack, to.bottom_, to.stack_bytes_);
#endif
  assume(to.identity_);
#if defined(MOH_UCONTEXT)
  swapcontext(&from.context_, &to.context_);
#else
  moh_emulator_switch(&from.stack_pointer_, to.stack_pointer_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::arrive() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &leaving->bottom_, &leaving->stack_bytes_);
#endif
}

}  // namespace moh::cuda::emu
