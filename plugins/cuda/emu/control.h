// How the emulator runs, what it counted, and why it stopped: for tests, through a C interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

namespace moh::cuda::emu {

struct Options {
  uint32_t seed = 0;            // order of lanes, warps and blocks; 0: one after the other
  int32_t late_copies = 0;      // 1: asynchronous copies are made when waited for; 0: at once
  int32_t multiprocessors = 4;  // of the device that launches believe in
  int32_t compute_capability = 80;
  int32_t unwritten = 0xff;  // every byte of shared memory before it is written: NaN
  int32_t driver_cuda = 99;  // major version of CUDA that the driver takes; 0: there is no driver
};

struct Counts {
  uint64_t launches = 0, blocks = 0, switches = 0;  // switches: from thread to thread
  uint64_t barriers = 0;                            // of a block, once for all its threads
  uint64_t warp_operations = 0;                     // shuffles, ballots, __syncwarp, once a warp
  uint64_t matrix_loads = 0, matrix_load_conflicts = 0;  // conflicts: rows that wait for another
  uint64_t matrix_products = 0;
  uint64_t copies = 0;            // asynchronous ones
  uint64_t max_shared_bytes = 0;  // of a block
  uint64_t loads = 0;             // of machine code
};

// By instruction: accesses of warps to shared memory, and their bank conflicts.
using BankConflicts = std::map<void*, std::pair<uint64_t, uint64_t>>;

Options& options();
Counts& counts();
BankConflicts& bank_conflicts();
std::string& last_error();

// Runs instead of a kernel; returns a cudaError_t.
using LaunchHook = int (*)(const char* kernel, const uint32_t grid[3], const uint32_t block[3],
                           size_t shared_bytes, const void* params, size_t params_bytes);
LaunchHook launch_hook();

// Runs instead of machine code that was loaded (code.cc); returns a cudaError_t. arguments: the
// address of each.
using CodeHook = int (*)(const void* code, const char* kernel, const uint32_t grid[3],
                         const uint32_t block[3], size_t shared_bytes, void** arguments);
CodeHook code_hook();

}  // namespace moh::cuda::emu

extern "C" {

// Also sets counts and error back.
void moh_emulator_configure(const moh::cuda::emu::Options* options);
void moh_emulator_counts(moh::cuda::emu::Counts* counts);
// Why a launch failed: empty if none did since the last configuration.
const char* moh_emulator_error();
// Null: kernels run in the emulator.
void moh_emulator_set_launch_hook(moh::cuda::emu::LaunchHook hook);
// Null: nothing runs machine code.
void moh_emulator_set_code_hook(moh::cuda::emu::CodeHook hook);

}  // extern "C"
