// A kernel for each thing that kernels ask of the machine (device/port.cuh, and the names that CUDA
// gives), with nothing else in it: recorded on a GPU once, compared with the emulator ever after.
#pragma once

#include <cstddef>

struct CUstream_st;

extern "C" {

// Lines of "name IN OUT": words of 32 bits that one block of the kernel reads and writes.
const char* moh_cuda_conformance_list();

// Runs in_bytes / IN / 4 blocks. Returns a cudaError_t; -1: unknown name, or sizes that do not fit.
int moh_cuda_conformance(const char* name, const void* in, size_t in_bytes, void* out,
                         size_t out_bytes, CUstream_st* stream);

}  // extern "C"
