// Bank conflicts of plain accesses to shared memory, in a build that has them call in here
// (MOH_COUNT_BANKS: instrumented as for the kernel's AddressSanitizer, whose functions these are).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <tuple>

namespace moh::cuda::emu {

// Accesses of one warp in one block.
//
// Which lanes access at once is known from the program alone: the same instruction, as often
// executed since the same operation of the warp. Lanes that skip an iteration in between are taken
// for later ones.
class BankCounter {
 public:
  void note(int lane, void* instruction, const void* address, unsigned bytes);
  // The lane has met others: what it does from now on is no part of what was before.
  void next_part(int lane);
  // Adds up conflicts by instruction, and forgets the accesses.
  void close();

 private:
  struct Access {
    std::array<uintptr_t, 32> addresses = {};  // 0: the lane takes no part
    unsigned bytes = 0;
  };
  using Key = std::tuple<unsigned, void*, unsigned>;  // part, instruction, how often before

  std::array<unsigned, 32> parts_ = {};
  std::array<std::map<void*, unsigned>, 32> times_;
  std::map<Key, Access> accesses_;
};

}  // namespace moh::cuda::emu

// Lines of "INSTRUCTION ACCESSES CONFLICTS" since the last configuration, for those that had any
// conflict; the instruction as an offset within the library, the others as numbers of a warp's. A
// conflict: one time more that the banks are asked.
extern "C" const char* moh_emulator_bank_conflicts();
