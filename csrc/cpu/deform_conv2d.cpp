// Binds the deformable convolution of the CPU kernels to PyTorch tensors.
#include "deform_conv2d.h"

namespace dcnzoo::cpu {
namespace {

const DeformConv2dKernels& kernels_for(ScalarType type, bool half) {
  STD_TORCH_CHECK(!half || type == ScalarType::Float, "deform_conv2d: only float32 can be rounded as it is multiplied");
  return half ? half_kernels().deform_conv2d : capability().kernels->deform_conv2d[element_of(type)];
}

ConvShape weight_shape(torch::headeronly::IntHeaderOnlyArrayRef weight, int64_t groups) {
  STD_TORCH_CHECK(weight.size() == 4, "deform_conv2d: weight must have 4 dimensions");
  STD_TORCH_CHECK(groups > 0 && weight[0] % groups == 0, "deform_conv2d: groups must divide the output channels");
  ConvShape shape{};
  shape.in_channels = weight[1] * groups;
  shape.out_channels = weight[0];
  shape.kernel_h = weight[2];
  shape.kernel_w = weight[3];
  shape.groups = groups;
  STD_TORCH_CHECK(shape.in_channels > 0 && shape.out_channels > 0 && shape.taps() > 0, "deform_conv2d: empty weight");
  return shape;
}

int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  STD_TORCH_CHECK(stride > 0 && dilation > 0, "deform_conv2d: stride and dilation must be positive");
  const int64_t room = size + 2 * pad - dilation * (kernel - 1) - 1;
  STD_TORCH_CHECK(room >= 0, "deform_conv2d: the kernel is larger than the padded input");
  return room / stride + 1;
}

void check_mask(const Tensor& mask, const ConvShape& shape) {
  STD_TORCH_CHECK(mask.dim() == 4 && mask.size(0) == shape.images &&
                      mask.size(1) == shape.deform_groups * shape.taps() && mask.size(2) == shape.out_height &&
                      mask.size(3) == shape.out_width,
                  "deform_conv2d: mask does not fit");
}

}  // namespace

ConvShape conv_shape(const Tensor& input, const Tensor& weight, const Tensor& offset, const std::optional<Tensor>& mask,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(input.dim() == 4 && offset.dim() == 4, "deform_conv2d: input and offset must have 4 dimensions");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) > 0 && input.size(1) % weight.size(1) == 0,
                  "deform_conv2d: weight does not divide the input channels into groups");
  ConvShape shape = weight_shape(weight.sizes(), input.size(1) / weight.size(1));
  shape.images = input.size(0);
  shape.height = input.size(2);
  shape.width = input.size(3);
  shape.stride_h = stride.at(0), shape.stride_w = stride.at(1);
  shape.pad_h = padding.at(0), shape.pad_w = padding.at(1);
  shape.dilation_h = dilation.at(0), shape.dilation_w = dilation.at(1);
  shape.out_height = output_size(shape.height, shape.kernel_h, shape.stride_h, shape.pad_h, shape.dilation_h);
  shape.out_width = output_size(shape.width, shape.kernel_w, shape.stride_w, shape.pad_w, shape.dilation_w);
  shape.deform_groups = offset.size(1) / (2 * shape.taps());
  STD_TORCH_CHECK(shape.deform_groups > 0 && shape.in_channels % shape.deform_groups == 0 &&
                      offset.size(1) == 2 * shape.deform_groups * shape.taps() && offset.size(0) == shape.images &&
                      offset.size(2) == shape.out_height && offset.size(3) == shape.out_width,
                  "deform_conv2d: offset does not fit");
  STD_TORCH_CHECK(shape.height > 0 && shape.width > 0, "deform_conv2d: empty map");
  STD_TORCH_CHECK(shape.height * shape.width <= INT32_MAX, "deform_conv2d: the map has more than 2^31 pixels");
  STD_TORCH_CHECK(input.scalar_type() == ScalarType::Double || std::max(shape.height, shape.width) <= 1 << 24,
                  "deform_conv2d: a side of the map exceeds 2^24 pixels, which float32 cannot tell apart");
  if (mask) check_mask(*mask, shape);
  return shape;
}

namespace {

void run(const DeformConv2dKernels& kernels, const DeformConv2d& call) {
  const Schedule schedule = kernels.schedule(call.shape, static_cast<int>(torch::stable::get_num_threads()));
  run_tasks(schedule.tasks(call.shape), schedule.scratch_bytes,
            [&](int64_t task, void* scratch) { kernels.run(call, schedule, task, scratch); });
}

int64_t packed_deform_conv2d_numel(const std::vector<int64_t>& weight_sizes, int64_t groups, ScalarType dtype,
                                   bool half) {
  return kernels_for(dtype, half).packed_numel(weight_shape(weight_sizes, groups));
}

Tensor pack_deform_conv2d_weight(const Tensor& weight, int64_t groups, bool half) {
  const ConvShape shape = weight_shape(weight.sizes(), groups);
  const DeformConv2dKernels& kernels = kernels_for(weight.scalar_type(), half);
  const Tensor dense = torch::stable::contiguous(weight);
  const Tensor packed = torch::stable::empty({kernels.packed_numel(shape)}, half ? half_factor_type() : weight.scalar_type());
  torch::stable::parallel_for(0, kernels.pack_units(shape), 1, [&](int64_t begin, int64_t end) {
    kernels.pack(shape, dense.const_data_ptr(), packed.mutable_data_ptr(), begin, end);
  });
  return packed;
}

Tensor deform_conv2d(const Tensor& input, const Tensor& weight, const Tensor& offset, const std::optional<Tensor>& mask,
                     const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
                     const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                     const std::optional<Tensor>& packed_weight, bool mask_is_logits, bool relu) {
  const ScalarType type = input.scalar_type();
  const bool half = type == ScalarType::Float && packed_weight && packed_weight->scalar_type() != type;
  const DeformConv2dKernels& kernels = kernels_for(type, half);
  const ConvShape shape = conv_shape(input, weight, offset, mask, stride, padding, dilation);
  // Packed weights of bfloat16 are the same for maps of either type.
  const bool rounded = type == ScalarType::BFloat16 && packed_weight && weight.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(rounded || weight.scalar_type() == type, "deform_conv2d: input and weight differ in type");
  const Tensor packed = packed_weight ? *packed_weight : pack_deform_conv2d_weight(weight, shape.groups, false);
  STD_TORCH_CHECK(packed.scalar_type() == (half ? half_factor_type() : type) && packed.is_contiguous() &&
                      packed.numel() == kernels.packed_numel(shape),
                  "deform_conv2d: packed_weight does not fit the weight");
  const Tensor dense_input = channels_last(input, type);
  const Tensor output = empty_maps(shape.images, shape.out_channels, shape.out_height, shape.out_width, type);
  DeformConv2d call{};
  call.shape = shape;
  call.input = dense_input.const_data_ptr();
  call.offset = strided_maps(offset);
  if (mask) call.mask = strided_maps(*mask);
  std::optional<Tensor> dense_bias;
  if (bias) {
    STD_TORCH_CHECK(bias->scalar_type() == weight.scalar_type() && bias->numel() == shape.out_channels,
                    "deform_conv2d: bias must have one element of the weight's type per output channel");
    dense_bias = torch::stable::contiguous(converted(*bias, computed_type(type)));
    call.bias = dense_bias->const_data_ptr();
  }
  call.packed_weight = packed.const_data_ptr();
  call.output = output.mutable_data_ptr();
  call.mask_is_logits = mask_is_logits;
  call.relu = relu;
  if (shape.images > 0) run(kernels, call);
  return output;
}

}  // namespace
}  // namespace dcnzoo::cpu

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&dcnzoo::cpu::deform_conv2d));
  m.impl("pack_deform_conv2d_weight", TORCH_BOX(&dcnzoo::cpu::pack_deform_conv2d_weight));
}

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("packed_deform_conv2d_numel", TORCH_BOX(&dcnzoo::cpu::packed_deform_conv2d_numel));
}
