// Binds the dense layers of the CPU kernels to PyTorch tensors.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "capability.h"

namespace dcnzoo::cpu {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const DenseKernels& kernels() { return capability().kernels->dense; }

void check_float32(const Tensor& tensor, const char* what) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, what, " must be float32");
}

bool is_channels_last(const Tensor& tensor) {
  const int64_t c = tensor.size(1), h = tensor.size(2), w = tensor.size(3);
  return (c == 1 || tensor.stride(1) == 1) && (w == 1 || tensor.stride(3) == c) &&
         (h == 1 || tensor.stride(2) == c * w) && (tensor.size(0) == 1 || tensor.stride(0) == c * w * h);
}

Tensor channels_last(const Tensor& tensor) {
  if (is_channels_last(tensor)) return tensor;
  return torch::stable::to(tensor, std::nullopt, std::nullopt, std::nullopt, std::nullopt, false, /*copy=*/true,
                           MemoryFormat::ChannelsLast);
}

Tensor empty_maps(int64_t n, int64_t c, int64_t h, int64_t w) {
  return torch::stable::empty({n, c, h, w}, ScalarType::Float, std::nullopt, std::nullopt, std::nullopt,
                              MemoryFormat::ChannelsLast);
}

std::optional<Tensor> dense_bias(const std::optional<Tensor>& bias, int64_t out_channels) {
  if (!bias) return std::nullopt;
  check_float32(*bias, "bias");
  STD_TORCH_CHECK(bias->numel() == out_channels, "bias must have one element per output channel");
  return torch::stable::contiguous(*bias);
}

const float* data(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }
const float* data(const std::optional<Tensor>& tensor) { return tensor ? data(*tensor) : nullptr; }

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Threads take the next task as they become free, so that a slow or busy core delays nobody.
template <class Function>
void run_tasks(int64_t tasks, size_t scratch_bytes, const Function& function) {
  const int64_t threads = torch::stable::get_num_threads();
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, tasks < threads ? tasks : threads, 1, [&](int64_t, int64_t) {
    const std::unique_ptr<void, Free> scratch(scratch_bytes == 0 ? nullptr : std::aligned_alloc(64, scratch_bytes));
    STD_TORCH_CHECK(scratch_bytes == 0 || scratch != nullptr, "out of memory");
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) function(task, scratch.get());
  });
}

Tensor pack_winograd_weight(const Tensor& weight) {
  check_float32(weight, "weight");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 && weight.numel() > 0,
                  "winograd: weight must be (out_channels, in_channels, 3, 3)");
  const int64_t out_channels = weight.size(0), in_channels = weight.size(1);
  const WinogradKernels& winograd = kernels().winograd;
  const Tensor dense = torch::stable::contiguous(weight);
  const Tensor packed =
      torch::stable::empty({winograd.packed_numel(out_channels, in_channels)}, ScalarType::Float);
  float* target = static_cast<float*>(packed.mutable_data_ptr());
  torch::stable::parallel_for(0, in_channels, 1, [&](int64_t begin, int64_t end) {
    winograd.pack(data(dense), out_channels, in_channels, target, begin, end);
  });
  return packed;
}

Tensor winograd_conv2d(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias,
                       int64_t out_channels, bool relu) {
  check_float32(input, "input");
  check_float32(packed_weight, "packed_weight");
  STD_TORCH_CHECK(input.dim() == 4 && out_channels > 0, "winograd: input must have 4 dimensions");
  const WinogradKernels& winograd = kernels().winograd;
  const int64_t channels = input.size(1);
  STD_TORCH_CHECK(channels > 0 && packed_weight.numel() == winograd.packed_numel(out_channels, channels),
                  "winograd: packed_weight does not fit the input");
  const Tensor maps = channels_last(input), weight = torch::stable::contiguous(packed_weight);
  const std::optional<Tensor> offsets = dense_bias(bias, out_channels);
  const Tensor output = empty_maps(input.size(0), out_channels, input.size(2), input.size(3));
  if (output.numel() == 0) return output;
  const Winograd call{input.size(0), input.size(2), input.size(3), channels, out_channels, data(maps),
                      data(weight), data(offsets), static_cast<float*>(output.mutable_data_ptr()), relu};
  const WinogradSchedule schedule = winograd.schedule(call, static_cast<int>(torch::stable::get_num_threads()));
  run_tasks(schedule.tasks(), schedule.scratch_bytes,
            [&](int64_t task, void* scratch) { winograd.run(call, schedule, task, scratch); });
  return output;
}

Tensor pack_linear_weight(const Tensor& weight) {
  check_float32(weight, "weight");
  STD_TORCH_CHECK(weight.dim() >= 2 && weight.numel() > 0 && weight.size(0) * weight.size(1) == weight.numel(),
                  "linear: weight must be (out_channels, in_channels), or that of a 1×1 convolution");
  const int64_t out_channels = weight.size(0), in_channels = weight.size(1);
  const LinearKernels& linear = kernels().linear;
  const Tensor dense = torch::stable::contiguous(weight);
  const Tensor packed = torch::stable::empty({linear.packed_numel(out_channels, in_channels)}, ScalarType::Float);
  float* target = static_cast<float*>(packed.mutable_data_ptr());
  torch::stable::parallel_for(0, linear.pieces(in_channels), 1, [&](int64_t begin, int64_t end) {
    linear.pack(data(dense), out_channels, in_channels, target, begin, end);
  });
  return packed;
}

// Runs a call whose `output` and `accumulate` say where the result goes.
void run_linear(Linear call, const Tensor& packed_weight, const std::optional<Tensor>& bias) {
  check_float32(packed_weight, "packed_weight");
  const LinearKernels& linear = kernels().linear;
  STD_TORCH_CHECK(packed_weight.numel() == linear.packed_numel(call.out_channels, call.in_channels),
                  "linear: packed_weight does not fit the input");
  const Tensor weight = torch::stable::contiguous(packed_weight);
  const std::optional<Tensor> offsets = dense_bias(bias, call.out_channels);
  call.packed_weight = data(weight);
  call.bias = data(offsets);
  if (call.runs * call.length == 0) return;
  const LinearSchedule schedule = linear.schedule(call, static_cast<int>(torch::stable::get_num_threads()));
  run_tasks(schedule.tasks(call), 0, [&](int64_t task, void*) { linear.run(call, schedule, task); });
}

Tensor linear(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias, int64_t out_channels,
              bool relu) {
  check_float32(input, "input");
  STD_TORCH_CHECK(input.dim() == 2 && input.size(1) > 0 && out_channels > 0, "linear: input must have 2 dimensions");
  const Tensor rows = torch::stable::contiguous(input);
  const Tensor output = torch::stable::empty({input.size(0), out_channels}, ScalarType::Float);
  Linear call{};
  call.runs = 1, call.length = input.size(0), call.row_stride = call.in_channels = input.size(1);
  call.out_channels = out_channels;
  call.input = data(rows);
  call.output = static_cast<float*>(output.mutable_data_ptr());
  call.relu = relu;
  run_linear(call, packed_weight, bias);
  return output;
}

// The rows of a 1×1 convolution: all pixels in one run, or a run per row of the output where pixels are skipped.
// A stride between images or rows that no run can express does not occur: such maps have full rows.
Linear pointwise_call(const Tensor& maps, int64_t out_channels, int64_t stride, int64_t image) {
  const int64_t c = maps.size(1), h = maps.size(2), w = maps.size(3);
  Linear call{};
  call.in_channels = c;
  call.out_channels = out_channels;
  call.row_stride = stride * c;
  if (stride == 1) {
    call.runs = 1, call.length = maps.size(0) * h * w;
  } else {
    call.runs = (h + stride - 1) / stride, call.length = (w + stride - 1) / stride;
    call.run_stride = stride * w * c;
  }
  call.input = data(maps) + image * h * w * c;
  return call;
}

void run_pointwise(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias, int64_t stride,
                   bool accumulate, bool relu, const Tensor& output) {
  const Tensor maps = channels_last(input);
  const int64_t out_channels = output.size(1), images = stride == 1 ? 1 : input.size(0);
  for (int64_t image = 0; image < images; ++image) {
    Linear call = pointwise_call(maps, out_channels, stride, image);
    call.output = static_cast<float*>(output.mutable_data_ptr()) + image * call.runs * call.length * out_channels;
    call.accumulate = accumulate;
    call.relu = relu;
    run_linear(call, packed_weight, bias);
  }
}

void check_pointwise(const Tensor& input, int64_t out_channels, int64_t stride) {
  check_float32(input, "input");
  STD_TORCH_CHECK(input.dim() == 4 && input.size(1) > 0 && out_channels > 0 && stride > 0,
                  "pointwise: input must have 4 dimensions, out_channels and stride be positive");
}

Tensor pointwise_conv2d(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias,
                        int64_t out_channels, int64_t stride, bool relu) {
  check_pointwise(input, out_channels, stride);
  const Tensor output = empty_maps(input.size(0), out_channels, (input.size(2) + stride - 1) / stride,
                                   (input.size(3) + stride - 1) / stride);
  run_pointwise(input, packed_weight, bias, stride, false, relu, output);
  return output;
}

void pointwise_conv2d_add_(const Tensor& output, const Tensor& input, const Tensor& packed_weight,
                           const std::optional<Tensor>& bias, bool relu) {
  check_float32(output, "output");
  STD_TORCH_CHECK(output.dim() == 4 && is_channels_last(output), "pointwise: output must be channels-last");
  check_pointwise(input, output.size(1), 1);
  STD_TORCH_CHECK(input.size(0) == output.size(0) && input.size(2) == output.size(2) && input.size(3) == output.size(3),
                  "pointwise: input and output differ in size");
  run_pointwise(input, packed_weight, bias, 1, true, relu, output);
}

}  // namespace
}  // namespace dcnzoo::cpu

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("pack_winograd_weight", TORCH_BOX(&dcnzoo::cpu::pack_winograd_weight));
  m.impl("winograd_conv2d", TORCH_BOX(&dcnzoo::cpu::winograd_conv2d));
  m.impl("pack_linear_weight", TORCH_BOX(&dcnzoo::cpu::pack_linear_weight));
  m.impl("linear", TORCH_BOX(&dcnzoo::cpu::linear));
  m.impl("pointwise_conv2d", TORCH_BOX(&dcnzoo::cpu::pointwise_conv2d));
  m.impl("pointwise_conv2d_add_", TORCH_BOX(&dcnzoo::cpu::pointwise_conv2d_add_));
}
