// MoHQueryProjectionNBits and MoHOutputProjectionNBits: rows of open heads, rounded to 8 bits by
// blocks, times weights of 4 bits.
#include "cpu/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/projection/nbits_projection.cc"
#include "hwy/foreach_target.h"  // compiles this file once more for each instruction set

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/for_each.h"
#include "cpu/kernels.h"
#include "cpu/projection/nbits_panels-inl.h"
#include "cpu/projection/open_rows.h"
#include "cpu/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

constexpr size_t panels_of(size_t columns) { return (columns + kLanes - 1) / kLanes; }

// Heads that are skipped together: as many as fill whole steps, vectors of columns or blocks of
// rows. One where a head does.
inline int32_t heads_per_unit(int32_t head_dim, size_t step) {
  return static_cast<int32_t>(step) / std::gcd(head_dim, static_cast<int32_t>(step));
}

// Blocks of an output projection's weight that belong to one unit of heads.
inline size_t blocks_read_together(int32_t head_dim) {
  return static_cast<size_t>(heads_per_unit(head_dim, kBlock)) * static_cast<size_t>(head_dim) /
         kBlock;
}

// [tokens, units]: 1 where a head of a unit is open.
inline void open_units(const float* gates, int64_t tokens, int32_t heads, int32_t per_unit,
                       std::vector<float>& open) {
  const int32_t units = (heads + per_unit - 1) / per_unit;
  open.assign(static_cast<size_t>(tokens) * static_cast<size_t>(units), 0.0f);
  for (int64_t token = 0; token < tokens; ++token) {
    for (int32_t head = 0; head < heads; ++head) {
      if (is_open(DType::kFloat32, gates, token * heads + head)) {
        open[static_cast<size_t>(token * units + head / per_unit)] = 1.0f;
      }
    }
  }
}

// Rows in 8 bits, in memory of the thread that asked for them.
inline RoundedRows round_rows(const void* input, size_t tokens, size_t size,
                              const Parallel& parallel, Scratch& memory) {
  constexpr size_t kRowsPerTask = 8;
  const size_t blocks = blocks_of(size), all = tokens * blocks;
  memory.reset(Scratch::bytes<int8_t>(all * kBlock) + Scratch::bytes<float>(all) +
               Scratch::bytes<int32_t>(all));
  auto* const numbers = memory.take<int8_t>(all * kBlock);
  auto* const scales = memory.take<float>(all);
  auto* const offsets = memory.take<int32_t>(all);
  for_each((tokens + kRowsPerTask - 1) / kRowsPerTask, parallel, [&](size_t task) {
    const size_t end = HWY_MIN((task + 1) * kRowsPerTask, tokens);
    for (size_t row = task * kRowsPerTask; row < end; ++row) {
      round_row(static_cast<const float*>(input) + row * size, size,
                numbers + row * blocks * kBlock, scales + row * blocks, offsets + row * blocks);
    }
  });
  return {numbers, scales, offsets, blocks};
}

// Rows of a block of tokens times a group of blocks of a panel, added to what `output` has.
struct Product {
  const RoundedRows& x;  // of the whole call
  const uint8_t* packed;
  PackedDigits places;
  float* output;  // [tokens, columns]
  size_t columns;

  void add(TokenBlock tokens, const RowList& list, size_t panel, size_t group) const {
    const auto first = static_cast<size_t>(tokens.begin);
    const RoundedRows rows{x.numbers + first * x.blocks * kBlock, x.scales + first * x.blocks,
                           x.offsets + first * x.blocks, x.blocks};
    const uint8_t* const weight = packed + places.offset(group, panel);
    const size_t begin = group * places.blocks_per_group, end = begin + places.size_of(group);
    const size_t column = panel * kLanes, count = static_cast<size_t>(list.count);
    HWY_ALIGN float sums[kNBitsTileRows * kLanes];
    for (size_t row = 0; row < count; row += kNBitsTileRows) {
      const size_t some = HWY_MIN(kNBitsTileRows, count - row);
      multiply_digits_of<kNBitsTileRows>(weight, rows, list.rows + row, some, begin, end, sums);
      for (size_t r = 0; r < some; ++r) {
        float* const to = output + (first + static_cast<size_t>(list.rows[row + r])) * columns;
        const VF sum = hn::Load(DF(), sums + r * kLanes);
        store_part(hn::Add(load_part(to, column, columns), sum), to, column, columns);
      }
    }
  }

  // output = bias in some columns of a block's tokens.
  void start(TokenBlock tokens, const void* bias, size_t begin, size_t end) const {
    for (int32_t row = 0; row < tokens.count; ++row) {
      float* const to = output + static_cast<size_t>(tokens.begin + row) * columns + begin;
      if (bias == nullptr) {
        std::memset(to, 0, (end - begin) * sizeof(float));
      } else {
        std::memcpy(to, static_cast<const float*>(bias) + begin, (end - begin) * sizeof(float));
      }
    }
  }
};

// Columns of closed heads are 0 afterwards.
inline void close_heads(const QueryProjectionArgs& args, TokenBlock tokens, size_t begin,
                        size_t end) {
  const auto size = static_cast<size_t>(args.head_dim);
  const size_t columns = static_cast<size_t>(args.heads) * size;
  for (int64_t token = tokens.begin; token < tokens.begin + tokens.count; ++token) {
    for (size_t at = begin; at < end; at += size) {
      if (!is_open(args.dtype, args.gates, token * args.heads + static_cast<int64_t>(at / size))) {
        std::memset(static_cast<float*>(args.output) + static_cast<size_t>(token) * columns + at, 0,
                    size * sizeof(float));
      }
    }
  }
}

void query_projection_nbits(const QueryProjectionArgs& args, const uint8_t* packed,
                            const Parallel& parallel) {
  thread_local Scratch memory;
  thread_local OpenRows open;
  thread_local std::vector<float> units;
  const int32_t per_unit = heads_per_unit(args.head_dim, kLanes);
  open_units(static_cast<const float*>(args.gates), args.tokens, args.heads, per_unit, units);
  open.make(DType::kFloat32, units.data(),
            {args.tokens, (args.heads + per_unit - 1) / per_unit, 1});
  const RoundedRows x = round_rows(args.input, static_cast<size_t>(args.tokens),
                                   static_cast<size_t>(args.in_features), parallel, memory);
  const size_t columns = static_cast<size_t>(args.heads) * static_cast<size_t>(args.head_dim);
  const size_t size = static_cast<size_t>(per_unit) * static_cast<size_t>(args.head_dim);
  const Product product{x,
                        packed,
                        {panels_of(columns), x.blocks, x.blocks},
                        static_cast<float*>(args.output),
                        columns};
  const OpenRows& lists = open;  // of this thread, not of those that run the tasks
  // Consecutive tasks read the same weights.
  for_each(lists.groups() * lists.blocks(), parallel, [&](size_t i) {
    const size_t block = i % lists.blocks(), unit = i / lists.blocks();
    const TokenBlock tokens = lists.block_at(block);
    const RowList list = lists.list_at(block, unit, 0);
    const size_t begin = unit * size, end = HWY_MIN(begin + size, columns);
    product.start(tokens, args.bias, begin, end);
    if (list.count != 0) {
      for (size_t panel = begin / kLanes; panel < panels_of(end); ++panel) {
        product.add(tokens, list, panel, 0);
      }
    }
    close_heads(args, tokens, begin, end);
  });
}

void output_projection_nbits(const OutputProjectionArgs& args, const uint8_t* packed,
                             const Parallel& parallel) {
  thread_local Scratch memory;
  thread_local OpenRows open;
  thread_local std::vector<float> units;
  const int32_t per_unit = heads_per_unit(args.head_dim, kBlock);
  open_units(static_cast<const float*>(args.gates), args.tokens, args.heads, per_unit, units);
  open.make(DType::kFloat32, units.data(),
            {args.tokens, (args.heads + per_unit - 1) / per_unit, 1});
  const size_t depth = static_cast<size_t>(args.heads) * static_cast<size_t>(args.head_dim);
  const RoundedRows x =
      round_rows(args.input, static_cast<size_t>(args.tokens), depth, parallel, memory);
  const auto columns = static_cast<size_t>(args.out_features);
  const size_t blocks_per_unit = blocks_read_together(args.head_dim);
  const Product product{x,
                        packed,
                        {panels_of(columns), x.blocks, blocks_per_unit},
                        static_cast<float*>(args.output),
                        columns};
  const OpenRows& lists = open;
  constexpr size_t kPanelsPerTask = 8;
  const size_t panels = panels_of(columns);
  const size_t parts = (panels + kPanelsPerTask - 1) / kPanelsPerTask;
  for_each(parts * lists.blocks(), parallel, [&](size_t i) {
    const size_t block = i % lists.blocks(), part = i / lists.blocks();
    const TokenBlock tokens = lists.block_at(block);
    const size_t first = part * kPanelsPerTask, last = HWY_MIN(first + kPanelsPerTask, panels);
    product.start(tokens, args.bias, first * kLanes, HWY_MIN(last * kLanes, columns));
    for (size_t unit = 0; unit < lists.groups(); ++unit) {
      const RowList list = lists.list_at(block, unit, 0);
      for (size_t panel = first; list.count != 0 && panel < last; ++panel) {
        product.add(tokens, list, panel, unit);
      }
    }
  });
}

size_t packed_digits_size(int32_t depth, int32_t columns) {
  return panels_of(static_cast<size_t>(columns)) * blocks_of(static_cast<size_t>(depth)) *
         kPanelBlockBytes;
}

void pack_digits(const NBitsWeightArgs& args, uint8_t* packed, const Parallel& parallel) {
  const size_t blocks = blocks_of(static_cast<size_t>(args.depth));
  const auto columns = static_cast<size_t>(args.columns);
  const size_t together =
      args.row_heads == 0 ? blocks : blocks_read_together(args.depth / args.row_heads);
  const PackedDigits places{panels_of(columns), blocks, together};
  for_each(places.panels, parallel, [&](size_t panel) {
    for (size_t group = 0; group < places.groups(); ++group) {
      const size_t first = group * together;
      pack_blocks(args.weight, args.scales, blocks, columns, panel, first,
                  first + places.size_of(group), packed + places.offset(group, panel));
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
