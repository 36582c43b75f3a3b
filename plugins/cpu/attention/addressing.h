// Where the rows of a task are in memory.
#pragma once

#include "cpu/attention/plan.h"
#include "cpu/attention/sight.h"

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

// What a task's rows are, for one call.
struct TaskView {
  const AttentionArgs& args;
  const Sights& sights;
  const Task& task;
  int32_t group = args.q_heads / args.kv_heads;
  int32_t keys = filled_keys(args, task.batch);

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

  // What a row sees.
  const Sight& sight(Row row) const { return sights.at(task.batch, row); }
  // The same where nothing is known about the size of scores.
  Sight unbounded_sight(Row row) const {
    const Sight& known = sight(row);
    return known.bounded ? Sight{range_by_position(args, task.batch, row.query), true, false,
                                 -std::numeric_limits<float>::infinity()}
                         : known;
  }
};

}  // namespace moh::cpu
