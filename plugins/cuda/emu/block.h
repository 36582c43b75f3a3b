// One block of threads: a fiber each. One fiber runs at a time.
//
// A thread runs until it has to wait for others: then the next one does, in the order of their
// numbers or, with a seed, in any. So whatever is not ordered by a barrier comes about in some
// order, and a missing barrier shows in the result.
#pragma once

#include <vector_types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/emu/banks.h"
#include "cuda/emu/fiber.h"
#include "cuda/emu/place.h"

namespace moh::cuda::emu {

constexpr int kLanes = 32;

// What a thread may wait in.
struct Wait {
  const char* what = nullptr;  // null: in nothing
  uint32_t mask = 0;           // lanes of the warp; 0: the block
  Place place = {};
};

struct Copy {
  void* shared;
  const void* global;
  bool valid;
  void* caller;  // the kernel's instruction
};

struct Thread {
  Thread() : identity(new_identity()), fiber(identity) {}
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;
  ~Thread() { end_identity(identity); }

  Identity identity;
  Fiber fiber;
  uint3 index = {};
  int number = 0;
  bool exited = true;
  Wait wait;
  // What a lane gives to an operation of its warp, and gets.
  std::array<uint32_t, 12> given;
  std::array<uint32_t, 4> got;
  const void* address;
  std::vector<Copy> open_copies;
  std::vector<std::vector<Copy>> copy_groups;

  int lane() const { return number % kLanes; }
};

struct Warp {
  std::array<Thread*, kLanes> lanes = {};
  uint32_t alive = 0, runnable = 0;
  uint32_t met = 0;  // lanes that wait for others of the warp
  std::array<char, 2> tags = {};
  unsigned generation = 0;
  BankCounter banks;
};

// What a launch says of all of its blocks.
struct Grid {
  dim3 size, block;
  size_t shared_bytes;
  void (*call)(const void* kernel, const void* params);
  const void* kernel;
  const void* params;
};

class Block {
 public:
  Block() : controller_(new_identity()), caller_(controller_) {}
  ~Block();

  // Runs the block `index`; returns what went wrong, or nothing.
  std::string run(const Grid& grid, uint3 index, uint32_t seed);

  // Called by its threads.

  Thread& thread() { return *thread_; }
  unsigned char* shared() { return shared_; }
  bool holds(const void* memory, size_t bytes) const;  // in its shared memory
  // Returns when every thread that has not exited is there.
  void synchronize(Place place);
  // Returns when all lanes in `mask` are there; the last of them evaluates the operation for all.
  void meet(const char* what, uint32_t mask, Place place,
            void (*evaluate)(const Warp& warp, uint32_t mask), bool orders_memory = false);
  // The running thread accesses memory.
  void note_access(void* instruction, const void* address, unsigned bytes);
  // Ends the block.
  [[noreturn]] void fail(const std::string& problem);

 private:
  static void enter();
  void start(const Grid& grid, uint3 index, uint32_t seed);
  void start_thread(int number);
  void run_threads();
  void exit_thread();
  void make_shared_memory();
  void check_shared_memory();
  void check_lanes(const Warp& warp, uint32_t mask) const;
  void open_barrier();
  Warp& warp_of(const Thread& thread) {
    return warps_[static_cast<size_t>(thread.number / kLanes)];
  }
  Thread* next();
  void go_on_with(Thread& next);
  void block();
  void yield();
  uint32_t random();
  std::string waiting() const;

  Identity controller_;  // who prepares the block's memory
  Fiber caller_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  Thread* thread_ = nullptr;  // the one that runs
  Grid grid_ = {};
  uint3 index_ = {};
  int alive_ = 0, at_barrier_ = 0;
  unsigned barrier_generation_ = 0;
  std::array<char, 2> barrier_tags_ = {};
  char start_tag_ = 0, end_tag_ = 0;
  unsigned char* memory_ = nullptr;  // shared memory within its surroundings
  unsigned char* shared_ = nullptr;
  uint32_t random_ = 1;
  std::string problem_;
};

// The one that runs.
Block& current_block();
// Called by instrumented code, in a block or not.
void note_access(void* instruction, const void* address, unsigned bytes);
// Every launch happens before its blocks, and these before what follows.
extern char launch_tag, done_tag;

}  // namespace moh::cuda::emu
