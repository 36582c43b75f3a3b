// MoHQueryProjection and MoHOutputProjection: rows of open heads times packed weights.
#include "cpu/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/projection/projection.cc"
#include "hwy/foreach_target.h"  // compiles this file once more for each instruction set

#include <algorithm>
#include <cstring>

#include "cpu/for_each.h"
#include "cpu/kernels.h"
#include "cpu/projection/open_rows.h"
#include "cpu/projection/panels-inl.h"
#include "cpu/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// [rows, size] in float32: in place, or copied to `copy`.
template <typename T>
const float* in_float32(const void* data, size_t rows, size_t size, const Parallel& parallel,
                        Scratch& copy) {
  if constexpr (std::is_same<T, float>::value) {
    return static_cast<const float*>(data);
  } else {
    constexpr size_t kRowsPerTask = 32;
    copy.reset(Scratch::bytes<float>(rows * size));
    float* const wide = copy.take<float>(rows * size);
    for_each((rows + kRowsPerTask - 1) / kRowsPerTask, parallel, [&](size_t i) {
      const size_t begin = i * kRowsPerTask * size;
      const size_t end = HWY_MIN(begin + kRowsPerTask * size, rows * size);
      const T* const narrow = static_cast<const T*>(data);
      for (size_t at = begin; at < end; at += kLanes) {
        const size_t count = HWY_MIN(kLanes, end - at);
        store_first(load_first(narrow + at, count), wide + at, count);
      }
    });
    return wide;
  }
}

// The bias of some panels, with zeros behind the last column and where there is no bias.
template <typename T>
struct PanelBias {
  HWY_ALIGN float values[kMostColumns];

  PanelBias(const void* bias, size_t columns, size_t first_panel, size_t panels) {
    for (size_t v = 0; v < panels; ++v) {
      const size_t at = (first_panel + v) * kLanes;
      hn::Store(bias == nullptr
                    ? hn::Zero(DF())
                    : load_first(static_cast<const T*>(bias) + at, HWY_MIN(kLanes, columns - at)),
                DF(), values + v * kLanes);
    }
  }

  void copy_to(float* sums, size_t stride, size_t rows, size_t panels) const {
    for (size_t row = 0; row < rows; ++row) {
      for (size_t v = 0; v < panels; ++v) {
        hn::StoreU(hn::Load(DF(), values + v * kLanes), DF(), sums + row * stride + v * kLanes);
      }
    }
  }
};

template <typename T>
void store_row(const float* sums, T* row, size_t count) {
  for (size_t i = 0; i < count; i += kLanes) {
    const VF part = hn::LoadU(DF(), sums + i);
    if (count - i >= kLanes) {
      store_floats(part, row + i);
    } else {
      store_first(part, row + i, count - i);
    }
  }
}

// Two heads that a token chose share a pass where one head alone does not fill whole vectors.
inline int32_t query_heads_per_group(int32_t head_dim) {
  const auto size = static_cast<size_t>(head_dim);
  return size % kLanes != 0 && 2 * size % kLanes == 0 && 2 * size <= kMostColumns ? 2 : 1;
}

// What the tasks of a query projection share.
template <typename T>
struct QueryCall {
  const QueryProjectionArgs& args;
  const float* input;
  const float* packed;
  const OpenRows& open;
  size_t depth = static_cast<size_t>(args.in_features);
  size_t head_dim = static_cast<size_t>(args.head_dim);
  size_t columns = static_cast<size_t>(args.heads) * head_dim;

  T* output(int64_t token) const {
    return static_cast<T*>(args.output) + static_cast<size_t>(token) * columns;
  }

  // Consecutive tasks read the same weights.
  void run_task(size_t i) const {
    const size_t block = i % open.blocks(), group = i / open.blocks();
    const TokenBlock tokens = open.block_at(block);
    for (size_t list = 0; list < open.lists_per_group(); ++list) {
      const RowList chosen = open.list_at(block, group, list);
      if (chosen.count != 0) {
        project(tokens, chosen, columns_of(group));
      }
    }
    zero_closed_heads(tokens, group);
  }

  // Columns [begin, end) of some heads.
  struct Range {
    size_t begin, end;
  };

  Range columns_of(size_t group) const {
    const auto size = static_cast<size_t>(query_heads_per_group(args.head_dim)) * head_dim;
    return {group * size, HWY_MIN((group + 1) * size, columns)};
  }

  // `own` are the columns of the group; no other call writes them.
  void project(TokenBlock tokens, const RowList& list, Range own) const {
    const size_t begin = static_cast<size_t>(list.first_head) * head_dim;
    const size_t end = begin + static_cast<size_t>(list.heads) * head_dim;
    const size_t first_panel = begin / kLanes;
    const Cut cut(panels(end) - first_panel, kMostPanels);
    for (size_t part = 0; part < cut.parts; ++part) {
      const size_t panel = first_panel + cut.begin(part);
      const size_t panels = first_panel + cut.begin(part + 1) - panel;
      const Range whole{panel * kLanes, (panel + panels) * kLanes};
      if constexpr (std::is_same<T, float>::value) {
        // What is written beyond the list's heads is of a closed head, and becomes 0 afterwards.
        if (own.begin <= whole.begin && whole.end <= own.end) {
          multiply_panels(tokens, list, panel, panels, output(tokens.begin) + whole.begin, columns);
          continue;
        }
      }
      const Range kept{HWY_MAX(begin, whole.begin), HWY_MIN(end, whole.end)};
      project_through_scratch(tokens, list, panel, panels, kept);
    }
  }

  void project_through_scratch(TokenBlock tokens, const RowList& list, size_t panel, size_t panels,
                               Range kept) const {
    thread_local Scratch scratch;
    // Rows are read as vectors that may begin at any column.
    const size_t size = static_cast<size_t>(tokens.count) * kMostColumns + kLanes;
    scratch.reset(Scratch::bytes<float>(size));
    float* const sums = scratch.take<float>(size);
    multiply_panels(tokens, list, panel, panels, sums, kMostColumns);
    for (int32_t i = 0; i < list.count; ++i) {
      const float* const row = sums + static_cast<size_t>(list.rows[i]) * kMostColumns;
      store_row(row + (kept.begin - panel * kLanes),
                output(tokens.begin + list.rows[i]) + kept.begin, kept.end - kept.begin);
    }
  }

  void multiply_panels(TokenBlock tokens, const RowList& list, size_t panel, size_t panels,
                       float* sums, size_t sums_stride) const {
    const PanelBias<T> bias(args.bias, columns, panel, panels);
    const size_t stride = depth * kLanes;
    multiply({input + static_cast<size_t>(tokens.begin) * depth, depth, packed + panel * stride,
              stride, depth},
             panels, {bias.values, 0, sums, sums_stride}, list.rows,
             static_cast<size_t>(list.count));
  }

  void zero_closed_heads(TokenBlock tokens, size_t group) const {
    const Range own = columns_of(group);
    for (size_t begin = own.begin; begin < own.end; begin += head_dim) {
      const auto head = static_cast<int64_t>(begin / head_dim);
      for (int64_t token = tokens.begin; token < tokens.begin + tokens.count; ++token) {
        if (!is_open(args.dtype, args.gates, token * args.heads + head)) {
          std::memset(output(token) + begin, 0, head_dim * sizeof(T));
        }
      }
    }
  }
};

// What the tasks of an output projection share.
template <typename T>
struct OutputCall {
  const OutputProjectionArgs& args;
  const float* input;
  const float* packed;
  const OpenRows& open;
  size_t head_dim = static_cast<size_t>(args.head_dim);
  size_t depth = static_cast<size_t>(args.heads) * head_dim;
  size_t columns = static_cast<size_t>(args.out_features);
  // Of few tokens, more tasks.
  Cut cut{panels(columns), open.blocks() == 1 ? kMostVectors : kMostPanels};

  size_t tasks() const { return cut.parts * open.blocks(); }

  // Consecutive tasks read the same weights.
  void run_task(size_t i) const {
    const size_t block = i % open.blocks(), part = i / open.blocks();
    const size_t panel = cut.begin(part), panels = cut.begin(part + 1) - panel;
    const size_t begin = panel * kLanes, end = HWY_MIN(begin + panels * kLanes, columns);
    const TokenBlock tokens = open.block_at(block);
    T* const output =
        static_cast<T*>(args.output) + static_cast<size_t>(tokens.begin) * columns + begin;
    if constexpr (std::is_same<T, float>::value) {
      if (end == begin + panels * kLanes) {
        return add_open_heads(block, panel, panels, output, columns);
      }
    }
    thread_local Scratch scratch;
    const auto rows = static_cast<size_t>(tokens.count);
    scratch.reset(Scratch::bytes<float>(rows * kMostColumns));
    float* const sums = scratch.take<float>(rows * kMostColumns);
    add_open_heads(block, panel, panels, sums, kMostColumns);
    for (size_t row = 0; row < rows; ++row) {
      store_row(sums + row * kMostColumns, output + row * columns, end - begin);
    }
  }

  // sums = bias + the product of each token with its open heads, in the order of heads.
  void add_open_heads(size_t block, size_t panel, size_t panels, float* sums,
                      size_t sums_stride) const {
    const PanelBias<T> bias(args.bias, columns, panel, panels);
    const TokenBlock tokens = open.block_at(block);
    const float* const rows = input + static_cast<size_t>(tokens.begin) * depth;
    const size_t stride = depth * kLanes;
    Sums where{bias.values, 0, sums, sums_stride};
    for (size_t i = 0; i < open.groups() * open.lists_per_group(); ++i) {
      const RowList list =
          open.list_at(block, i / open.lists_per_group(), i % open.lists_per_group());
      if (list.count == 0) {
        continue;
      }
      if (list.count != tokens.count && where.from != sums) {  // the others need the bias, too
        bias.copy_to(sums, sums_stride, static_cast<size_t>(tokens.count), panels);
        where = {sums, sums_stride, sums, sums_stride};
      }
      const size_t begin = static_cast<size_t>(list.first_head) * head_dim;
      multiply({rows + begin, depth, packed + panel * stride + begin * kLanes, stride,
                static_cast<size_t>(list.heads) * head_dim},
               panels, where, list.rows, static_cast<size_t>(list.count));
      where = {sums, sums_stride, sums, sums_stride};
    }
    if (where.from != sums) {
      bias.copy_to(sums, sums_stride, static_cast<size_t>(tokens.count), panels);
    }
  }
};

// Two heads share a pass where one alone is so small that reading and writing the sums counts.
constexpr int32_t kSmallHead = 48;

inline int32_t output_heads_per_group(int32_t head_dim) { return head_dim <= kSmallHead ? 2 : 1; }

template <typename T>
void project_queries(const QueryProjectionArgs& args, const float* packed,
                     const Parallel& parallel) {
  thread_local Scratch wide;
  thread_local OpenRows open;
  open.make(args.dtype, args.gates,
            {args.tokens, args.heads, query_heads_per_group(args.head_dim)});
  const float* const input = in_float32<T>(args.input, static_cast<size_t>(args.tokens),
                                           static_cast<size_t>(args.in_features), parallel, wide);
  const QueryCall<T> call{args, input, packed, open};
  for_each(open.groups() * open.blocks(), parallel, [&](size_t i) { call.run_task(i); });
}

template <typename T>
void project_outputs(const OutputProjectionArgs& args, const float* packed,
                     const Parallel& parallel) {
  thread_local Scratch wide;
  thread_local OpenRows open;
  open.make(args.dtype, args.gates,
            {args.tokens, args.heads, output_heads_per_group(args.head_dim)});
  const float* const input = in_float32<T>(
      args.input, static_cast<size_t>(args.tokens),
      static_cast<size_t>(args.heads) * static_cast<size_t>(args.head_dim), parallel, wide);
  const OutputCall<T> call{args, input, packed, open};
  for_each(call.tasks(), parallel, [&](size_t i) { call.run_task(i); });
}

template <typename T>
void pack_panels(const T* weight, size_t depth, size_t columns, float* packed,
                 const Parallel& parallel) {
  for_each(panels(columns), parallel, [&](size_t panel) {
    pack_panel(weight, depth, columns, panel, packed + panel * depth * kLanes);
  });
}

size_t packed_weight_size(int32_t depth, int32_t columns) {
  return panels(static_cast<size_t>(columns)) * kLanes * static_cast<size_t>(depth);
}

void pack_weight(const WeightArgs& args, float* packed, const Parallel& parallel) {
  with_type(args.dtype, [&](auto type) {
    using T = decltype(type);
    pack_panels(static_cast<const T*>(args.weight), static_cast<size_t>(args.depth),
                static_cast<size_t>(args.columns), packed, parallel);
  });
}

void query_projection(const QueryProjectionArgs& args, const float* packed,
                      const Parallel& parallel) {
  with_type(args.dtype,
            [&](auto type) { project_queries<decltype(type)>(args, packed, parallel); });
}

void output_projection(const OutputProjectionArgs& args, const float* packed,
                       const Parallel& parallel) {
  with_type(args.dtype,
            [&](auto type) { project_outputs<decltype(type)>(args, packed, parallel); });
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
