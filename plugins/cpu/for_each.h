// A loop on the caller's threads.
#pragma once

#include <atomic>
#include <new>

#include "cpu/parallel.h"

namespace moh::cpu {

// Runs body(i) for each i in [0, count). Throws std::bad_alloc if one of them does.
template <typename Body>
void for_each(size_t count, const Parallel& parallel, const Body& body) {
  struct Loop {
    const Body& body;
    std::atomic<bool> out_of_memory{false};
    static void run_one(void* loop, size_t i) {
      auto& self = *static_cast<Loop*>(loop);
      try {
        self.body(i);
      } catch (const std::bad_alloc&) {
        self.out_of_memory = true;
      }
    }
  };
  Loop loop{body};
  parallel(count, &Loop::run_one, &loop);
  if (loop.out_of_memory) {
    throw std::bad_alloc();
  }
}

}  // namespace moh::cpu
