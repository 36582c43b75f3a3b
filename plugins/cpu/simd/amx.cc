#include "cpu/simd/amx.h"

#if defined(__x86_64__) && defined(__linux__)

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace moh::cpu {
namespace {

bool has_amx_bfloat16() {
  constexpr unsigned kBFloat16 = 1u << 22, kTile = 1u << 24;
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBFloat16) != 0 && (d & kTile) != 0;
}

// Matrix registers make what is saved of a thread 8 KiB larger, so Linux (from 5.16 on) wants to be
// asked. It refuses if a thread has a stack for signals that would be too small.
bool is_permitted() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool may_use_amx_bfloat16() {
  static const bool may = has_amx_bfloat16() && is_permitted();
  return may;
}

}  // namespace moh::cpu

#else

namespace moh::cpu {

bool may_use_amx_bfloat16() { return false; }

}  // namespace moh::cpu

#endif
