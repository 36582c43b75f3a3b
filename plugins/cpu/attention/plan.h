// Which rows there are to compute, and how they are divided into tasks.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/attention/sight.h"
#include "moh/attention.h"

namespace moh::cpu {

// A row is one (query, q_head) pair with an open gate. Rows that read the same keys and values are
// listed together: those of the `group` query heads that share a key/value head. A row's place is
// query * group + (head within its group), so that lists are in the order of queries, and causal
// rows next to each other see about as many keys.
struct Task {
  int32_t batch, kv_head;
  const int32_t* rows;           // places, ascending
  int32_t row_count;             // 0: these heads were not selected
  int64_t zero_begin, zero_end;  // places in this range that are not in `rows` are to be zeroed
  int64_t cost;                  // where tasks are sorted by it
};

// How large tasks should be, in rows.
struct TaskSizes {
  int32_t granule;  // rows that cost as much as one: the lanes of a vector
  int32_t tile;     // below this a task is not worth while
  int32_t most;     // above this a task needs too much scratch
};

// Keeps its memory from one call to the next: four bytes for each (query, head) pair of the
// largest.
class Plan {
 public:
  // Reads the gates. Depends on the arguments only, never on the number of threads. Throws
  // std::bad_alloc.
  void make(const AttentionArgs& args, const Sights& sights, const TaskSizes& sizes);

  // In the order of heads; where rows differ in how many keys they see, the longest task first, so
  // that threads finish together.
  const std::vector<Task>& tasks() const { return tasks_; }

 private:
  void list_rows(const AttentionArgs& args);
  int32_t most_rows(const TaskSizes& sizes) const;
  void divide(const AttentionArgs& args, const TaskSizes& sizes);
  void sort(const AttentionArgs& args, const Sights& sights);

  std::vector<int32_t> rows_;    // [batch, kv_head, queries * group], with unused ends
  std::vector<int32_t> counts_;  // [batch, kv_head]
  std::vector<Task> tasks_;
};

}  // namespace moh::cpu
