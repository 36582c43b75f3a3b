#pragma once

#include "cpu/parallel.h"
#include "ort/ort.h"

namespace moh::ort {

// The session's own threads, each index handed to whichever is free.
inline cpu::Parallel session_threads(Ort::KernelContext& context) {
  const auto run = [](void* pool, cpu::Parallel::Body body, size_t count, void* argument) {
    if (count == 1) {
      return body(argument, 0);
    }
    if (count != 0) {
      static_cast<Ort::KernelContext*>(pool)->ParallelFor(body, count, /*num_batch=*/count,
                                                          argument);
    }
  };
  return {run, &context};
}

}  // namespace moh::ort
