#include "cuda/emu/block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "cuda/emu/control.h"
#include "cuda/emu/copies.h"
#include "cuda/emu/limits.h"
#include "cuda/emu/names.h"

namespace moh::cuda::emu {
namespace {

constexpr size_t kMargin = 1024;  // around shared memory: must stay untouched
constexpr unsigned char kMarginByte = 0xa5;

Block* running = nullptr;

uint32_t lanes_below(int count) { return count >= kLanes ? ~0u : (1u << count) - 1; }

// "0-31, 40" of {0, ..., 31, 40}.
std::string ranges(const std::vector<int>& sorted) {
  std::string result;
  for (size_t i = 0; i < sorted.size();) {
    size_t end = i + 1;
    while (end < sorted.size() && sorted[end] == sorted[end - 1] + 1) {
      ++end;
    }
    result += (i == 0 ? "" : ", ") + std::to_string(sorted[i]);
    result += end - i > 1 ? "-" + std::to_string(sorted[end - 1]) : "";
    i = end;
  }
  return result;
}

}  // namespace

char launch_tag = 0, done_tag = 0;

Block& current_block() { return *running; }

std::string text(const Place& place) { return place.file + (":" + std::to_string(place.line)); }

bool operator==(const Place& a, const Place& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

Block::~Block() {
  if (memory_ != nullptr) {
    munmap(memory_, kMostSharedBytes + 2 * kMargin);
  }
}

std::string Block::run(const Grid& grid, uint3 index, uint32_t seed) {
  const Identity outside = current_identity();
  running = this;
  assume(controller_);
  acquire(&launch_tag);
  start(grid, index, seed);
  release(&start_tag_);
  run_threads();
  acquire(&end_tag_);
  for (Warp& warp : warps_) {
    warp.banks.close();
  }
  check_shared_memory();
  if (!problem_.empty()) {
    threads_.clear();  // some may have been left in the middle
  }
  release(&done_tag);
  assume(outside);
  running = nullptr;
  return problem_;
}

void Block::start(const Grid& grid, uint3 index, uint32_t seed) {
  grid_ = grid;
  index_ = index;
  random_ = seed == 0 ? 0 : (seed ^ 0x9e3779b9u) | 1u;
  thread_ = nullptr;  // of the block before, perhaps no longer there
  problem_.clear();
  at_barrier_ = 0;
  alive_ = static_cast<int>(grid.block.x * grid.block.y * grid.block.z);
  make_shared_memory();
  warps_.assign(static_cast<size_t>((alive_ + kLanes - 1) / kLanes), Warp{});
  for (int number = 0; number < alive_; ++number) {
    start_thread(number);
  }
  ++counts().blocks;
}

void Block::start_thread(int number) {
  const auto at = static_cast<size_t>(number);
  if (threads_.size() == at) {
    threads_.push_back(std::make_unique<Thread>());
  }
  Thread& thread = *threads_[at];
  const auto n = static_cast<unsigned>(number);
  const dim3& block = grid_.block;
  thread.number = number;
  thread.index = {n % block.x, n / block.x % block.y, n / (block.x * block.y)};
  thread.exited = false;
  thread.wait = {};
  thread.open_copies.clear();
  thread.copy_groups.clear();
  thread.fiber.prepare(&Block::enter);
  Warp& warp = warp_of(thread);
  warp.lanes[static_cast<size_t>(thread.lane())] = &thread;
  warp.alive = warp.runnable = lanes_below(thread.lane() + 1);
}

void Block::make_shared_memory() {
  const size_t all = kMostSharedBytes + 2 * kMargin;
  if (memory_ == nullptr) {
    void* memory = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      abort();
    }
    memory_ = static_cast<unsigned char*>(memory);
    shared_ = memory_ + kMargin;
  }
  allow(memory_, all);
  std::memset(memory_, kMarginByte, all);
  std::memset(shared_, options().unwritten, grid_.shared_bytes);
  forbid(memory_, kMargin);
  forbid(shared_ + grid_.shared_bytes, all - kMargin - grid_.shared_bytes);
}

void Block::check_shared_memory() {
  allow(memory_, kMostSharedBytes + 2 * kMargin);
  const auto is_margin = [](unsigned char byte) { return byte == kMarginByte; };
  const bool before = !std::all_of(memory_, shared_, is_margin);
  const unsigned char* behind = shared_ + grid_.shared_bytes;
  if ((before || !std::all_of(behind, behind + kMargin, is_margin)) && problem_.empty()) {
    problem_ = std::string("a thread wrote ") + (before ? "before" : "behind") +
               " the shared memory of its block, which has " + std::to_string(grid_.shared_bytes) +
               " bytes";
  }
}

bool Block::holds(const void* memory, size_t bytes) const {
  const auto* first = static_cast<const unsigned char*>(memory);
  return first >= shared_ && first + bytes <= shared_ + grid_.shared_bytes;
}

// Threads.

void Block::enter() {
  Fiber::arrive();
  Block& block = current_block();
  acquire(&block.start_tag_);
  block.grid_.call(block.grid_.kernel, block.grid_.params);
  commit_copies();  // those that the kernel does not wait for go on until here
  wait_for_copies<0>();
  release(&block.end_tag_);
  block.exit_thread();
}

void Block::run_threads() {
  blockIdx = index_;
  blockDim = grid_.block;
  gridDim = grid_.size;
  thread_ = next();
  threadIdx = thread_->index;
  Fiber::switch_to(caller_, thread_->fiber);
}

void Block::exit_thread() {
  Thread& me = *thread_;
  Warp& warp = warp_of(me);
  const uint32_t bit = 1u << me.lane();
  me.exited = true;
  warp.alive &= ~bit;
  warp.runnable &= ~bit;
  --alive_;
  if (alive_ > 0 && at_barrier_ == alive_) {  // those who have exited are not waited for
    open_barrier();
  }
  Thread* successor = next();
  if (successor == nullptr) {
    if (alive_ > 0) {
      problem_ = "threads wait for one that has exited: " + waiting();
    }
    Fiber::leave_to(me.fiber, caller_);
  }
  thread_ = successor;
  threadIdx = successor->index;
  Fiber::leave_to(me.fiber, successor->fiber);
}

void Block::fail(const std::string& problem) {
  problem_ = problem + " (block " + std::to_string(index_.x) + ", " + std::to_string(index_.y) +
             ", " + std::to_string(index_.z) + ", thread " + std::to_string(thread_->number) + ")";
  release(&end_tag_);
  Fiber::leave_to(thread_->fiber, caller_);
}

Thread* Block::next() {
  const size_t count = warps_.size();
  const size_t first = random_ != 0         ? random() % count
                       : thread_ != nullptr ? static_cast<size_t>(thread_->number / kLanes) % count
                                            : 0;
  for (size_t i = 0; i < count; ++i) {
    const Warp& warp = warps_[(first + i) % count];
    if (warp.runnable != 0) {
      const unsigned turn = random_ != 0 ? random() % kLanes : 0;
      const uint32_t turned =
          turn == 0 ? warp.runnable : warp.runnable >> turn | warp.runnable << (kLanes - turn);
      return warp.lanes[(static_cast<unsigned>(__builtin_ctz(turned)) + turn) % kLanes];
    }
  }
  return nullptr;
}

uint32_t Block::random() {
  random_ ^= random_ << 13;
  random_ ^= random_ >> 17;
  random_ ^= random_ << 5;
  return random_;
}

void Block::go_on_with(Thread& other) {
  Thread& me = *thread_;
  if (&other == &me) {
    return;
  }
  ++counts().switches;
  thread_ = &other;
  threadIdx = other.index;
  Fiber::switch_to(me.fiber, other.fiber);
}

void Block::block() {
  warp_of(*thread_).runnable &= ~(1u << thread_->lane());
  Thread* other = next();
  if (other == nullptr) {
    fail("threads wait for each other: " + waiting());
  }
  go_on_with(*other);
}

void Block::yield() {
  if (random_ != 0) {
    go_on_with(*next());
  }
}

std::string Block::waiting() const {
  std::map<std::string, std::vector<int>> by_place;
  std::vector<int> exited;
  for (const Warp& warp : warps_) {
    for (const Thread* thread : warp.lanes) {
      if (thread != nullptr && thread->exited) {
        exited.push_back(thread->number);
      } else if (thread != nullptr) {
        by_place[thread->wait.what + (" at " + text(thread->wait.place))].push_back(thread->number);
      }
    }
  }
  std::string result;
  for (const auto& [place, numbers] : by_place) {
    result += (result.empty() ? "" : "; ") + ranges(numbers) + " in " + place;
  }
  return result + (exited.empty() ? "" : "; exited: " + ranges(exited));
}

void Block::note_access(void* instruction, const void* address, unsigned bytes) {
  if (thread_ != nullptr && holds(address, bytes)) {
    warp_of(*thread_).banks.note(thread_->lane(), instruction, address, bytes);
  }
}

void note_access(void* instruction, const void* address, unsigned bytes) {
  if (running != nullptr) {
    running->note_access(instruction, address, bytes);
  }
}

// Barriers and operations of warps.

void Block::synchronize(Place place) {
  Thread& me = *thread_;
  me.wait = {"__syncthreads", 0, place};
  warp_of(me).banks.next_part(me.lane());
  const unsigned generation = barrier_generation_ % 2;
  release(&barrier_tags_[generation]);
  ++at_barrier_;
  if (at_barrier_ == alive_) {
    open_barrier();
    yield();
  } else {
    block();
  }
  acquire(&barrier_tags_[generation]);
}

void Block::open_barrier() {
  const Thread* one = nullptr;
  for (Warp& warp : warps_) {
    for (uint32_t rest = warp.alive; rest != 0; rest &= rest - 1) {
      const Thread* thread = warp.lanes[static_cast<size_t>(__builtin_ctz(rest))];
      one = one == nullptr ? thread : one;
      if (thread->wait.place != one->wait.place) {
        fail("__syncthreads is reached at different places: " + waiting());
      }
    }
  }
  for (Warp& warp : warps_) {
    warp.runnable = warp.alive;
  }
  at_barrier_ = 0;
  ++barrier_generation_;
  ++counts().barriers;
}

void Block::meet(const char* what, uint32_t mask, Place place,
                 void (*evaluate)(const Warp& warp, uint32_t mask), bool orders_memory) {
  Thread& me = *thread_;
  Warp& warp = warp_of(me);
  me.wait = {what, mask, place};
  warp.banks.next_part(me.lane());
  if ((mask >> me.lane() & 1) == 0) {
    fail(std::string(what) + " at " + text(place) + ": the calling lane is not in the mask");
  }
  if ((mask & ~warp.alive) != 0) {
    fail(std::string(what) + " at " + text(place) + ": the mask names lanes that have exited");
  }
  char* tag = &warp.tags[warp.generation % 2];
  if (orders_memory) {
    release(tag);
  }
  warp.met |= 1u << me.lane();
  if ((warp.met & mask) == mask) {
    check_lanes(warp, mask);
    evaluate(warp, mask);
    warp.met &= ~mask;
    warp.runnable |= mask;
    warp.generation += orders_memory ? 1 : 0;
    yield();
  } else {
    block();
  }
  if (orders_memory) {
    acquire(tag);
  }
}

void Block::check_lanes(const Warp& warp, uint32_t mask) const {
  const Wait& mine = thread_->wait;
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const Thread& other = *warp.lanes[static_cast<size_t>(__builtin_ctz(rest))];
    if (std::strcmp(other.wait.what, mine.what) != 0 || other.wait.place != mine.place ||
        other.wait.mask != mask) {
      current_block().fail("lanes of a warp diverge: thread " + std::to_string(other.number) +
                           " is in " + other.wait.what + " at " + text(other.wait.place) +
                           ", this one in " + mine.what + " at " + text(mine.place));
    }
  }
}

}  // namespace moh::cuda::emu
