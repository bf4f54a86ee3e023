// Binds the gradients of the deformable convolution to PyTorch tensors.
#include <tuple>

#include "deform_conv2d.h"

namespace dcnzoo::cpu {
namespace {

// Tensors in the type that is computed with, dense, and the call that they make up.
struct Gradient {
  ScalarType type;
  const DeformConv2dGradKernels& kernels;
  ConvShape shape;
  Tensor input;
  DeformConv2dGrad call{};

  Gradient(const Tensor& grad, const Tensor& given_input, const Tensor& weight, const Tensor& offset,
           const std::optional<Tensor>& mask, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
           const std::vector<int64_t>& dilation, bool mask_is_logits)
      : type(computed_type(given_input.scalar_type())),
        kernels(capability().kernels->deform_conv2d.grad(element_of(type))),
        shape(conv_shape(given_input, weight, offset, mask, stride, padding, dilation)),
        input(channels_last(given_input, type)) {
    element_of(given_input), element_of(grad), element_of(weight);  // floating point all
    STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == shape.images && grad.size(1) == shape.out_channels &&
                        grad.size(2) == shape.out_height && grad.size(3) == shape.out_width,
                    "deform_conv2d: the gradient does not fit the output");
    call.shape = shape;
    call.input = input.const_data_ptr();
    call.offset = strided_maps(offset);
    if (mask) call.mask = strided_maps(*mask);
    call.mask_is_logits = mask_is_logits;
  }

  void run(const GradKernels& kernel, int64_t units, int64_t chunks) const {
    run_tasks(units * chunks, kernel.scratch_bytes(shape, chunks),
              [&](int64_t task, void* scratch) { kernel.run(call, chunks, task, scratch); });
  }
};

int threads() { return static_cast<int>(torch::stable::get_num_threads()); }

Tensor transposed_weight(const Gradient& gradient, const Tensor& weight) {
  const Tensor dense = torch::stable::contiguous(converted(weight, gradient.type));
  const Tensor packed = torch::stable::empty({gradient.kernels.transposed_numel(gradient.shape)}, gradient.type);
  torch::stable::parallel_for(0, gradient.kernels.transpose_units(gradient.shape), 1, [&](int64_t begin, int64_t end) {
    gradient.kernels.transpose(gradient.shape, dense.const_data_ptr(), packed.mutable_data_ptr(), begin, end);
  });
  return packed;
}

std::tuple<Tensor, Tensor, Tensor> deform_conv2d_input_grads(
    const Tensor& grad, const Tensor& input, const Tensor& weight, const Tensor& offset,
    const std::optional<Tensor>& mask, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, bool mask_is_logits) {
  Gradient gradient(grad, input, weight, offset, mask, stride, padding, dilation, mask_is_logits);
  const ConvShape& shape = gradient.shape;
  const int64_t chunks = gradient.kernels.input.chunks(shape, threads());
  const int64_t points = shape.deform_groups * shape.taps();
  const auto zero_points = [&](int64_t channels) {
    return torch::stable::new_zeros(input, {chunks, shape.images, channels, shape.out_height, shape.out_width},
                                    gradient.type);
  };
  const Tensor packed = transposed_weight(gradient, weight);
  const Tensor dense_grad = channels_last(grad, gradient.type);
  Tensor grad_input = empty_maps(shape.images, shape.in_channels, shape.height, shape.width, gradient.type);
  torch::stable::zero_(grad_input);
  const Tensor grad_offset = zero_points(2 * points);
  const Tensor grad_mask = mask ? zero_points(points) : torch::stable::empty({1, 0}, gradient.type);
  gradient.call.packed_weight = packed.const_data_ptr();
  gradient.call.grad_output = dense_grad.const_data_ptr();
  gradient.call.grad_input = grad_input.mutable_data_ptr();
  gradient.call.grad_offset = grad_offset.mutable_data_ptr();
  gradient.call.grad_mask = mask ? grad_mask.mutable_data_ptr() : nullptr;
  gradient.run(gradient.kernels.input, shape.images, chunks);
  return {converted(grad_input, input.scalar_type()), sum_of_chunks(grad_offset, offset),
          sum_of_chunks(grad_mask, mask ? *mask : offset)};
}

Tensor deform_conv2d_weight_grad(const Tensor& grad, const Tensor& input, const Tensor& weight, const Tensor& offset,
                                 const std::optional<Tensor>& mask, const std::vector<int64_t>& stride,
                                 const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                                 bool mask_is_logits) {
  Gradient gradient(grad, input, weight, offset, mask, stride, padding, dilation, mask_is_logits);
  const ConvShape& shape = gradient.shape;
  const std::vector<int64_t> sizes{weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
  if (shape.images == 0) return torch::stable::new_zeros(weight, sizes);
  const Tensor dense_grad = torch::stable::contiguous(converted(grad, gradient.type));
  const Tensor grad_weight = torch::stable::empty(sizes, gradient.type);
  gradient.call.grad_output = dense_grad.const_data_ptr();
  gradient.call.grad_weight = grad_weight.mutable_data_ptr();
  gradient.run(gradient.kernels.weight, shape.kernel_h, gradient.kernels.weight.chunks(shape, threads()));
  return converted(grad_weight, weight.scalar_type());
}

}  // namespace
}  // namespace dcnzoo::cpu

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("deform_conv2d_input_grads", TORCH_BOX(&dcnzoo::cpu::deform_conv2d_input_grads));
  m.impl("deform_conv2d_weight_grad", TORCH_BOX(&dcnzoo::cpu::deform_conv2d_weight_grad));
}
