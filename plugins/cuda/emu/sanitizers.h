// What AddressSanitizer and ThreadSanitizer are told; nothing in a build without them.
//
// ThreadSanitizer takes each CUDA thread for a thread, and only barriers for synchronisation. The
// emulator's own files are compiled without its instrumentation: what they do to memory of the
// kernel, they report here.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(MOH_EMULATED_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read16_pc(void* address, void* caller);
extern "C" void __tsan_write16_pc(void* address, void* caller);
#endif

namespace moh::cuda::emu {

#if defined(__SANITIZE_ADDRESS__)
inline void forbid(void* memory, size_t bytes) { __asan_poison_memory_region(memory, bytes); }
inline void allow(void* memory, size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
#else
inline void forbid(void*, size_t) {}
inline void allow(void*, size_t) {}
#endif

#if defined(MOH_EMULATED_TSAN)
constexpr bool kRaceCheck = true;
// What happened before a release happened before everything behind a later acquire of that tag.
inline void release(void* tag) { __tsan_release(tag); }
inline void acquire(void* tag) { __tsan_acquire(tag); }
// `caller`: the kernel's instruction, for the report.
inline void reads_16(const void* memory, void* caller) {
  __tsan_read16_pc(const_cast<void*>(memory), caller);
}
inline void writes_16(void* memory, void* caller) { __tsan_write16_pc(memory, caller); }
// Whom accesses are ascribed to.
using Identity = void*;
inline Identity new_identity() { return __tsan_create_fiber(0); }
inline void end_identity(Identity identity) { __tsan_destroy_fiber(identity); }
inline Identity current_identity() { return __tsan_get_current_fiber(); }
inline void assume(Identity identity) {
  __tsan_switch_to_fiber(identity, __tsan_switch_to_fiber_no_sync);
}
#else
constexpr bool kRaceCheck = false;
inline void release(void*) {}
inline void acquire(void*) {}
inline void reads_16(const void*, void*) {}
inline void writes_16(void*, void*) {}
struct Identity {};
inline Identity new_identity() { return {}; }
inline void end_identity(Identity) {}
inline Identity current_identity() { return {}; }
inline void assume(Identity) {}
#endif

}  // namespace moh::cuda::emu
