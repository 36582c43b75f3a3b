// The time of a launch is that of the multiprocessor that has the most to do. Blocks come to it in
// the order of the grid, as many at a time as it can hold. A block waits for its first rows and
// keys, then takes tile after tile of keys; the tiles of all its blocks share what a multiprocessor
// can multiply, load and issue, and one block alone is held up by its own latencies.
#include "cuda/launch/attention_model.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "cuda/device/integers.cuh"
#include "cuda/launch/attention_heads.h"
#include "cuda/launch/attention_plan.h"

namespace moh::cuda {
namespace {

// Of a multiprocessor, by clock. Tensor cores as mma.sync reaches them, from the peaks that are
// published: on Hopper 63 % of them. Unknown GPUs are taken for the nearest older one.
struct Gpu {
  int32_t compute_capability;
  double ghz;
  double multiply_adds;  // of 16 bits, sums in float32
  double l2_bytes;
  int32_t shared_kib;
};
constexpr Gpu kGpus[] = {
    {80, 1.41, 1024, 47, 164}, {86, 1.70, 256, 20, 100},   {89, 2.52, 256, 16, 100},
    {90, 1.70, 1300, 39, 228}, {100, 1.85, 1300, 39, 228}, {120, 2.41, 256, 16, 100},
};

const Gpu& gpu_of(const Device& device) {
  const Gpu* found = kGpus;
  for (const Gpu& gpu : kGpus) {
    found = gpu.compute_capability <= device.compute_capability ? &gpu : found;
  }
  return *found;
}

// Clocks.
constexpr double kBlockLatency = 1800;  // list, gates, queries, first keys; and the results
constexpr double kTileLatency = 600;    // of a tile of keys: two waits for copies, two barriers
// Of the rates above, what a kernel reaches.
constexpr double kEfficiency = 0.88;
// What parts of causal keys take longer: their blocks are not in the order of their lengths.
constexpr double kUnsorted = 1.15;
// Microseconds.
constexpr double kLaunch = 2.0;       // of the first kernel, from its start to its end
constexpr double kNextLaunch = 1.5;   // a kernel that waits for the one before it
constexpr double kListedChunk = 1.5;  // 4096 rows of a list
constexpr int32_t kChunkRows = 4096;

// Clocks of a block's tile of keys.
struct TileClocks {
  double alone;   // until it is done, if nothing else runs
  double shared;  // that it takes from the other blocks of its multiprocessor
};

// Whether the first rows of a sequence see few keys, and the last ones all. What key_ranges and
// masks for queries leave is not known before an engine runs, and taken for what the causal rule
// leaves: documents and windows leave less, long prefixes and windows on both sides up to twice as
// much.
bool sees_ever_more(const AttentionArgs& args) {
  return args.causal || args.key_ranges != nullptr || has_query_mask(args);
}

TileClocks tile_clocks(const AttentionArgs& args, const AttendKernel& kernel, const Gpu& gpu) {
  const bool wide = args.dtype == DType::kFloat32;
  const double bytes = wide ? 4 : 2;
  // Warps without rows only copy.
  const double rows = std::min(kernel.rows, round_up(rows_per_pair(args), kernel.warp_rows));
  const double warps = rows / kernel.warp_rows;
  const double scores = rows * kernel.tile_keys;
  const double elements = 2.0 * kernel.tile_keys * kernel.head_size;  // of keys and values
  // float32 is three products of tf32, at half the rate of 16 bits.
  const double multiply_adds = (wide ? 6 : 1) * 2 * scores * kernel.head_size;
  const double products = multiply_adds / gpu.multiply_adds;
  // Every warp reads all keys and values, and its own queries; 128 bytes a clock.
  const double memory = (warps * elements + rows * kernel.head_size + elements) * bytes / 128;
  const double copies =
      double{1} * kernel.tile_keys * (args.head_dim + args.value_dim) * bytes / gpu.l2_bytes;
  // Instructions of a warp: per score of a lane, per sum, per 16 bytes to copy; products and loads;
  // in float32, the halves of every number; of a mask of keys, its loads and votes.
  const double look_up = has_key_mask(args) ? 8.0 * ceil_div(kernel.tile_keys, kWarpSize) : 0;
  const double others =
      look_up + 6.5 * scores / (warps * 32) + double{1} * kernel.warp_rows * kernel.head_size / 32 +
      4 * elements * bytes / 16 / (warps * 32) + (wide ? 8 * elements / 32 : 0) + 120;
  const double instructions = others + multiply_adds / warps / 2048 + memory / warps / 4;
  const double issue = warps * instructions / 4;
  const double exponents = scores / 16;
  return {products / warps * 4 + kTileLatency + 0.67 * others,
          std::max({products, memory, copies, issue, exponents}) / kEfficiency};
}

// Blocks in the order of the grid: the tiles of all rows, longest first, for the first part of the
// keys, then for the next.
struct Blocks {
  double count;                // of all parts
  double splits, split_tiles;  // parts, and the tiles of keys of each
  double longest, shortest;    // tiles of keys that the first, the last rows see

  double length(double x) const {
    const double place = x / count * splits, split = std::min(std::floor(place), splits - 1);
    const double seen = longest + (shortest - longest) * (place - split);
    return std::clamp(seen - split * split_tiles, 0.0, split_tiles);
  }
};

// The part of the rows that have to be computed, cut into tiles.
double row_tiles(const AttentionArgs& args, const AttentionChoice& choice,
                 const AttendKernel& kernel, float open_share) {
  const double rows = rows_per_pair(args);
  const double all = std::ceil(rows / kernel.rows);
  if (choice.tactic == AttentionTactic::kDense) {
    return all;
  }
  // Half of the last tile is empty.
  return std::min(rows * double{open_share} / kernel.rows + 0.5, all);
}

Blocks blocks_of(const AttentionArgs& args, const AttentionChoice& choice,
                 const AttendKernel& kernel, float open_share) {
  const double tiles = row_tiles(args, choice, kernel, open_share);
  const auto key_tiles = [&](double keys) {
    return std::ceil(std::max(keys, 0.0) / kernel.tile_keys);
  };
  Blocks blocks{};
  blocks.splits = choice.key_splits;
  blocks.count = tiles * args.batch * args.kv_heads * blocks.splits;
  blocks.split_tiles = key_tiles(keys_per_split(args, choice.key_splits));
  blocks.longest = key_tiles(args.keys);
  // The last row of a tile decides what the tile sees.
  const double queries = args.queries, last = std::min(queries / tiles, queries);
  blocks.shortest = sees_ever_more(args) ? key_tiles(args.keys - queries + last) : blocks.longest;
  return blocks;
}

// Clocks of a multiprocessor that takes every `multiprocessors`-th tile, `resident` at a time.
double busiest_clocks(const Blocks& blocks, const TileClocks& tile, int32_t resident,
                      int32_t multiprocessors) {
  constexpr int32_t kMostSlots = 32;
  constexpr double kMostBlocks = 64;
  struct Slot {
    double latency, tiles;
  };
  std::array<Slot, kMostSlots> slots{};
  const int32_t places = std::min(resident, kMostSlots);
  // Many blocks: every other one, or less, is looked at, and stands for those between.
  const double each = std::ceil(std::ceil(blocks.count / multiprocessors) / kMostBlocks);
  const double distance = multiprocessors * each;
  const auto count = static_cast<int32_t>(std::ceil(blocks.count / distance));
  // The longest of the first tiles; then the first free slot takes the next tile, long or short.
  const auto block = [&](int32_t number) {
    const double ahead = number < places ? 0 : 0.5;
    const double x = std::min((number + ahead) * distance, blocks.count);
    return Slot{kBlockLatency, blocks.length(x)};
  };
  int32_t next = 0, busy = 0;
  for (; busy < places && next < count; ++busy) {
    slots[busy] = block(next++);
  }
  double clocks = 0;
  while (busy > 0) {
    const auto begin = slots.begin(), end = slots.begin() + busy;
    const double working = static_cast<double>(
        std::count_if(begin, end, [](const Slot& s) { return s.latency <= 0; }));
    const double per_tile = std::max(tile.alone, working * tile.shared);
    double step = INFINITY;
    for (auto slot = begin; slot != end; ++slot) {
      step = std::min(step, slot->latency > 0 ? slot->latency : slot->tiles * per_tile);
    }
    clocks += step;
    for (int32_t i = busy - 1; i >= 0; --i) {
      Slot& slot = slots[i];
      double& left = slot.latency > 0 ? slot.latency : slot.tiles;
      left -= slot.latency > 0 ? step : step / per_tile;
      if (left > 1e-9 * clocks / per_tile) {
        continue;
      }
      left = 0;
      if (&left == &slot.tiles) {
        slot = next < count ? block(next++) : slots[--busy];
      }
    }
  }
  return clocks * each;
}

// The list of open rows, and the zeros of the others.
double compact_us(const AttentionArgs& args, const Device& device, const Gpu& gpu,
                  float open_share) {
  const double list = kListedChunk * ceil_div(rows_per_pair(args), kChunkRows);
  const double numbers = double{1} * args.batch * args.queries * args.q_heads * args.value_dim;
  const double bytes = (1 - double{open_share}) * numbers * (args.dtype == DType::kFloat32 ? 4 : 2);
  const double zeros = bytes / (device.multiprocessors * gpu.l2_bytes / 2 * gpu.ghz * 1e3);
  return std::max(list, zeros) + kNextLaunch;
}

// The map of a mask for queries, which is read once.
double map_us(const AttentionArgs& args, const Device& device, const Gpu& gpu) {
  const AttentionMask& mask = args.mask;
  const double elements = (mask.batch == 0 ? 1.0 : args.batch) *
                          (mask.head == 0 ? 1 : args.q_heads) *
                          (mask.query == 0 ? 1 : args.queries) * (mask.key == 0 ? 1 : args.keys);
  const double bytes = mask.dtype == DType::kBool ? 1 : mask.dtype == DType::kFloat32 ? 4 : 2;
  return kNextLaunch +
         elements * bytes / (device.multiprocessors * gpu.l2_bytes / 2 * gpu.ghz * 1e3);
}

// The results of all splits are written, and read again.
double combine_us(const AttentionArgs& args, const AttentionChoice& choice, const Device& device,
                  const Gpu& gpu, float open_share) {
  const double rows = double{open_share} * args.batch * args.queries * args.q_heads;
  const double bytes = 2.0 * choice.key_splits * rows * args.value_dim * sizeof(float);
  return kNextLaunch + bytes / (device.multiprocessors * gpu.l2_bytes / 2 * gpu.ghz * 1e3);
}

int32_t resident_of(const AttendKernel& kernel, const Gpu& gpu) {
  // Of the shared memory of a multiprocessor, each block takes another KiB.
  const int32_t fit = gpu.shared_kib * 1024 / (kernel.shared_bytes + 1024);
  return std::max(std::min(kernel.resident_blocks, fit), 1);
}

}  // namespace

int32_t resident_blocks(const AttentionArgs& args, AttentionBlock block, const Device& device) {
  return resident_of(attend_kernel_of(args, block), gpu_of(device));
}

double estimated_us(const AttentionArgs& args, const AttentionChoice& choice, const Device& device,
                    float open_share) {
  const Gpu& gpu = gpu_of(device);
  const AttendKernel kernel = attend_kernel_of(args, choice.block);
  const Blocks blocks = blocks_of(args, choice, kernel, open_share);
  const double clocks =
      busiest_clocks(blocks, tile_clocks(args, kernel, gpu), resident_of(kernel, gpu),
                     std::max(device.multiprocessors, 1));
  const double order = sees_ever_more(args) && choice.key_splits > 1 ? kUnsorted : 1.0;
  double microseconds = kLaunch + order * clocks / (gpu.ghz * 1e3);
  if (choice.tactic == AttentionTactic::kSparse) {
    microseconds += compact_us(args, device, gpu, open_share);
  }
  if (has_query_mask(args)) {
    microseconds += map_us(args, device, gpu);
  }
  if (choice.key_splits > 1) {
    microseconds += combine_us(args, choice, device, gpu, open_share);
  }
  return microseconds;
}

}  // namespace moh::cuda
