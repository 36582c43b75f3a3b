// MoHMatMulNBits, MoHQueryProjectionNBits and MoHOutputProjectionNBits: rows, or those of open
// heads, rounded to 8 bits by blocks, times weights of few bits.
#include "cpu/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/projection/nbits_projection.cc"
#include "hwy/foreach_target.h"  // compiles this file once more for each instruction set

#include <algorithm>
#include <array>
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
inline RoundedRows round_rows(const float* input, size_t tokens, const NBitsWeight& weight,
                              const Parallel& parallel, Scratch& memory) {
  constexpr size_t kRowsPerTask = 8;
  const auto size = static_cast<size_t>(weight.depth);
  const size_t blocks = blocks_of(size), all = tokens * blocks;
  memory.reset(Scratch::bytes<int8_t>(all * kBlock) + Scratch::bytes<float>(all) +
               Scratch::bytes<int32_t>(all));
  auto* const numbers = memory.take<int8_t>(all * kBlock);
  auto* const scales = memory.take<float>(all);
  auto* const offsets = memory.take<int32_t>(all);
  for_each((tokens + kRowsPerTask - 1) / kRowsPerTask, parallel, [&](size_t task) {
    const size_t end = HWY_MIN((task + 1) * kRowsPerTask, tokens);
    for (size_t row = task * kRowsPerTask; row < end; ++row) {
      round_row(input + row * size, size, weight.bits, numbers + row * blocks * kBlock,
                scales + row * blocks, offsets + row * blocks);
    }
  });
  return {numbers, scales, offsets, blocks};
}

// Rows times parts of a weight, added up in `output`.
struct Product {
  const RoundedRows& x;  // of the whole call
  const NBitsWeight& weight;
  float* output;  // [tokens, columns]

  // Adds, for some rows of a block of tokens, what blocks [begin, end) of a panel make.
  void add(TokenBlock tokens, const RowList& list, size_t panel, size_t begin, size_t end) const {
    if (weight.bits == 4) {
      add_digits<4>(tokens, list, panel, begin, end);
    } else {
      add_digits<8>(tokens, list, panel, begin, end);
    }
  }

  template <int32_t kBits>
  void add_digits(TokenBlock tokens, const RowList& list, size_t panel, size_t begin,
                  size_t end) const {
    const auto first = static_cast<size_t>(tokens.begin), count = static_cast<size_t>(list.count);
    const auto columns = static_cast<size_t>(weight.columns);
    const RoundedRows rows{x.numbers + first * x.blocks * kBlock, x.scales + first * x.blocks,
                           x.offsets + first * x.blocks, x.blocks};
    Piece piece;
    HWY_ALIGN float sums[kNBitsTileRows * kLanes];
    for (size_t block = begin; block < end; block += Piece::kMostBlocks) {
      const size_t stop = HWY_MIN(block + Piece::kMostBlocks, end);
      // What is read next: more of these columns, or the next ones.
      const size_t next = stop < end ? stop : begin + kLanes * x.blocks;
      piece.read(weight, panel, block, stop - block, next - block);
      for (size_t row = 0; row < count; row += kNBitsTileRows) {
        const size_t some = HWY_MIN(kNBitsTileRows, count - row), column = panel * kLanes;
        const auto place = [&](size_t r) {
          return output + (first + static_cast<size_t>(list.rows[row + r])) * columns;
        };
        for (size_t r = 0; r < some; ++r) {
          hn::Store(load_part(place(r), column, columns), DF(), sums + r * kLanes);
        }
        multiply_piece_of<kBits, kNBitsTileRows>(piece, rows, list.rows + row, some, block, stop,
                                                 sums);
        for (size_t r = 0; r < some; ++r) {
          store_part(hn::Load(DF(), sums + r * kLanes), place(r), column, columns);
        }
      }
    }
  }

  // output = bias in some columns of a block's tokens.
  void start(TokenBlock tokens, const void* bias, size_t begin, size_t end) const {
    const auto columns = static_cast<size_t>(weight.columns);
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

void nbits_product(const NBitsProductArgs& args, const NBitsWeight& weight,
                   const Parallel& parallel) {
  thread_local Scratch memory;
  constexpr size_t kTokensTogether = 1024;  // their rows in 8 bits are in memory
  static const auto every_row = [] {
    std::array<int32_t, kTokensTogether> rows;
    std::iota(rows.begin(), rows.end(), 0);
    return rows;
  }();
  const auto depth = static_cast<size_t>(weight.depth);
  const auto columns = static_cast<size_t>(weight.columns), panels = panels_of(columns);
  const auto all = static_cast<size_t>(args.tokens);
  for (size_t first = 0; first < all; first += kTokensTogether) {
    const size_t tokens = HWY_MIN(kTokensTogether, all - first);
    const RoundedRows x = round_rows(args.input + first * depth, tokens, weight, parallel, memory);
    const Product product{x, weight, args.output + first * columns};
    const TokenBlock block{0, static_cast<int32_t>(tokens)};
    const RowList list{every_row.data(), block.count, 0, 0};
    const size_t panels_per_task = tokens < kNBitsTileRows ? 8 : 2;
    for_each((panels + panels_per_task - 1) / panels_per_task, parallel, [&](size_t task) {
      const size_t begin = task * panels_per_task, end = HWY_MIN(begin + panels_per_task, panels);
      product.start(block, /*bias=*/nullptr, begin * kLanes, HWY_MIN(end * kLanes, columns));
      for (size_t panel = begin; panel < end; ++panel) {
        product.add(block, list, panel, 0, x.blocks);
      }
    });
  }
}

void query_projection_nbits(const QueryProjectionArgs& args, const NBitsWeight& weight,
                            const Parallel& parallel) {
  thread_local Scratch memory;
  thread_local OpenRows open;
  thread_local std::vector<float> units;
  const int32_t per_unit = heads_per_unit(args.head_dim, kLanes);
  open_units(static_cast<const float*>(args.gates), args.tokens, args.heads, per_unit, units);
  open.make(DType::kFloat32, units.data(),
            {args.tokens, (args.heads + per_unit - 1) / per_unit, 1});
  const RoundedRows x = round_rows(static_cast<const float*>(args.input),
                                   static_cast<size_t>(args.tokens), weight, parallel, memory);
  const auto columns = static_cast<size_t>(weight.columns);
  const size_t size = static_cast<size_t>(per_unit) * static_cast<size_t>(args.head_dim);
  const Product product{x, weight, static_cast<float*>(args.output)};
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
        product.add(tokens, list, panel, 0, x.blocks);
      }
    }
    close_heads(args, tokens, begin, end);
  });
}

void output_projection_nbits(const OutputProjectionArgs& args, const NBitsWeight& weight,
                             const Parallel& parallel) {
  thread_local Scratch memory;
  thread_local OpenRows open;
  thread_local std::vector<float> units;
  const int32_t per_unit = heads_per_unit(args.head_dim, kBlock);
  open_units(static_cast<const float*>(args.gates), args.tokens, args.heads, per_unit, units);
  open.make(DType::kFloat32, units.data(),
            {args.tokens, (args.heads + per_unit - 1) / per_unit, 1});
  const RoundedRows x = round_rows(static_cast<const float*>(args.input),
                                   static_cast<size_t>(args.tokens), weight, parallel, memory);
  const auto columns = static_cast<size_t>(weight.columns);
  const size_t blocks_per_unit = blocks_read_together(args.head_dim);
  const Product product{x, weight, static_cast<float*>(args.output)};
  const OpenRows& lists = open;
  constexpr size_t kPanelsPerTask = 8;
  const size_t panels = panels_of(columns);
  const size_t parts = (panels + kPanelsPerTask - 1) / kPanelsPerTask;
  for_each(parts * lists.blocks(), parallel, [&](size_t i) {
    const size_t block = i % lists.blocks(), part = i / lists.blocks();
    const TokenBlock tokens = lists.block_at(block);
    const size_t first = part * kPanelsPerTask, last = HWY_MIN(first + kPanelsPerTask, panels);
    product.start(tokens, args.bias, first * kLanes, HWY_MIN(last * kLanes, columns));
    // Panel by panel, as memory has it. Neighbours that every token chose are read together.
    for (size_t panel = first; panel < last; ++panel) {
      for (size_t unit = 0, next; unit < lists.groups(); unit = next) {
        const RowList list = lists.list_at(block, unit, 0);
        const bool every_token = list.count == tokens.count;
        next = unit + 1;
        while (every_token && next < lists.groups() &&
               lists.list_at(block, next, 0).count == tokens.count) {
          ++next;
        }
        if (list.count != 0) {
          product.add(tokens, list, panel, unit * blocks_per_unit,
                      HWY_MIN(next * blocks_per_unit, x.blocks));
        }
      }
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
