// Where the rows of a task are in memory.
#pragma once

#include <algorithm>

#include "cpu/attention/plan.h"

namespace moh::cpu {

template <typename T>
const T* at(const void* tensor, const HeadStrides& strides, int64_t batch, int64_t head,
            int64_t token) {
  return static_cast<const T*>(tensor) + batch * strides.batch + head * strides.head +
         token * strides.token;
}

template <typename T>
T* at(void* tensor, const HeadStrides& strides, int64_t batch, int64_t head, int64_t token) {
  return const_cast<T*>(at<T>(static_cast<const void*>(tensor), strides, batch, head, token));
}

// The (query, q_head) pair of a place; see Task.
struct Row {
  int32_t query, head;
};

// What a task's rows are, for one call.
struct TaskView {
  const AttentionArgs& args;
  const Task& task;
  int32_t group = args.q_heads / args.kv_heads;
  // That are filled: what lies behind them is never read.
  int32_t keys = args.nonpad_kv_seqlen == nullptr
                     ? args.keys
                     : static_cast<int32_t>(args.nonpad_kv_seqlen[task.batch]);

  Row row_at(int64_t place) const {
    if (group == 1) {  // as often as not; divisions would be felt with small heads
      return {static_cast<int32_t>(place), task.kv_head};
    }
    const auto query = static_cast<int32_t>(place / group);
    return {query, task.kv_head * group + static_cast<int32_t>(place % group)};
  }

  template <typename T>
  const T* query(Row row) const {
    return at<T>(args.query, args.query_strides, task.batch, row.head, row.query);
  }
  template <typename T>
  T* output(Row row) const {
    return at<T>(args.output, args.output_strides, task.batch, row.head, row.query);
  }
  template <typename T>
  const T* key(int64_t key) const {
    return at<T>(args.key, args.key_strides, task.batch, task.kv_head, key);
  }
  template <typename T>
  const T* value(int64_t key) const {
    return at<T>(args.value, args.value_strides, task.batch, task.kv_head, key);
  }
  template <typename T>
  T gate(Row row) const {
    return static_cast<const T*>(
        args.gates)[(int64_t{task.batch} * args.queries + row.query) * args.q_heads + row.head];
  }
  // In elements of the mask.
  ptrdiff_t mask_offset(Row row) const {
    return task.batch * args.mask.batch + row.head * args.mask.head + row.query * args.mask.query;
  }

  // How many keys a query sees: all, or those up to its position.
  int32_t visible_keys(Row row) const {
    if (!args.causal) {
      return keys;
    }
    const int64_t position = int64_t{row.query} + keys - args.queries;
    return static_cast<int32_t>(std::clamp<int64_t>(position + 1, 0, keys));
  }
};

}  // namespace moh::cpu
