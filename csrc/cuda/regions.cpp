// Binds RoI pooling and suppression of the CUDA kernels to PyTorch tensors.
#include <tuple>

#include "../threshold.h"
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
          spatial_scale};
}

// One call of pooling, and what it points into.
struct Pooling {
  Device device;
  std::vector<Tensor> kept;  // alive until the kernel is launched
  RoiPool call{};

  Pooling(const std::vector<Tensor>& inputs, const Tensor& rois, const std::vector<double>& scales,
          const std::vector<int64_t>& output_size)
      : device(inputs.at(0)) {
    STD_TORCH_CHECK(inputs.size() <= most_roi_levels && inputs.size() == scales.size(), "roi_pool: 1 to ",
                    most_roi_levels, " levels, each with its scale");
    STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "roi_pool: rois must be (R, 5)");
    const Tensor& first = inputs[0];
    for (size_t i = 0; i < inputs.size(); ++i) {
      STD_TORCH_CHECK(inputs[i].dim() == 4, "roi_pool: inputs must have 4 dimensions");
      kept.push_back(channels_last(inputs[i]));
      call.levels[i] = roi_level(kept.back(), first, scales[i], device);
    }
    call.element = element_of(first, "roi_pool: input");
    call.num_levels = static_cast<int32_t>(inputs.size());
    call.channels = size32(first.size(1), "roi_pool: input");
    call.images = first.size(0), call.num_rois = rois.size(0);
    call.rois = keep(rois, "roi_pool: rois").const_data_ptr();
    call.rois_element = element_of(rois, "roi_pool: rois");
    call.pooled_h = size32(output_size.at(0), "roi_pool: output_size");
    call.pooled_w = size32(output_size.at(1), "roi_pool: output_size");
  }

  void set_levels(const Tensor& levels) {
    STD_TORCH_CHECK(levels.numel() == call.num_rois, "roi_pool: levels must be (R,)");
    call.level_of_roi = int64_data(keep(levels, "roi_pool: levels"), device, "roi_pool: levels");
  }

  void set_offset(const std::optional<Tensor>& offset, double gamma) {
    call.gamma = gamma;
    if (!offset) return;
    STD_TORCH_CHECK(offset->dim() == 4 && offset->size(0) == call.num_rois && offset->size(1) == 2 &&
                        offset->size(2) == call.pooled_h && offset->size(3) == call.pooled_w,
                    "roi_pool: offset does not fit");
    call.offset = keep(*offset, "roi_pool: offset").const_data_ptr();
    call.offset_element = element_of(*offset, "roi_pool: offset");
  }

  Tensor run(const Tensor& input) {
    const Tensor output = empty_maps({call.num_rois, call.channels, call.pooled_h, call.pooled_w}, input);
    call.output = output.mutable_data_ptr();
    if (call.num_rois > 0) check_cuda(run_roi_pool(call, device.stream()));
    return output;
  }

 private:
  const Tensor& keep(const Tensor& tensor, const char* name) {
    device.check(tensor, name);
    kept.push_back(torch::stable::contiguous(tensor));
    return kept.back();
  }
};

Tensor roi_pool(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
                const std::vector<int64_t>& output_size, double spatial_scale, double gamma) {
  Pooling pooling({input}, rois, {spatial_scale}, output_size);
  pooling.set_offset(offset, gamma);
  return pooling.run(input);
}

Tensor roi_align_pyramid(const std::vector<Tensor>& inputs, const Tensor& rois, const Tensor& levels,
                         const std::vector<double>& spatial_scales, const std::vector<int64_t>& output_size,
                         bool half_output) {
  STD_TORCH_CHECK(!inputs.empty(), "roi_align_pyramid: there is no level");
  STD_TORCH_CHECK(!half_output, "roi_align_pyramid: on a GPU the output is of the inputs' type");
  Pooling pooling(inputs, rois, spatial_scales, output_size);
  pooling.set_levels(levels);
  return pooling.run(inputs[0]);
}

std::tuple<Tensor, Tensor> roi_pool_grads(const Tensor& grad, const Tensor& input, const Tensor& rois,
                                          const std::optional<Tensor>& offset, const std::vector<int64_t>& output_size,
                                          double spatial_scale, double gamma) {
  Pooling pooling({input}, rois, {spatial_scale}, output_size);
  pooling.set_offset(offset, gamma);
  const RoiPool& call = pooling.call;
  pooling.device.check(grad, "roi_pool: the gradient");
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == call.num_rois && grad.size(1) == call.channels &&
                      grad.size(2) == call.pooled_h && grad.size(3) == call.pooled_w &&
                      grad.scalar_type() == input.scalar_type(),
                  "roi_pool: the gradient does not fit the output");
  const Tensor dense_grad = channels_last(grad);
  const ScalarType wide = call.element == Element::float64 ? ScalarType::Double : ScalarType::Float;
  Tensor grad_input = empty_maps({input.size(0), input.size(1), input.size(2), input.size(3)}, input, wide);
  torch::stable::zero_(grad_input);
  const Tensor grad_offset = offset ? torch::stable::empty({call.num_rois, 2, call.pooled_h, call.pooled_w},
                                                           offset->scalar_type(), std::nullopt, input.device())
                                    : torch::stable::empty({call.num_rois, 0, call.pooled_h, call.pooled_w},
                                                           input.scalar_type(), std::nullopt, input.device());
  const RoiPoolGrad work{call, dense_grad.const_data_ptr(), grad_input.mutable_data_ptr(),
                         offset ? grad_offset.mutable_data_ptr() : nullptr};
  if (call.num_rois > 0) check_cuda(run_roi_pool_grad(work, pooling.device.stream()));
  return {torch::stable::to(grad_input, input.scalar_type()), grad_offset};
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
  call.iou_threshold = round_down(iou_threshold);
  call.kept = static_cast<bool*>(kept.mutable_data_ptr());
  if (kept.numel() > 0) check_cuda(run_suppression(call, device.stream()));
  return kept;
}

}  // namespace
}  // namespace dcnzoo::cuda

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) {
  m.impl("roi_pool", TORCH_BOX(&dcnzoo::cuda::roi_pool));
  m.impl("roi_pool_grads", TORCH_BOX(&dcnzoo::cuda::roi_pool_grads));
  m.impl("roi_align_pyramid", TORCH_BOX(&dcnzoo::cuda::roi_align_pyramid));
  m.impl("nms_sorted", TORCH_BOX(&dcnzoo::cuda::nms_sorted));
}
