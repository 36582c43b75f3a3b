// Asynchronous copies from global to shared memory.
#pragma once

#include "cuda/emu/place.h"

namespace moh::cuda::emu {

void copy_async_16(void* shared, const void* global, bool valid, MOH_PLACE);
void commit_copies();
void wait_for_open_copies(int open);

template <int kOpen>
void wait_for_copies() {
  wait_for_open_copies(kOpen);
}

}  // namespace moh::cuda::emu
