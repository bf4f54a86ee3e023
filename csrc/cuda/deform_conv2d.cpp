// Binds the deformable convolution of the CUDA kernels to PyTorch tensors.
#include <cstdlib>
#include <iterator>
#include <string>

#include "binding.h"

namespace dcnzoo::cuda {
namespace {

constexpr int64_t largest_side = int64_t{1} << 24, largest_size = INT32_MAX;  // a float tells such pixels apart

int32_t size32(int64_t size, int64_t limit, const char* name) {
  STD_TORCH_CHECK(size > 0 && size <= limit, "deform_conv2d: ", name, " is empty or too large");
  return static_cast<int32_t>(size);
}

int32_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  STD_TORCH_CHECK(stride > 0 && dilation > 0 && pad >= 0, "deform_conv2d: stride and dilation must be positive");
  const int64_t room = size + 2 * pad - dilation * (kernel - 1) - 1;
  STD_TORCH_CHECK(room >= 0, "deform_conv2d: the kernel is larger than the padded input");
  return size32(room / stride + 1, largest_side, "the output");
}

ConvShape conv_shape(const Tensor& input, const Tensor& weight, const Tensor& offset,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(input.dim() == 4 && offset.dim() == 4 && weight.dim() == 4,
                  "deform_conv2d: input, offset and weight must have 4 dimensions");
  STD_TORCH_CHECK(weight.size(1) > 0 && input.size(1) > 0 && input.size(1) % weight.size(1) == 0,
                  "deform_conv2d: weight does not divide the input channels into groups");
  ConvShape shape{};
  shape.images = input.size(0);
  shape.channels = size32(input.size(1), largest_size, "input");
  shape.height = size32(input.size(2), largest_side, "input");
  shape.width = size32(input.size(3), largest_side, "input");
  shape.out_channels = size32(weight.size(0), largest_size, "weight");
  shape.kernel_h = size32(weight.size(2), largest_side, "weight");
  shape.kernel_w = size32(weight.size(3), largest_side, "weight");
  shape.groups = static_cast<int32_t>(input.size(1) / weight.size(1));
  STD_TORCH_CHECK(shape.out_channels % shape.groups == 0, "deform_conv2d: groups must divide the output channels");
  shape.stride_h = size32(stride.at(0), largest_side, "stride"), shape.stride_w = size32(stride.at(1), largest_side, "stride");
  shape.dilation_h = size32(dilation.at(0), largest_side, "dilation");
  shape.dilation_w = size32(dilation.at(1), largest_side, "dilation");
  shape.pad_h = static_cast<int32_t>(padding.at(0)), shape.pad_w = static_cast<int32_t>(padding.at(1));
  shape.out_height = output_size(shape.height, shape.kernel_h, shape.stride_h, padding.at(0), shape.dilation_h);
  shape.out_width = output_size(shape.width, shape.kernel_w, shape.stride_w, padding.at(1), shape.dilation_w);
  const int64_t per_group = 2 * static_cast<int64_t>(shape.kernel_h) * shape.kernel_w;
  shape.deform_groups = static_cast<int32_t>(offset.size(1) / per_group);
  STD_TORCH_CHECK(shape.deform_groups > 0 && shape.channels % shape.deform_groups == 0 &&
                      offset.size(1) == per_group * shape.deform_groups && offset.size(0) == shape.images &&
                      offset.size(2) == shape.out_height && offset.size(3) == shape.out_width,
                  "deform_conv2d: offset does not fit");
  return shape;
}

// Tensors that a call points into.
struct Operands {
  Tensor input, weight;
  std::optional<Tensor> bias;
};

StridedMaps mask_maps(const std::optional<Tensor>& mask, const ConvShape& shape, const Device& device) {
  if (!mask) return {};
  device.check(*mask, "deform_conv2d: mask");
  STD_TORCH_CHECK(mask->dim() == 4 && mask->size(0) == shape.images &&
                      mask->size(1) == static_cast<int64_t>(shape.deform_groups) * shape.taps() &&
                      mask->size(2) == shape.out_height && mask->size(3) == shape.out_width,
                  "deform_conv2d: mask does not fit");
  return strided_maps(*mask, "deform_conv2d: mask");
}

Operands operands(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                  const ConvShape& shape, const Device& device) {
  device.check(weight, "deform_conv2d: weight");
  STD_TORCH_CHECK(weight.scalar_type() == input.scalar_type(), "deform_conv2d: input and weight differ in type");
  Operands found{channels_last(input), channels_last(weight), std::nullopt};
  if (bias) {
    device.check(*bias, "deform_conv2d: bias");
    STD_TORCH_CHECK(bias->scalar_type() == input.scalar_type() && bias->numel() == shape.out_channels,
                    "deform_conv2d: bias must have one element of the input's type per output channel");
    found.bias = torch::stable::contiguous(*bias);
  }
  return found;
}

// "mma_128x128/2" is that kernel with the reduction in 2 parts: see `Kernel`. Without a number, any.
Choice parse_choice(const std::string& text) {
  constexpr const char* names[] = {"simt",        "grouped",      "mma_64x128",   "mma_128x64",    "mma_128x128",
                                   "mma_128x256", "wgmma_64x128", "wgmma_64x256", "wgmma_128x128", "wgmma_128x256"};
  const size_t slash = text.find('/');
  const std::string name = text.substr(0, slash);
  for (int32_t i = 0; i < static_cast<int32_t>(std::size(names)); ++i) {
    if (name == names[i]) return {static_cast<Kernel>(i), slash == std::string::npos ? 0 : std::atoi(&text[slash + 1])};
  }
  STD_TORCH_CHECK(false, "deform_conv2d: there is no kernel ", name);
}

// What DCNZOO_CUDA_KERNEL asks for, for measurements.
std::optional<Choice> forced_choice() {
  const char* setting = std::getenv("DCNZOO_CUDA_KERNEL");
  if (setting == nullptr || *setting == '\0') return std::nullopt;
  return parse_choice(setting);
}

// DCNZOO_CUDA_WGMMA=1 lets the estimates choose kernels that have not run on a GPU yet.
Gpu gpu_to_plan_for(const Device& device) {
  Gpu gpu = device.gpu();
  const char* setting = std::getenv("DCNZOO_CUDA_WGMMA");
  gpu.try_wgmma = setting != nullptr && std::string(setting) == "1";
  return gpu;
}

Tensor convolve(const Tensor& input, const Tensor& weight, const Tensor& offset, const std::optional<Tensor>& mask,
                const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
                const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, bool mask_is_logits,
                bool relu, bool allow_tf32, const std::optional<Choice>& forced) {
  const Device device(input);
  const ConvShape shape = conv_shape(input, weight, offset, stride, padding, dilation);
  device.check(offset, "deform_conv2d: offset");
  const Operands tensors = operands(input, weight, bias, shape, device);
  const Tensor output = empty_maps({shape.images, shape.out_channels, shape.out_height, shape.out_width}, input);
  DeformConv2d call{};
  call.shape = shape;
  call.element = element_of(input, "deform_conv2d: input");
  call.offset = strided_maps(offset, "deform_conv2d: offset");
  call.mask = mask_maps(mask, shape, device);
  if (shape.images == 0) return output;
  call.input = tensors.input.const_data_ptr();
  call.weight = tensors.weight.const_data_ptr();
  call.bias = tensors.bias ? tensors.bias->const_data_ptr() : nullptr;
  call.output = output.mutable_data_ptr();
  call.mask_is_logits = mask_is_logits;
  call.relu = relu;
  const Gpu gpu = gpu_to_plan_for(device);
  const Plan plan = plan_deform_conv2d(shape, call.element, allow_tf32, gpu, forced ? &*forced : nullptr);
  STD_TORCH_CHECK(!forced || plan.kernel == forced->kernel, "deform_conv2d: the kernel that was named cannot compute this");
  std::optional<Tensor> partial;
  if (plan.tiling.splits > 1) {
    partial = torch::stable::empty({plan.tiling.splits, shape.pixels(), shape.out_channels}, ScalarType::Float,
                                   std::nullopt, input.device());
    call.partial = static_cast<float*>(partial->mutable_data_ptr());
  }
  check_cuda(run_deform_conv2d(call, plan, gpu, device.stream()));
  return output;
}

// Columns of a call, and tensors that it points into; `pixels` output pixels from `first_pixel` on.
struct Columns {
  Device device;
  Tensor input;
  DeformConv2dColumns work{};

  Columns(const Tensor& given_input, const Tensor& weight, const Tensor& offset, const std::optional<Tensor>& mask,
          const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
          const std::vector<int64_t>& dilation, bool mask_is_logits, int64_t first_pixel, int64_t pixels)
      : device(given_input), input(channels_last(given_input)) {
    const ConvShape shape = conv_shape(input, weight, offset, stride, padding, dilation);
    device.check(offset, "deform_conv2d: offset");
    STD_TORCH_CHECK(first_pixel >= 0 && pixels >= 0 && pixels <= shape.pixels() - first_pixel,
                    "deform_conv2d: there are no such pixels");
    work.call.shape = shape;
    work.call.element = element_of(input, "deform_conv2d: input");
    work.call.input = input.const_data_ptr();
    work.call.offset = strided_maps(offset, "deform_conv2d: offset");
    work.call.mask = mask_maps(mask, shape, device);
    work.call.mask_is_logits = mask_is_logits;
    work.first_pixel = first_pixel, work.pixels = pixels;
  }

  std::vector<int64_t> size() const {
    const ConvShape& shape = work.call.shape;
    return {shape.groups, work.pixels, static_cast<int64_t>(shape.taps()) * shape.group_channels()};
  }
};

Tensor deform_conv2d_columns(const Tensor& input, const Tensor& weight, const Tensor& offset,
                             const std::optional<Tensor>& mask, const std::vector<int64_t>& stride,
                             const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                             bool mask_is_logits, int64_t first_pixel, int64_t pixels) {
  Columns call(input, weight, offset, mask, stride, padding, dilation, mask_is_logits, first_pixel, pixels);
  const Tensor columns = torch::stable::empty(call.size(), input.scalar_type(), std::nullopt, input.device());
  call.work.columns = columns.mutable_data_ptr();
  if (pixels > 0) check_cuda(sample_columns(call.work, call.device.stream()));
  return columns;
}

// Memory for a gradient of `like`, which is on the same GPU.
void* grad_data(const Tensor& grad, const Tensor& like, ScalarType type, const Device& device) {
  device.check(grad, "deform_conv2d: a gradient");
  bool fits = grad.dim() == like.dim() && grad.scalar_type() == type;
  for (int64_t i = 0; fits && i < like.dim(); ++i) fits = grad.size(i) == like.size(i);
  STD_TORCH_CHECK(fits, "deform_conv2d: a gradient does not fit");
  return grad.mutable_data_ptr();
}

void deform_conv2d_scatter_(const Tensor& grad_input, const Tensor& grad_offset, const std::optional<Tensor>& grad_mask,
                            const Tensor& columns, const Tensor& input, const Tensor& weight, const Tensor& offset,
                            const std::optional<Tensor>& mask, const std::vector<int64_t>& stride,
                            const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                            bool mask_is_logits, int64_t first_pixel) {
  STD_TORCH_CHECK(columns.dim() == 3 && columns.scalar_type() == input.scalar_type() && columns.is_contiguous(),
                  "deform_conv2d: columns must be contiguous, 3-dimensional and of the type of the input");
  Columns call(input, weight, offset, mask, stride, padding, dilation, mask_is_logits, first_pixel, columns.size(1));
  const bool is_double = call.work.call.element == Element::float64;
  STD_TORCH_CHECK(is_channels_last(grad_input) && grad_offset.is_contiguous() && grad_mask.has_value() == mask.has_value() &&
                      (!mask || grad_mask->is_contiguous()) && columns.size(0) == call.size()[0] &&
                      columns.size(2) == call.size()[2],
                  "deform_conv2d: gradients or columns do not fit");
  call.device.check(columns, "deform_conv2d: columns");
  call.work.columns = const_cast<void*>(columns.const_data_ptr());
  call.work.grad_input = grad_data(grad_input, input, is_double ? ScalarType::Double : ScalarType::Float, call.device);
  call.work.grad_offset = grad_data(grad_offset, offset, offset.scalar_type(), call.device);
  if (mask) call.work.grad_mask = grad_data(*grad_mask, *mask, mask->scalar_type(), call.device);
  if (call.work.pixels > 0) check_cuda(scatter_columns(call.work, call.device.stream()));
}

void refuse_packed(const std::optional<Tensor>& packed_weight) {
  STD_TORCH_CHECK(!packed_weight, "deform_conv2d: a GPU reads the weight as it is, without packing");
}

Tensor deform_conv2d(const Tensor& input, const Tensor& weight, const Tensor& offset, const std::optional<Tensor>& mask,
                     const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
                     const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                     const std::optional<Tensor>& packed_weight, bool mask_is_logits, bool relu) {
  refuse_packed(packed_weight);
  return convolve(input, weight, offset, mask, bias, stride, padding, dilation, mask_is_logits, relu, false,
                  forced_choice());
}

Tensor deform_conv2d_tf32(const Tensor& input, const Tensor& weight, const Tensor& offset,
                          const std::optional<Tensor>& mask, const std::optional<Tensor>& bias,
                          const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                          const std::vector<int64_t>& dilation, const std::optional<Tensor>& packed_weight,
                          bool mask_is_logits, bool relu) {
  refuse_packed(packed_weight);
  return convolve(input, weight, offset, mask, bias, stride, padding, dilation, mask_is_logits, relu, true,
                  forced_choice());
}

Tensor deform_conv2d_by_kernel(const Tensor& input, const Tensor& weight, const Tensor& offset,
                               const std::optional<Tensor>& mask, const std::optional<Tensor>& bias,
                               const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                               const std::vector<int64_t>& dilation, bool mask_is_logits, bool relu, bool tf32,
                               const std::string& kernel) {
  return convolve(input, weight, offset, mask, bias, stride, padding, dilation, mask_is_logits, relu, tf32,
                  parse_choice(kernel));
}

// What a call would be computed with: number of the kernel, splits and estimated cycles, in float64 on the CPU.
Tensor deform_conv2d_plan(const Tensor& input, const Tensor& weight, const Tensor& offset,
                          const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                          const std::vector<int64_t>& dilation, bool tf32, const std::string& kernel) {
  const Device device(input);
  std::optional<Choice> forced;
  if (!kernel.empty()) forced = parse_choice(kernel);
  const Plan plan = plan_deform_conv2d(conv_shape(input, weight, offset, stride, padding, dilation),
                                       element_of(input, "deform_conv2d: input"), tf32, gpu_to_plan_for(device),
                                       forced ? &*forced : nullptr);
  const Tensor found = torch::stable::empty({3}, ScalarType::Double, std::nullopt, torch::stable::Device(torch::headeronly::DeviceType::CPU));
  double* numbers = static_cast<double*>(found.mutable_data_ptr());
  numbers[0] = static_cast<double>(plan.kernel), numbers[1] = plan.tiling.splits, numbers[2] = plan.cycles;
  return found;
}

}  // namespace
}  // namespace dcnzoo::cuda

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) {
  m.impl("deform_conv2d", TORCH_BOX(&dcnzoo::cuda::deform_conv2d));
  m.impl("deform_conv2d_tf32", TORCH_BOX(&dcnzoo::cuda::deform_conv2d_tf32));
  m.impl("deform_conv2d_by_kernel", TORCH_BOX(&dcnzoo::cuda::deform_conv2d_by_kernel));
  m.impl("deform_conv2d_plan", TORCH_BOX(&dcnzoo::cuda::deform_conv2d_plan));
  m.impl("deform_conv2d_columns", TORCH_BOX(&dcnzoo::cuda::deform_conv2d_columns));
  m.impl("deform_conv2d_scatter_", TORCH_BOX(&dcnzoo::cuda::deform_conv2d_scatter_));
}
