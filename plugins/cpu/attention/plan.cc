#include "cpu/attention/plan.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

#include "cpu/attention/addressing.h"

namespace moh::cpu {
namespace {

// So many tasks keep the threads of a usual machine about equally busy. Lists are divided further
// only if they are fewer: each task reads its keys and values again.
constexpr size_t kEnoughTasks = 16;

bool is_open(float gate) { return gate != 0.0f; }             // NaN is open
bool is_open(uint16_t gate) { return (gate & 0x7fff) != 0; }  // float16 or bfloat16

// Without a branch on the gate, which nothing could predict: an entry is always written and counts
// only if it is open.
template <typename Gate>
void list_open(const AttentionArgs& args, const Gate* gates, int32_t* rows, int32_t* counts) {
  const int32_t group = args.q_heads / args.kv_heads;
  const size_t capacity = static_cast<size_t>(args.queries) * group;
  for (int32_t query = 0; query < args.queries; ++query) {
    for (int32_t kv_head = 0; kv_head < args.kv_heads; ++kv_head) {
      int32_t* list = rows + kv_head * capacity;
      int32_t count = counts[kv_head];
      for (int32_t member = 0; member < group; ++member) {
        list[count] = query * group + member;
        count += is_open(*gates++);
      }
      counts[kv_head] = count;
    }
  }
}

int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

// About how many keys the rows of a task see together, by a few of them.
int64_t cost(const TaskView& view) {
  constexpr int64_t kSamples = 4;
  const int64_t count = view.task.row_count;
  int64_t keys = 0;
  for (int64_t i = 0; count != 0 && i < kSamples; ++i) {
    const int32_t place = view.task.rows[(2 * i + 1) * count / (2 * kSamples)];
    keys += view.unbounded_sight(view.row_at(place)).range.size();
  }
  return count * keys;
}

}  // namespace

void Plan::make(const AttentionArgs& args, const Sights& sights, const TaskSizes& sizes) {
  list_rows(args);
  divide(args, sizes);
  sort(args, sights);
}

void Plan::list_rows(const AttentionArgs& args) {
  const size_t tokens = static_cast<size_t>(args.queries) * args.q_heads;
  rows_.resize(args.batch * tokens);
  counts_.assign(static_cast<size_t>(args.batch) * args.kv_heads, 0);
  for (int32_t batch = 0; batch < args.batch; ++batch) {
    int32_t* rows = rows_.data() + batch * tokens;
    int32_t* counts = counts_.data() + static_cast<size_t>(batch) * args.kv_heads;
    if (args.dtype == DType::kFloat32) {
      list_open(args, static_cast<const float*>(args.gates) + batch * tokens, rows, counts);
    } else {
      list_open(args, static_cast<const uint16_t*>(args.gates) + batch * tokens, rows, counts);
    }
  }
}

int32_t Plan::most_rows(const TaskSizes& sizes) const {
  if (counts_.size() >= kEnoughTasks) {
    return sizes.most;
  }
  const int64_t total = std::accumulate(counts_.begin(), counts_.end(), int64_t{0});
  const int64_t wanted = total / static_cast<int64_t>(kEnoughTasks) / sizes.tile * sizes.tile;
  return static_cast<int32_t>(std::clamp<int64_t>(wanted, sizes.tile, sizes.most));
}

void Plan::divide(const AttentionArgs& args, const TaskSizes& sizes) {
  const int32_t group = args.q_heads / args.kv_heads;
  const size_t capacity = static_cast<size_t>(args.queries) * group;
  const int32_t most = most_rows(sizes);
  tasks_.clear();
  for (size_t list = 0; list < counts_.size(); ++list) {
    const int32_t* rows = rows_.data() + list * capacity;
    const int32_t granules = ceil_div(counts_[list], sizes.granule);
    const int32_t parts = std::max(1, ceil_div(granules * sizes.granule, most));
    int32_t begin = 0;
    for (int32_t part = 0; part < parts; ++part) {
      const int32_t end_granule = static_cast<int32_t>(int64_t{granules} * (part + 1) / parts);
      const bool last = part + 1 == parts;
      const int32_t end = last ? counts_[list] : end_granule * sizes.granule;
      tasks_.push_back({static_cast<int32_t>(list / args.kv_heads),
                        static_cast<int32_t>(list % args.kv_heads), rows + begin, end - begin,
                        begin == 0 ? 0 : int64_t{rows[begin - 1]} + 1,
                        last ? static_cast<int64_t>(capacity) : int64_t{rows[end - 1]} + 1, 0});
      begin = end;
    }
  }
}

// Tasks of one cost stay in the order of heads, whose data lie side by side.
void Plan::sort(const AttentionArgs& args, const Sights& sights) {
  if (sights.batch == 0 && sights.head == 0 && sights.query == 0) {
    return;
  }
  for (Task& task : tasks_) {
    task.cost = cost({args, sights, task});
  }
  std::stable_sort(tasks_.begin(), tasks_.end(),
                   [](const Task& a, const Task& b) { return a.cost > b.cost; });
}

}  // namespace moh::cpu
