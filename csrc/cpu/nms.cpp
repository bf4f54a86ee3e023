// Non-maximum suppression within groups. Every operation is rounded as torchvision's scalar kernel rounds it, so that
// the same boxes remain: this file is compiled without fused multiply-adds.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "../threshold.h"

namespace dcnzoo::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Boxes of one group by descending score, a coordinate per array.
struct Group {
  std::vector<float> left, top, right, bottom, area;
  std::vector<int32_t> suppressed;  // as wide as a float, for the vectoriser

  Group(const float* boxes, const int64_t* indices, int64_t count) : suppressed(static_cast<size_t>(count), 0) {
    for (std::vector<float>* values : {&left, &top, &right, &bottom, &area}) values->reserve(suppressed.size());
    for (int64_t i = 0; i < count; ++i) {
      const float* box = boxes + 4 * indices[i];
      left.push_back(box[0]), top.push_back(box[1]), right.push_back(box[2]), bottom.push_back(box[3]);
      area.push_back((box[2] - box[0]) * (box[3] - box[1]));
    }
  }

  // Marks the boxes after `best` whose intersection over union with it exceeds the threshold.
  void suppress(size_t best, float threshold) {
    const float best_left = left[best], best_top = top[best], best_right = right[best], best_bottom = bottom[best];
    const float best_area = area[best];
    const size_t count = left.size();
    const float *lefts = left.data(), *tops = top.data(), *rights = right.data(), *bottoms = bottom.data();
    const float* areas = area.data();
    int32_t* marks = suppressed.data();
    for (size_t i = best + 1; i < count; ++i) {
      const float width = std::max(0.0f, std::min(best_right, rights[i]) - std::max(best_left, lefts[i]));
      const float height = std::max(0.0f, std::min(best_bottom, bottoms[i]) - std::max(best_top, tops[i]));
      const float intersection = width * height;
      marks[i] |= intersection / (best_area + areas[i] - intersection) > threshold;
    }
  }
};

// Indices by descending score; equal scores keep their order, and NaN is the highest, as `torch.sort` has it.
std::vector<int64_t> sort_by_score(const float* scores, int64_t count) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [scores](int64_t a, int64_t b) {
    return scores[a] > scores[b] || (std::isnan(scores[a]) && !std::isnan(scores[b]));
  });
  return order;
}

// Where the groups begin in indices that are sorted by group, and the end.
std::vector<int64_t> find_bounds(const std::vector<int64_t>& indices, const int64_t* groups) {
  std::vector<int64_t> bounds{0};
  for (size_t i = 1; i < indices.size(); ++i) {
    if (groups[indices[i]] != groups[indices[i - 1]]) bounds.push_back(static_cast<int64_t>(i));
  }
  if (!indices.empty()) bounds.push_back(static_cast<int64_t>(indices.size()));
  return bounds;
}

// Sets kept[i] for the boxes that remain of one group.
void keep_best(const float* boxes, const int64_t* indices, int64_t count, float threshold, uint8_t* kept) {
  Group group(boxes, indices, count);
  for (int64_t i = 0; i < count; ++i) {
    if (group.suppressed[i]) continue;
    kept[indices[i]] = 1;
    group.suppress(static_cast<size_t>(i), threshold);
  }
}

std::vector<int64_t> suppress_within_groups(const float* boxes, const float* scores, const int64_t* groups,
                                            int64_t count, float threshold) {
  const std::vector<int64_t> order = sort_by_score(scores, count);
  std::vector<int64_t> by_group = order;
  std::stable_sort(by_group.begin(), by_group.end(), [groups](int64_t a, int64_t b) { return groups[a] < groups[b]; });
  const std::vector<int64_t> bounds = find_bounds(by_group, groups);
  const int64_t tasks = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<uint8_t> kept(static_cast<size_t>(count), 0);
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min(tasks, static_cast<int64_t>(torch::stable::get_num_threads()));
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) {
      const int64_t begin = bounds[task];
      keep_best(boxes, by_group.data() + begin, bounds[task + 1] - begin, threshold, kept.data());
    }
  });
  std::vector<int64_t> best;
  std::copy_if(order.begin(), order.end(), std::back_inserter(best), [&](int64_t index) { return kept[index] != 0; });
  return best;
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& groups, double iou_threshold) {
  STD_TORCH_CHECK(boxes.scalar_type() == ScalarType::Float && scores.scalar_type() == ScalarType::Float,
                  "batched_nms: boxes and scores must be float32");
  STD_TORCH_CHECK(groups.scalar_type() == ScalarType::Long, "batched_nms: groups must be int64");
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, "batched_nms: boxes must be (A, 4)");
  const int64_t count = boxes.size(0);
  STD_TORCH_CHECK(scores.dim() == 1 && scores.size(0) == count && groups.dim() == 1 && groups.size(0) == count,
                  "batched_nms: scores and groups must be (A,), one for each box");
  const Tensor corners = torch::stable::contiguous(boxes), confidences = torch::stable::contiguous(scores);
  const Tensor numbers = torch::stable::contiguous(groups);
  const std::vector<int64_t> kept = suppress_within_groups(
      static_cast<const float*>(corners.const_data_ptr()), static_cast<const float*>(confidences.const_data_ptr()),
      static_cast<const int64_t*>(numbers.const_data_ptr()), count, round_down(iou_threshold));
  const Tensor result = torch::stable::empty({static_cast<int64_t>(kept.size())}, ScalarType::Long);
  std::copy(kept.begin(), kept.end(), static_cast<int64_t*>(result.mutable_data_ptr()));
  return result;
}

}  // namespace
}  // namespace dcnzoo::cpu

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) { m.impl("batched_nms", TORCH_BOX(&dcnzoo::cpu::batched_nms)); }
