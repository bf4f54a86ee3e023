// Binds RoI pooling of the CPU kernels to PyTorch tensors.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <optional>
#include <vector>

#include "capability.h"
#include "memory.h"

namespace dcnzoo::cpu {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t rois_per_task = 4;
constexpr float most_samples = 65536.0f;  // per axis of a bin: a larger RoI is a mistake, and would take for ever

void check_float32(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, "roi_pool: ", name, " must be float32");
}

void check_roi(const float* roi, const RoiPool& call, int64_t images) {
  const float limit_w = most_samples * static_cast<float>(call.pooled_w) / call.spatial_scale;
  const float limit_h = most_samples * static_cast<float>(call.pooled_h) / call.spatial_scale;
  STD_TORCH_CHECK(roi[0] >= 0 && roi[0] < static_cast<float>(images), "roi_pool: image index out of range");
  STD_TORCH_CHECK(roi[3] - roi[1] <= limit_w && roi[4] - roi[2] <= limit_h, "roi_pool: RoI too large or not a number");
}

// What all RoIs of a feature map share; `map` is its dense form, to be kept as long as the call.
RoiPool map_call(const Tensor& map, const std::vector<int64_t>& output_size, double spatial_scale, double gamma) {
  STD_TORCH_CHECK(spatial_scale > 0, "roi_pool: spatial_scale must be positive");
  RoiPool call{};
  call.input = static_cast<const float*>(map.const_data_ptr());
  call.channels = map.size(1), call.height = map.size(2), call.width = map.size(3);
  call.pooled_h = output_size.at(0), call.pooled_w = output_size.at(1);
  call.spatial_scale = static_cast<float>(spatial_scale), call.gamma = static_cast<float>(gamma);
  return call;
}

Tensor dense_map(const Tensor& input) {
  check_float32(input, "input");
  STD_TORCH_CHECK(input.dim() == 4 && input.numel() > 0, "roi_pool: input must have 4 dimensions and elements");
  return torch::stable::contiguous(input, MemoryFormat::ChannelsLast);
}

Tensor dense_rois(const Tensor& rois, const std::vector<int64_t>& output_size) {
  check_float32(rois, "rois");
  STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "roi_pool: rois must be (R, 5)");
  STD_TORCH_CHECK(output_size.at(0) > 0 && output_size.at(1) > 0, "roi_pool: output_size must be positive");
  return torch::stable::contiguous(rois);
}

// Calls `pool(begin, end)` for a few RoIs at a time, on all threads.
template <class Function>
void for_rois(int64_t num_rois, const Function& pool) {
  const int64_t tasks = (num_rois + rois_per_task - 1) / rois_per_task;
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, tasks < threads ? tasks : threads, 1, [&](int64_t, int64_t) {
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) {
      const int64_t begin = task * rois_per_task, end = begin + rois_per_task;
      pool(begin, end < num_rois ? end : num_rois);
    }
  });
}

Tensor roi_pool(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
                const std::vector<int64_t>& output_size, double spatial_scale, double gamma) {
  const Tensor map = dense_map(input), boxes = dense_rois(rois, output_size);
  const Tensor output = empty_maps(rois.size(0), input.size(1), output_size[0], output_size[1], ScalarType::Float);
  RoiPool call = map_call(map, output_size, spatial_scale, gamma);
  call.rois = static_cast<const float*>(boxes.const_data_ptr());
  call.num_rois = rois.size(0);
  call.output = static_cast<float*>(output.mutable_data_ptr());
  std::optional<Tensor> shifts;
  if (offset) {
    check_float32(*offset, "offset");
    STD_TORCH_CHECK(offset->dim() == 4 && offset->size(0) == rois.size(0) && offset->size(1) == 2 &&
                        offset->size(2) == output_size[0] && offset->size(3) == output_size[1],
                    "roi_pool: offset does not fit");
    shifts = torch::stable::contiguous(*offset);
    call.offset = static_cast<const float*>(shifts->const_data_ptr());
  }
  for (int64_t i = 0; i < call.num_rois; ++i) check_roi(call.rois + 5 * i, call, input.size(0));
  for_rois(call.num_rois, [&](int64_t begin, int64_t end) { capability().kernels->pool_rois(call, begin, end); });
  return output;
}

Tensor roi_align_pyramid(const std::vector<Tensor>& inputs, const Tensor& rois, const Tensor& levels,
                         const std::vector<double>& spatial_scales, const std::vector<int64_t>& output_size) {
  STD_TORCH_CHECK(!inputs.empty() && inputs.size() == spatial_scales.size(), "roi_pool: one spatial_scale per level");
  STD_TORCH_CHECK(levels.scalar_type() == ScalarType::Long && levels.dim() == 1 && levels.size(0) == rois.size(0),
                  "roi_pool: levels must be (R,) int64");
  const Tensor boxes = dense_rois(rois, output_size), dense_levels = torch::stable::contiguous(levels);
  std::vector<Tensor> maps;
  std::vector<RoiPool> calls;
  for (size_t level = 0; level < inputs.size(); ++level) {
    maps.push_back(dense_map(inputs[level]));
    STD_TORCH_CHECK(maps[level].size(0) == maps[0].size(0) && maps[level].size(1) == maps[0].size(1),
                    "roi_pool: levels differ in images or channels");
    calls.push_back(map_call(maps[level], output_size, spatial_scales[level], 0.0));
  }
  const int64_t channels = maps[0].size(1), roi_numel = channels * output_size[0] * output_size[1];
  const Tensor output = empty_maps(rois.size(0), channels, output_size[0], output_size[1], ScalarType::Float);
  const float* const roi_data = static_cast<const float*>(boxes.const_data_ptr());
  const int64_t* const level_data = static_cast<const int64_t*>(dense_levels.const_data_ptr());
  float* const output_data = static_cast<float*>(output.mutable_data_ptr());
  for (int64_t i = 0; i < rois.size(0); ++i) {
    STD_TORCH_CHECK(level_data[i] >= 0 && level_data[i] < static_cast<int64_t>(calls.size()), "roi_pool: no such level");
    check_roi(roi_data + 5 * i, calls[static_cast<size_t>(level_data[i])], maps[0].size(0));
  }
  for_rois(rois.size(0), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      RoiPool call = calls[static_cast<size_t>(level_data[i])];
      call.rois = roi_data + 5 * i, call.num_rois = 1;
      call.output = output_data + i * roi_numel;
      capability().kernels->pool_rois(call, 0, 1);
    }
  });
  return output;
}

}  // namespace
}  // namespace dcnzoo::cpu

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("roi_pool", TORCH_BOX(&dcnzoo::cpu::roi_pool));
  m.impl("roi_align_pyramid", TORCH_BOX(&dcnzoo::cpu::roi_align_pyramid));
}
