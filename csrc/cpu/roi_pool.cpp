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

void check_rois(const RoiPool& call, int64_t images) {
  const float limit_w = most_samples * static_cast<float>(call.pooled_w) / call.spatial_scale;
  const float limit_h = most_samples * static_cast<float>(call.pooled_h) / call.spatial_scale;
  for (int64_t i = 0; i < call.num_rois; ++i) {
    const float* roi = call.rois + 5 * i;
    STD_TORCH_CHECK(roi[0] >= 0 && roi[0] < static_cast<float>(images), "roi_pool: image index out of range");
    STD_TORCH_CHECK(roi[3] - roi[1] <= limit_w && roi[4] - roi[2] <= limit_h, "roi_pool: RoI too large or not a number");
  }
}

Tensor roi_pool(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
                const std::vector<int64_t>& output_size, double spatial_scale, double gamma) {
  check_float32(input, "input");
  check_float32(rois, "rois");
  STD_TORCH_CHECK(input.dim() == 4 && input.numel() > 0, "roi_pool: input must have 4 dimensions and elements");
  STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "roi_pool: rois must be (R, 5)");
  STD_TORCH_CHECK(output_size.at(0) > 0 && output_size.at(1) > 0, "roi_pool: output_size must be positive");
  STD_TORCH_CHECK(spatial_scale > 0, "roi_pool: spatial_scale must be positive");
  const Tensor maps = torch::stable::contiguous(input, MemoryFormat::ChannelsLast);
  const Tensor boxes = torch::stable::contiguous(rois);
  const Tensor output = empty_maps(rois.size(0), input.size(1), output_size[0], output_size[1], ScalarType::Float);
  RoiPool call{};
  call.input = static_cast<const float*>(maps.const_data_ptr());
  call.channels = input.size(1), call.height = input.size(2), call.width = input.size(3);
  call.rois = static_cast<const float*>(boxes.const_data_ptr());
  call.num_rois = rois.size(0);
  call.pooled_h = output_size[0], call.pooled_w = output_size[1];
  call.spatial_scale = static_cast<float>(spatial_scale), call.gamma = static_cast<float>(gamma);
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
  check_rois(call, input.size(0));
  const int64_t tasks = (call.num_rois + rois_per_task - 1) / rois_per_task;
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, tasks < threads ? tasks : threads, 1, [&](int64_t, int64_t) {
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) {
      const int64_t begin = task * rois_per_task, end = begin + rois_per_task;
      capability().kernels->pool_rois(call, begin, end < call.num_rois ? end : call.num_rois);
    }
  });
  return output;
}

}  // namespace
}  // namespace dcnzoo::cpu

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) { m.impl("roi_pool", TORCH_BOX(&dcnzoo::cpu::roi_pool)); }
