#include "cuda/emu/banks.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <set>
#include <string>

#include "cuda/emu/block.h"
#include "cuda/emu/control.h"

namespace moh::cuda::emu {
namespace {

constexpr unsigned kBanks = 32, kBankBytes = 4;

// How often the banks are asked for the accesses of some lanes: once for each word of a bank.
size_t rounds(const uintptr_t* addresses, unsigned lanes, unsigned bytes) {
  std::array<std::set<uintptr_t>, kBanks> words;
  for (unsigned lane = 0; lane < lanes; ++lane) {
    for (unsigned at = 0; addresses[lane] != 0 && at < bytes; at += kBankBytes) {
      const uintptr_t word = (addresses[lane] + at) / kBankBytes;
      words[word % kBanks].insert(word);
    }
  }
  size_t most = 0;
  for (const auto& of_bank : words) {
    most = std::max(most, of_bank.size());
  }
  return most;
}

}  // namespace

void BankCounter::note(int lane, void* instruction, const void* address, unsigned bytes) {
  const auto at = static_cast<size_t>(lane);
  const unsigned time = times_[at][instruction]++;
  Access& access = accesses_[{parts_[at], instruction, time}];
  access.addresses[at] = reinterpret_cast<uintptr_t>(address);
  access.bytes = bytes;
}

void BankCounter::next_part(int lane) {
  const auto at = static_cast<size_t>(lane);
  ++parts_[at];
  times_[at].clear();
}

void BankCounter::close() {
  for (const auto& [key, access] : accesses_) {
    // 8 bytes go by half warps, 16 by quarters.
    const unsigned lanes = access.bytes <= 4 ? 32 : 128 / access.bytes;
    auto& [number, conflicts] = bank_conflicts()[std::get<void*>(key)];
    ++number;
    for (unsigned first = 0; first < 32; first += lanes) {
      const size_t asked = rounds(access.addresses.data() + first, lanes, access.bytes);
      conflicts += asked > 1 ? asked - 1 : 0;
    }
  }
  *this = {};
}

}  // namespace moh::cuda::emu

const char* moh_emulator_bank_conflicts() {
  static std::string text;
  text.clear();
  for (const auto& [instruction, numbers] : moh::cuda::emu::bank_conflicts()) {
    Dl_info info;
    if (numbers.second != 0 && dladdr(instruction, &info) != 0) {
      const auto offset =
          static_cast<char*>(instruction) - static_cast<const char*>(info.dli_fbase);
      text += std::to_string(offset) + " " + std::to_string(numbers.first) + " " +
              std::to_string(numbers.second) + "\n";
    }
  }
  return text.c_str();
}

#if defined(MOH_COUNT_BANKS)
#define MOH_ACCESS(kind, bytes)                                               \
  extern "C" void __asan_##kind##bytes##_noabort(void* address);              \
  extern "C" void __asan_##kind##bytes##_noabort(void* address) {             \
    moh::cuda::emu::note_access(__builtin_return_address(0), address, bytes); \
  }
#define MOH_ACCESSES(kind) \
  MOH_ACCESS(kind, 1)      \
  MOH_ACCESS(kind, 2) MOH_ACCESS(kind, 4) MOH_ACCESS(kind, 8) MOH_ACCESS(kind, 16)
MOH_ACCESSES(load)
MOH_ACCESSES(store)
extern "C" void __asan_loadN_noabort(void*, size_t);
extern "C" void __asan_loadN_noabort(void*, size_t) {}
extern "C" void __asan_storeN_noabort(void*, size_t);
extern "C" void __asan_storeN_noabort(void*, size_t) {}
extern "C" void __asan_handle_no_return();
extern "C" void __asan_handle_no_return() {}
extern "C" void __asan_before_dynamic_init(const void*);
extern "C" void __asan_before_dynamic_init(const void*) {}
extern "C" void __asan_after_dynamic_init();
extern "C" void __asan_after_dynamic_init() {}
#endif
