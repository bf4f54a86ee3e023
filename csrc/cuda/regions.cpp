// Binds RoI pooling and suppression of the CUDA kernels to PyTorch tensors.
#include "binding.h"

namespace dcnzoo::cuda {
namespace {

const float* float_data(const Tensor& tensor, const Device& device, const char* name) {
  device.check(tensor, name);
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, name, " must be float32");
  return static_cast<const float*>(tensor.const_data_ptr());
}

const int64_t* int64_data(const Tensor& tensor, const Device& device, const char* name) {
  device.check(tensor, name);
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long, name, " must be int64");
  return static_cast<const int64_t*>(tensor.const_data_ptr());
}

int32_t size32(int64_t size, const char* name) {
  STD_TORCH_CHECK(size > 0 && size <= INT32_MAX, name, " is empty or too large");
  return static_cast<int32_t>(size);
}

RoiLevel roi_level(const Tensor& maps, const Tensor& like, double spatial_scale, const Device& device) {
  device.check(maps, "roi_pool: input");
  STD_TORCH_CHECK(maps.dim() == 4 && maps.size(0) == like.size(0) && maps.size(1) == like.size(1) &&
                      maps.scalar_type() == like.scalar_type(),
                  "roi_pool: inputs must have 4 dimensions, and the same images, channels and type");
  STD_TORCH_CHECK(spatial_scale > 0, "roi_pool: spatial_scale must be positive");
  return {maps.const_data_ptr(), size32(maps.size(2), "roi_pool: input"), size32(maps.size(3), "roi_pool: input"),
          static_cast<float>(spatial_scale)};
}

Tensor pool(const std::vector<Tensor>& inputs, const Tensor& rois, const std::optional<Tensor>& levels,
            const std::optional<Tensor>& offset, const std::vector<double>& scales,
            const std::vector<int64_t>& output_size, double gamma) {
  STD_TORCH_CHECK(!inputs.empty() && inputs.size() <= most_roi_levels && inputs.size() == scales.size(),
                  "roi_pool: 1 to ", most_roi_levels, " levels, each with its scale");
  const Tensor& first = inputs[0];
  const Device device(first);
  STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "roi_pool: rois must be (R, 5)");
  const Tensor boxes = torch::stable::contiguous(rois);
  RoiPool call{};
  call.element = element_of(first, "roi_pool: input");
  STD_TORCH_CHECK(call.element != Element::float64, "roi_pool: the input must be float16, bfloat16 or float32");
  std::vector<Tensor> kept;  // alive until the kernel is launched
  for (size_t i = 0; i < inputs.size(); ++i) {
    STD_TORCH_CHECK(inputs[i].dim() == 4, "roi_pool: inputs must have 4 dimensions");
    kept.push_back(channels_last(inputs[i]));
    call.levels[i] = roi_level(kept.back(), first, scales[i], device);
  }
  call.num_levels = static_cast<int32_t>(inputs.size());
  call.channels = size32(first.size(1), "roi_pool: input");
  call.images = first.size(0), call.num_rois = rois.size(0);
  call.rois = float_data(boxes, device, "roi_pool: rois");
  call.pooled_h = size32(output_size.at(0), "roi_pool: output_size");
  call.pooled_w = size32(output_size.at(1), "roi_pool: output_size");
  call.gamma = static_cast<float>(gamma);
  if (levels) {
    STD_TORCH_CHECK(levels->numel() == rois.size(0), "roi_pool: levels must be (R,)");
    kept.push_back(torch::stable::contiguous(*levels));
    call.level_of_roi = int64_data(kept.back(), device, "roi_pool: levels");
  }
  if (offset) {
    device.check(*offset, "roi_pool: offset");
    STD_TORCH_CHECK(offset->dim() == 4 && offset->size(0) == rois.size(0) && offset->size(1) == 2 &&
                        offset->size(2) == output_size[0] && offset->size(3) == output_size[1],
                    "roi_pool: offset does not fit");
    kept.push_back(torch::stable::contiguous(*offset));
    call.offset = kept.back().const_data_ptr();
    call.offset_element = element_of(*offset, "roi_pool: offset");
  }
  const Tensor output = empty_maps({rois.size(0), first.size(1), output_size[0], output_size[1]}, first);
  call.output = output.mutable_data_ptr();
  if (call.num_rois > 0) check_cuda(run_roi_pool(call, device.stream()));
  return output;
}

Tensor roi_pool(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
                const std::vector<int64_t>& output_size, double spatial_scale, double gamma) {
  return pool({input}, rois, std::nullopt, offset, {spatial_scale}, output_size, gamma);
}

Tensor roi_align_pyramid(const std::vector<Tensor>& inputs, const Tensor& rois, const Tensor& levels,
                         const std::vector<double>& spatial_scales, const std::vector<int64_t>& output_size) {
  return pool(inputs, rois, levels, std::nullopt, spatial_scales, output_size, 0.0);
}

Tensor nms_sorted(const Tensor& boxes, const Tensor& counts, double iou_threshold) {
  constexpr int64_t most_boxes = 1 << 18;
  const Device device(boxes);
  STD_TORCH_CHECK(boxes.dim() == 3 && boxes.size(2) == 4 && boxes.size(1) <= most_boxes,
                  "nms_sorted: boxes must be (problems, at most ", most_boxes, ", 4)");
  STD_TORCH_CHECK(counts.numel() == boxes.size(0) && boxes.size(0) <= INT32_MAX,
                  "nms_sorted: counts must have one number per problem");
  const Tensor dense = aligned(boxes), numbers = torch::stable::contiguous(counts);
  const Tensor kept = torch::stable::empty({boxes.size(0), boxes.size(1)}, ScalarType::Bool, std::nullopt,
                                           boxes.device());
  Suppression call{};
  call.boxes = float_data(dense, device, "nms_sorted: boxes");
  call.counts = int64_data(numbers, device, "nms_sorted: counts");
  call.problems = boxes.size(0);
  call.num_boxes = static_cast<int32_t>(boxes.size(1));
  call.iou_threshold = static_cast<float>(iou_threshold);
  call.kept = static_cast<bool*>(kept.mutable_data_ptr());
  if (kept.numel() > 0) check_cuda(run_suppression(call, device.stream()));
  return kept;
}

}  // namespace
}  // namespace dcnzoo::cuda

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) {
  m.impl("roi_pool", TORCH_BOX(&dcnzoo::cuda::roi_pool));
  m.impl("roi_align_pyramid", TORCH_BOX(&dcnzoo::cuda::roi_align_pyramid));
  m.impl("nms_sorted", TORCH_BOX(&dcnzoo::cuda::nms_sorted));
}
