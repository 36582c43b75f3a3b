// How kernels use the threads of their caller.
#pragma once

#include <cstddef>

namespace moh::cpu {

// A parallel loop: calls body(argument, i) once for each i in [0, count), in any order and on any
// thread, and returns when all calls have returned.
struct Parallel {
  using Body = void (*)(void* argument, size_t i);
  void (*run)(void* pool, Body body, size_t count, void* argument);
  void* pool;

  void operator()(size_t count, Body body, void* argument) const {
    run(pool, body, count, argument);
  }
};

}  // namespace moh::cpu
