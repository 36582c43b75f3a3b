// Kernels with one mistake each, which the emulator or a sanitizer has to find, and the same
// kernels without it: how the tests know that silence means something.
#pragma once

#include <cstdint>

extern "C" {

// Names, a line each.
const char* moh_emulator_faults();

// Runs a kernel, with or without its mistake, on 256 words of memory. It leaves its results in the
// first 64. Returns a cudaError_t; -1: unknown name.
int moh_emulator_fault(const char* name, int correct, uint32_t* memory);

}  // extern "C"
