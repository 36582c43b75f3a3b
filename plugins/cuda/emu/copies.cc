#include "cuda/emu/copies.h"

#include <cstdint>
#include <cstring>

#include "cuda/emu/block.h"
#include "cuda/emu/control.h"
#include "cuda/emu/sanitizers.h"

namespace moh::cuda::emu {
namespace {

constexpr size_t kBytes = 16;

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kBytes == 0; }

// A copy may be made at any time from its start until it is waited for: both ends of that time
// count as an access.
void touch(const Copy& copy) {
  writes_16(copy.shared, copy.caller);
  if (copy.valid) {
    reads_16(copy.global, copy.caller);
  }
}

void make(const Copy& copy) {
  if (copy.valid) {
    std::memcpy(copy.shared, copy.global, kBytes);
  } else {
    std::memset(copy.shared, 0, kBytes);
  }
}

}  // namespace

void copy_async_16(void* shared, const void* global, bool valid, Place place) {
  Block& block = current_block();
  if (!block.holds(shared, kBytes)) {
    block.fail("copy_async_16 at " + text(place) + ": the target is not in shared memory");
  }
  if (!is_aligned(shared) || !is_aligned(global)) {
    block.fail("copy_async_16 at " + text(place) + ": an address is not a multiple of 16");
  }
  const Copy copy{shared, global, valid, __builtin_return_address(0)};
  ++counts().copies;
  touch(copy);
  if (options().late_copies == 0) {
    make(copy);
  }
  block.thread().open_copies.push_back(copy);
}

void commit_copies() {
  Thread& thread = current_block().thread();
  thread.copy_groups.push_back(std::move(thread.open_copies));
  thread.open_copies.clear();
}

void wait_for_open_copies(int open) {
  auto& groups = current_block().thread().copy_groups;
  while (groups.size() > static_cast<size_t>(open)) {
    for (const Copy& copy : groups.front()) {
      touch(copy);
      if (options().late_copies != 0) {
        make(copy);
      }
    }
    groups.erase(groups.begin());
  }
}

}  // namespace moh::cuda::emu
