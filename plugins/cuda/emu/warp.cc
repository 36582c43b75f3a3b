#include "cuda/emu/warp.h"

#include "cuda/emu/block.h"
#include "cuda/emu/control.h"
#include "cuda/emu/sanitizers.h"

namespace moh::cuda::emu {
namespace {

char fence_tag = 0;

template <class Function>
void for_each_lane(const Warp& warp, uint32_t mask, Function function) {
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    function(*warp.lanes[static_cast<size_t>(__builtin_ctz(rest))]);
  }
}

// The lane that `lane` reads from: itself where CUDA says that the value stays.
int source_lane(Source source, int lane, int argument, int width) {
  const int first = lane & ~(width - 1), end = first + width;
  switch (source) {
    case Source::kLane:
      return first + (argument & (width - 1));
    case Source::kXor:
      return (lane ^ argument) < end ? (lane ^ argument) & (kLanes - 1) : lane;
    case Source::kUp:
      return lane - argument >= first ? lane - argument : lane;
    case Source::kDown:
      return lane + argument < end ? lane + argument : lane;
  }
  return lane;
}

void exchange(const Warp& warp, uint32_t mask) {
  ++counts().warp_operations;
  for_each_lane(warp, mask, [&](Thread& lane) {
    const uint32_t from = lane.given[2];
    if ((mask >> from & 1) == 0) {
      current_block().fail(std::string(lane.wait.what) + " at " + text(lane.wait.place) +
                           ": lane " + std::to_string(lane.lane()) + " reads lane " +
                           std::to_string(from) + ", which is not in the mask");
    }
    lane.got[0] = warp.lanes[from]->given[0];
    lane.got[1] = warp.lanes[from]->given[1];
  });
}

void vote(const Warp& warp, uint32_t mask) {
  ++counts().warp_operations;
  uint32_t votes = 0;
  for_each_lane(warp, mask, [&](Thread& lane) { votes |= lane.given[0] << lane.lane(); });
  for_each_lane(warp, mask, [&](Thread& lane) { lane.got[0] = votes; });
}

const char* name_of(Source source) {
  constexpr const char* kNames[] = {"__shfl_sync", "__shfl_xor_sync", "__shfl_up_sync",
                                    "__shfl_down_sync"};
  return kNames[static_cast<int>(source)];
}

}  // namespace

void synchronize_block(Place place) { current_block().synchronize(place); }

void synchronize_warp(uint32_t mask, Place place) {
  current_block().meet(
      "__syncwarp", mask, place, [](const Warp&, uint32_t) { ++counts().warp_operations; }, true);
}

// What came before one fence happened before what comes after another that is later: no less than
// what two threads achieve with a fence each and a number in memory between them.
void fence() {
  acquire(&fence_tag);
  release(&fence_tag);
}

uint64_t shuffle_bits(Source source, uint32_t mask, uint64_t value, int argument, int width,
                      Place place) {
  Block& block = current_block();
  Thread& me = block.thread();
  const int from = source_lane(source, me.lane(), argument, width);
  me.given[0] = static_cast<uint32_t>(value);
  me.given[1] = static_cast<uint32_t>(value >> 32);
  me.given[2] = static_cast<uint32_t>(from);
  block.meet(name_of(source), mask, place, &exchange);
  return me.got[0] | static_cast<uint64_t>(me.got[1]) << 32;
}

uint32_t ballot(const char* name, uint32_t mask, bool predicate, Place place) {
  Block& block = current_block();
  block.thread().given[0] = predicate ? 1 : 0;
  block.meet(name, mask, place, &vote);
  return block.thread().got[0];
}

}  // namespace moh::cuda::emu
