// Binds the dense layers of the CPU kernels to PyTorch tensors.
#include <algorithm>
#include <cstring>

#include "binding.h"

namespace dcnzoo::cpu {
namespace {

const DenseKernels& dense_kernels(bool half) { return half ? half_kernels().dense : capability().kernels->dense; }

ScalarType packed_type(bool half) { return half ? half_factor_type() : ScalarType::Float; }

bool is_half(const Tensor& tensor) { return tensor.scalar_type() != ScalarType::Float; }

ScalarType output_type(const Tensor& packed_weight, bool half) {
  STD_TORCH_CHECK(!half || is_half(packed_weight), "16-bit output needs a packed weight of 16 bits");
  return half ? packed_weight.scalar_type() : ScalarType::Float;
}

const float* data(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }
float* mutable_data(const Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

void check_float32(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, name, " must be float32");
}

// Float32, or of the packed weight's 16-bit type.
void check_type(const Tensor& input, const Tensor& packed_weight) {
  STD_TORCH_CHECK(!is_half(input) || input.scalar_type() == packed_weight.scalar_type(),
                  "input must be float32 or of packed_weight's type");
}

void check_maps(const Tensor& input, int64_t out_channels) {
  STD_TORCH_CHECK(input.dim() == 4 && input.size(1) > 0, "input must have 4 dimensions");
  STD_TORCH_CHECK(out_channels > 0, "out_channels must be positive");
}

// The weight and bias of a layer, checked and dense.
struct Parameters {
  Tensor packed_weight;
  std::optional<Tensor> bias;

  Parameters(const Tensor& packed, int64_t numel, const std::optional<Tensor>& given_bias, int64_t out_channels)
      : packed_weight(packed) {
    STD_TORCH_CHECK(packed.scalar_type() == packed_type(is_half(packed)), "packed_weight is not of a type that these kernels multiply");
    STD_TORCH_CHECK(packed.numel() == numel, "packed_weight does not fit the input and out_channels");
    packed_weight = torch::stable::contiguous(packed);
    if (!given_bias) return;
    check_float32(*given_bias, "bias");
    STD_TORCH_CHECK(given_bias->numel() == out_channels, "bias must have one element per output channel");
    bias = torch::stable::contiguous(*given_bias);
  }

  const DenseKernels& kernels() const { return dense_kernels(is_half(packed_weight)); }
  // From element `offset` on.
  const void* weight_data(int64_t offset = 0) const {
    return static_cast<const char*>(packed_weight.const_data_ptr()) + offset * packed_weight.element_size();
  }
  const float* bias_data() const { return bias ? data(*bias) : nullptr; }
};

Tensor pack_winograd_weight(const WinogradKernels& kernels, const Tensor& weight, bool half) {
  check_float32(weight, "weight");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 && weight.numel() > 0,
                  "weight must be (out_channels, in_channels, 3, 3)");
  const int64_t out_channels = weight.size(0), in_channels = weight.size(1);
  const Tensor dense = torch::stable::contiguous(weight);
  const Tensor packed = torch::stable::empty({kernels.packed_numel(out_channels, in_channels)}, packed_type(half));
  torch::stable::parallel_for(0, in_channels, 1, [&](int64_t begin, int64_t end) {
    kernels.pack(data(dense), out_channels, in_channels, packed.mutable_data_ptr(), begin, end);
  });
  return packed;
}

// A 1×1 convolution that follows another one: few channels, so that its products need no memory of their own.
struct PointConvolution {
  static constexpr int64_t most_channels = 64;

  int64_t channels;
  Parameters parameters;

  PointConvolution(const Tensor& packed_weight, const std::optional<Tensor>& bias, int64_t in_channels, int64_t out_channels)
      : channels(out_channels),
        parameters(packed_weight, dense_kernels(false).linear.packed_numel(out_channels, in_channels), bias, out_channels) {
    check_float32(packed_weight, "packed_point_weight");
    STD_TORCH_CHECK(channels > 0 && channels <= most_channels, "out_channels must be 1 to ", most_channels);
  }
};

Tensor run_winograd(const WinogradKernels& kernels, const Tensor& input, const Tensor& packed_weight,
                    const std::optional<Tensor>& bias, int64_t out_channels, bool relu, bool half_output = false,
                    const PointConvolution* point = nullptr) {
  check_maps(input, out_channels);
  check_type(input, packed_weight);
  const int64_t in_channels = input.size(1);
  const Parameters parameters(packed_weight, kernels.packed_numel(out_channels, in_channels), bias, out_channels);
  const Tensor maps = channels_last(input, input.scalar_type());
  const Tensor output = empty_maps(input.size(0), point == nullptr ? out_channels : point->channels, input.size(2),
                                   input.size(3), output_type(packed_weight, half_output));
  if (output.numel() == 0) return output;
  Winograd call{};
  call.images = input.size(0), call.height = input.size(2), call.width = input.size(3);
  call.in_channels = in_channels, call.out_channels = out_channels;
  call.input = maps.const_data_ptr();
  call.packed_weight = parameters.weight_data();
  call.bias = parameters.bias_data();
  call.output = output.mutable_data_ptr();
  call.half_input = is_half(maps), call.half_output = half_output;
  call.relu = relu;
  if (point != nullptr) {
    call.point_weight = point->parameters.weight_data();
    call.point_bias = point->parameters.bias_data();
    call.point_channels = point->channels;
  }
  const WinogradSchedule schedule = kernels.schedule(call, static_cast<int>(torch::stable::get_num_threads()));
  run_tasks(schedule.tasks(), schedule.scratch_bytes,
            [&](int64_t task, void* scratch) { kernels.run(call, schedule, task, scratch); });
  return output;
}

int64_t packed_conv3x3_numel(int64_t out_channels, int64_t in_channels, bool half) {
  return dense_kernels(half).winograd.packed_numel(out_channels, in_channels);
}

Tensor pack_conv3x3_weight(const Tensor& weight, bool half) {
  return pack_winograd_weight(dense_kernels(half).winograd, weight, half);
}

Tensor conv3x3(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias,
               int64_t out_channels, bool relu, bool half_output) {
  return run_winograd(dense_kernels(is_half(packed_weight)).winograd, input, packed_weight, bias, out_channels, relu, half_output);
}

Tensor conv3x3_conv1x1(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias,
                       int64_t channels, const Tensor& packed_point_weight, const std::optional<Tensor>& point_bias,
                       int64_t out_channels) {
  STD_TORCH_CHECK(channels > 0, "channels must be positive");
  const PointConvolution point(packed_point_weight, point_bias, channels, out_channels);
  return run_winograd(dense_kernels(is_half(packed_weight)).winograd, input, packed_weight, bias, channels, true, false, &point);
}

int64_t packed_small_conv3x3_numel(int64_t out_channels, int64_t in_channels, bool half) {
  return dense_kernels(half).small_winograd.packed_numel(out_channels, in_channels);
}

Tensor pack_small_conv3x3_weight(const Tensor& weight, bool half) {
  return pack_winograd_weight(dense_kernels(half).small_winograd, weight, half);
}

Tensor small_conv3x3(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias,
                     int64_t out_channels, bool relu) {
  return run_winograd(dense_kernels(is_half(packed_weight)).small_winograd, input, packed_weight, bias, out_channels, relu);
}

int64_t packed_linear_numel(int64_t out_channels, int64_t in_channels, bool half) {
  return dense_kernels(half).linear.packed_numel(out_channels, in_channels);
}

Tensor pack_linear_weight(const Tensor& weight, bool half) {
  const LinearKernels& kernels = dense_kernels(half).linear;
  check_float32(weight, "weight");
  STD_TORCH_CHECK(weight.dim() >= 2 && weight.numel() > 0 && weight.size(0) * weight.size(1) == weight.numel(),
                  "weight must be (out_channels, in_channels), or that of a 1×1 convolution");
  const int64_t out_channels = weight.size(0), in_channels = weight.size(1);
  const Tensor dense = torch::stable::contiguous(weight);
  const Tensor packed = torch::stable::empty({kernels.packed_numel(out_channels, in_channels)}, packed_type(half));
  torch::stable::parallel_for(0, kernels.pieces(out_channels, in_channels), 1, [&](int64_t begin, int64_t end) {
    kernels.pack(data(dense), out_channels, in_channels, packed.mutable_data_ptr(), begin, end);
  });
  return packed;
}

// A call over rows that follow each other in input and output.
Linear linear_call(const void* input, int64_t rows, int64_t in_channels, void* output, int64_t out_channels) {
  Linear call{};
  call.runs = 1, call.length = rows;
  call.row_stride = call.in_channels = in_channels;
  call.run_stride = rows * in_channels;
  call.output_run_stride = rows * out_channels;
  call.out_channels = out_channels;
  call.input = input, call.output = output;
  return call;
}

// With those that follow it.
void run_calls(const Linear& call, const LinearKernels& kernels) {
  if (call.runs * call.length == 0) return;
  const LinearSchedule schedule = kernels.schedule(call, static_cast<int>(torch::stable::get_num_threads()));
  run_tasks(schedule.tasks(), schedule.scratch_bytes,
            [&](int64_t task, void* scratch) { kernels.run(call, schedule, task, scratch); });
}

void set_parameters(const Parameters& parameters, bool relu, Linear& call, int64_t offset = 0) {
  call.packed_weight = parameters.weight_data(offset), call.bias = parameters.bias_data(), call.relu = relu;
}

void run_linear(Linear call, const Parameters& parameters, bool relu, int64_t offset = 0) {
  set_parameters(parameters, relu, call, offset);
  run_calls(call, parameters.kernels().linear);
}

Tensor linear(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias,
              int64_t out_channels, bool relu) {
  check_type(input, packed_weight);
  STD_TORCH_CHECK(input.dim() == 2 && input.size(1) > 0, "input must have 2 dimensions");
  STD_TORCH_CHECK(out_channels > 0, "out_channels must be positive");
  const int64_t rows = input.size(0), in_channels = input.size(1);
  const Parameters parameters(packed_weight, packed_linear_numel(out_channels, in_channels, is_half(packed_weight)), bias, out_channels);
  const Tensor dense = torch::stable::contiguous(input);
  const Tensor output = empty_matrix(rows, out_channels, ScalarType::Float);
  Linear call = linear_call(dense.const_data_ptr(), rows, in_channels, output.mutable_data_ptr(), out_channels);
  call.half_input = is_half(dense);
  run_linear(call, parameters, relu);
  return output;
}

// Every pixel of every image: a run per image.
Linear images_call(const Tensor& maps, const Tensor& output) {
  Linear call = linear_call(maps.const_data_ptr(), maps.size(2) * maps.size(3), maps.size(1), output.mutable_data_ptr(), output.size(1));
  call.runs = maps.size(0);
  call.half_input = is_half(maps), call.half_output = is_half(output);
  return call;
}

// Every `stride`-th pixel of every `stride`-th row of one image: a run per row of the output.
Linear strided_call(const Tensor& maps, int64_t image, int64_t stride, const Tensor& output) {
  const int64_t c = maps.size(1), w = maps.size(3), image_numel = c * maps.size(2) * w;
  const int64_t out_channels = output.size(1), out_h = output.size(2), out_w = output.size(3);
  Linear call = linear_call(data(maps) + image * image_numel, out_w, c,
                            mutable_data(output) + image * out_channels * out_h * out_w, out_channels);
  call.runs = out_h;
  call.row_stride = stride * c;
  call.run_stride = stride * w * c;
  return call;
}

Tensor conv1x1(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias,
               int64_t out_channels, int64_t stride, bool relu, bool half_output) {
  check_maps(input, out_channels);
  check_type(input, packed_weight);
  STD_TORCH_CHECK(stride > 0, "stride must be positive");
  STD_TORCH_CHECK(stride == 1 || !(half_output || is_half(input)), "with a stride input and output are float32");
  const int64_t n = input.size(0), c = input.size(1), h = input.size(2), w = input.size(3);
  const Parameters parameters(packed_weight, packed_linear_numel(out_channels, c, is_half(packed_weight)), bias, out_channels);
  const Tensor maps = channels_last(input, input.scalar_type());
  const Tensor output = empty_maps(n, out_channels, (h + stride - 1) / stride, (w + stride - 1) / stride,
                                   output_type(packed_weight, half_output));
  if (stride == 1) {
    run_linear(images_call(maps, output), parameters, relu);
    return output;
  }
  for (int64_t image = 0; image < n; ++image) {
    run_linear(strided_call(maps, image, stride, output), parameters, relu);
  }
  return output;
}

// A sum with what `output` holds.
struct Sum {
  Parameters parameters;
  Tensor maps;
  Linear call;

  Sum(const Tensor& output, const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias, bool relu)
      : parameters(packed_weight, checked_numel(output, input, packed_weight), bias, output.size(1)),
        maps(channels_last(input, input.scalar_type())),
        call(images_call(maps, output)) {
    const auto begin = [](const Tensor& tensor) { return static_cast<const char*>(tensor.const_data_ptr()); };
    const auto bytes = [](const Tensor& tensor) { return tensor.numel() * static_cast<int64_t>(tensor.element_size()); };
    STD_TORCH_CHECK(begin(maps) + bytes(maps) <= begin(output) || begin(output) + bytes(output) <= begin(maps),
                    "input and output overlap");
    call.accumulate = true;
    set_parameters(parameters, relu, call);
  }

 private:
  static int64_t checked_numel(const Tensor& output, const Tensor& input, const Tensor& packed_weight) {
    check_float32(output, "output");
    check_maps(output, 1);
    check_maps(input, output.size(1));
    check_type(input, packed_weight);
    STD_TORCH_CHECK(is_channels_last(output), "output must be channels-last");
    STD_TORCH_CHECK(input.size(0) == output.size(0) && input.size(2) == output.size(2) && input.size(3) == output.size(3),
                    "input and output differ in size");
    return packed_linear_numel(output.size(1), input.size(1), is_half(packed_weight));
  }
};

void conv1x1_add_(const Tensor& output, const Tensor& input, const Tensor& packed_weight,
                  const std::optional<Tensor>& bias, bool relu) {
  const Sum sum(output, input, packed_weight, bias, relu);
  run_calls(sum.call, sum.parameters.kernels().linear);
}

Tensor conv1x1_add_conv1x1_(const Tensor& output, const Tensor& input, const Tensor& packed_weight,
                            const std::optional<Tensor>& bias, const Tensor& packed_next_weight,
                            const std::optional<Tensor>& next_bias, int64_t next_channels, bool half_result) {
  Sum sum(output, input, packed_weight, bias, true);
  STD_TORCH_CHECK(next_channels > 0, "next_channels must be positive");
  const bool half = is_half(packed_weight);
  STD_TORCH_CHECK(is_half(packed_next_weight) == half, "both packed weights must be of one type");
  const Parameters parameters(packed_next_weight, packed_linear_numel(next_channels, output.size(1), half), next_bias,
                              next_channels);
  const Tensor result = empty_maps(output.size(0), next_channels, output.size(2), output.size(3),
                                   output_type(packed_next_weight, half_result));
  Linear next = images_call(output, result);
  set_parameters(parameters, true, next);
  sum.call.next = &next;
  run_calls(sum.call, sum.parameters.kernels().linear);
  return result;
}

// A pixel of the input becomes 2×2 of the output: two pixels of an even row, two of an odd one. Either
// pair is a row of a matrix product with 2 · out_channels columns.
Tensor conv_transpose2x2(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias,
                         int64_t out_channels, bool relu) {
  check_float32(input, "input");
  check_maps(input, out_channels);
  const int64_t n = input.size(0), c = input.size(1), h = input.size(2), w = input.size(3), columns = 2 * out_channels;
  const int64_t numel = packed_linear_numel(columns, c, is_half(packed_weight));
  const Parameters parameters(packed_weight, 2 * numel, bias, columns);
  const Tensor maps = channels_last(input, ScalarType::Float);
  const Tensor output = empty_maps(n, out_channels, 2 * h, 2 * w, ScalarType::Float);
  for (int64_t i = 0; i < 2; ++i) {
    Linear call = linear_call(data(maps), w, c, mutable_data(output) + i * w * columns, columns);
    call.runs = n * h;
    call.output_run_stride = 2 * w * columns;
    run_linear(call, parameters, relu, i * numel);
  }
  return output;
}

Tensor class_mask_logits(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias,
                         const Tensor& class_weight, const std::optional<Tensor>& class_bias, const Tensor& labels) {
  check_float32(input, "input");
  check_float32(class_weight, "class_weight");
  STD_TORCH_CHECK(class_weight.dim() == 2 && class_weight.numel() > 0, "class_weight must be (classes, channels)");
  const int64_t classes = class_weight.size(0), channels = class_weight.size(1);
  check_maps(input, channels);
  const int64_t n = input.size(0), c = input.size(1), h = input.size(2), w = input.size(3);
  const Parameters parameters(packed_weight, 2 * packed_linear_numel(2 * channels, c, is_half(packed_weight)), bias, 2 * channels);
  const Parameters last(class_weight, classes * channels, class_bias, classes);
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long && labels.dim() == 1 && labels.size(0) == n,
                  "labels must be one int64 per RoI");
  const Tensor maps = channels_last(input, ScalarType::Float), dense_labels = torch::stable::contiguous(labels);
  const auto* label = static_cast<const int64_t*>(dense_labels.const_data_ptr());
  for (int64_t i = 0; i < n; ++i) STD_TORCH_CHECK(label[i] >= 0 && label[i] < classes, "a label is no class");
  const Tensor output = torch::stable::empty({n, 2 * h, 2 * w}, ScalarType::Float);
  if (output.numel() == 0) return output;
  MaskLogits call{};
  call.rois = n, call.height = h, call.width = w, call.in_channels = c, call.channels = channels;
  call.input = data(maps);
  call.packed_weight = parameters.weight_data(), call.bias = parameters.bias_data();
  call.class_weight = static_cast<const float*>(last.weight_data()), call.class_bias = last.bias_data();
  call.labels = label;
  call.output = mutable_data(output);
  const MaskLogitsKernels& kernels = parameters.kernels().mask_logits;
  run_tasks(kernels.tasks(call), kernels.scratch_bytes(call),
            [&](int64_t task, void* scratch) { kernels.run(call, task, scratch); });
  return output;
}

// `conv1x1` and each pixel of `coarse` added to the 2×2 that it covers. Some pixels of a row of `coarse` at a time: what they
// cover is still in the cache when the products are added to it. A task is a row of `coarse`.
Tensor conv1x1_add_upsampled(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias,
                             const Tensor& coarse) {
  constexpr int64_t most_pixels = 40;
  check_float32(coarse, "coarse");
  check_float32(input, "input");
  check_maps(coarse, 1);
  const int64_t n = coarse.size(0), channels = coarse.size(1), h = coarse.size(2), w = coarse.size(3);
  check_maps(input, channels);
  const int64_t c = input.size(1);
  STD_TORCH_CHECK(input.size(0) == n && input.size(2) == 2 * h && input.size(3) == 2 * w, "coarse is not of half the size of input");
  const Parameters parameters(packed_weight, packed_linear_numel(channels, c, is_half(packed_weight)), bias, channels);
  const LinearKernels& kernels = parameters.kernels().linear;
  const Tensor maps = channels_last(input, ScalarType::Float), coarse_maps = channels_last(coarse, ScalarType::Float);
  const Tensor output = empty_maps(n, channels, 2 * h, 2 * w, ScalarType::Float);
  if (output.numel() == 0) return output;
  const int64_t parts = (w + most_pixels - 1) / most_pixels;
  // Parts differ by a pixel, and the shorter one may be the one that is not cut into blocks.
  const auto scratch_bytes = [&](int64_t pixels) {
    return kernels.schedule(linear_call(nullptr, 2 * pixels, c, nullptr, channels), 1).scratch_bytes;
  };
  const size_t most_bytes = std::max(scratch_bytes(w / parts), scratch_bytes((w + parts - 1) / parts));
  run_tasks(n * h, most_bytes, [&](int64_t row, void* scratch) {
    const float* source = data(coarse_maps) + row * w * channels;
    for (int64_t part = 0; part < 2 * parts; ++part) {
      const int64_t y = 2 * row + part % 2, begin = w * (part / 2) / parts, end = w * (part / 2 + 1) / parts;
      const int64_t pixel = y * 2 * w + 2 * begin;
      float* target = mutable_data(output) + pixel * channels;
      for (int64_t x = 2 * begin; x < 2 * end; ++x)
        std::memcpy(target + (x - 2 * begin) * channels, source + x / 2 * channels, channels * sizeof(float));
      Linear call = linear_call(data(maps) + pixel * c, 2 * (end - begin), c, target, channels);
      call.accumulate = true;
      set_parameters(parameters, false, call);
      kernels.run(call, LinearSchedule{1, 1, 0}, 0, scratch);
    }
  });
  return output;
}

// Its weight is packed as those of nine linear layers.
Tensor strided_conv3x3(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias, int64_t out_channels) {
  check_maps(input, out_channels);
  STD_TORCH_CHECK(input.scalar_type() == packed_weight.scalar_type(), "input must be of packed_weight's type");
  const int64_t n = input.size(0), c = input.size(1), h = input.size(2), w = input.size(3);
  STD_TORCH_CHECK(h > 0 && w > 0, "input is empty");
  const Parameters parameters(packed_weight, 9 * packed_linear_numel(out_channels, c, is_half(packed_weight)), bias, out_channels);
  const Tensor maps = channels_last(input, input.scalar_type());
  const Tensor output = empty_maps(n, out_channels, strided_conv_size(h), strided_conv_size(w), ScalarType::Float);
  StridedConv call{};
  call.images = n, call.height = h, call.width = w, call.in_channels = c, call.out_channels = out_channels;
  call.input = maps.const_data_ptr();
  call.packed_weight = parameters.weight_data(), call.bias = parameters.bias_data();
  call.output = mutable_data(output);
  const StridedConvKernels& kernels = parameters.kernels().strided;
  run_tasks(n * strided_conv_size(h), kernels.scratch_bytes(call),
            [&](int64_t task, void* scratch) { kernels.run(call, task, scratch); });
  return output;
}

Tensor pack_grouped_conv3x3_weight(const Tensor& weight) {
  const GroupedConvKernels& kernels = capability().kernels->grouped;
  check_float32(weight, "weight");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == 4 && weight.size(2) == 3 && weight.size(3) == 3 && weight.numel() > 0,
                  "weight must be (channels, 4, 3, 3)");
  const int64_t channels = weight.size(0);
  STD_TORCH_CHECK(channels % kernels.channel_multiple == 0, "channels must be a multiple of ", kernels.channel_multiple);
  const Tensor dense = torch::stable::contiguous(weight);
  const Tensor packed = torch::stable::empty({kernels.packed_numel(channels)}, ScalarType::Float);
  kernels.pack(data(dense), channels, mutable_data(packed));
  return packed;
}

Tensor grouped_conv3x3(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias, bool relu,
                       bool half_output) {
  const GroupedConvKernels& kernels = capability().kernels->grouped;
  check_maps(input, input.dim() < 2 ? 1 : input.size(1));
  STD_TORCH_CHECK(!is_half(input) || input.scalar_type() == half_factor_type(), "input must be float32 or of the 16-bit factors' type");
  const int64_t n = input.size(0), c = input.size(1), h = input.size(2), w = input.size(3);
  STD_TORCH_CHECK(c % kernels.channel_multiple == 0, "channels must be a multiple of ", kernels.channel_multiple);
  check_float32(packed_weight, "packed_weight");
  const Parameters parameters(packed_weight, kernels.packed_numel(c), bias, c);
  const Tensor maps = channels_last(input, input.scalar_type());
  const Tensor output = empty_maps(n, c, h, w, packed_type(half_output));
  if (output.numel() == 0) return output;
  GroupedConv call{};
  call.images = n, call.height = h, call.width = w, call.channels = c;
  call.input = maps.const_data_ptr();
  call.packed_weight = data(parameters.packed_weight), call.bias = parameters.bias_data();
  call.output = output.mutable_data_ptr();
  call.relu = relu;
  run_tasks(n * h, kernels.scratch_bytes(call), [&](int64_t task, void* scratch) {
    kernels.run[is_half(maps)][half_output](call, task, scratch);
  });
  return output;
}

int64_t packed_stem_numel(int64_t out_channels, int64_t in_channels) {
  return capability().kernels->stem.packed_numel(out_channels, in_channels);
}

Tensor pack_stem_weight(const Tensor& weight) {
  check_float32(weight, "weight");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 7 && weight.size(3) == 7 && weight.numel() > 0,
                  "weight must be (out_channels, in_channels, 7, 7)");
  const int64_t out_channels = weight.size(0), in_channels = weight.size(1);
  const Tensor contiguous = torch::stable::contiguous(weight);
  const Tensor dense = torch::stable::empty({144 * out_channels * in_channels}, ScalarType::Float);
  const Tensor packed = torch::stable::empty({packed_stem_numel(out_channels, in_channels)}, ScalarType::Float);
  capability().kernels->stem.pack(data(contiguous), out_channels, in_channels, mutable_data(dense), mutable_data(packed));
  return packed;
}

Tensor stem(const Tensor& input, const Tensor& packed_weight, const std::optional<Tensor>& bias, int64_t out_channels) {
  check_float32(input, "input");
  check_maps(input, out_channels);
  const int64_t n = input.size(0), c = input.size(1), h = input.size(2), w = input.size(3);
  STD_TORCH_CHECK(h > 0 && w > 0, "input is empty");
  check_float32(packed_weight, "packed_weight");
  const Parameters parameters(packed_weight, packed_stem_numel(out_channels, c), bias, out_channels);
  const Tensor maps = channels_last(input, ScalarType::Float);
  const Tensor output = empty_maps(n, out_channels, stem_size(h), stem_size(w), ScalarType::Float);
  Stem call{};
  call.images = n, call.height = h, call.width = w, call.in_channels = c, call.out_channels = out_channels;
  call.input = data(maps);
  call.packed_weight = data(parameters.packed_weight);
  call.bias = parameters.bias_data();
  call.output = mutable_data(output);
  const StemKernels& kernels = capability().kernels->stem;
  run_tasks(kernels.tasks(call), kernels.scratch_bytes(call),
            [&](int64_t task, void* scratch) { kernels.run(call, task, scratch); });
  return output;
}

// Each pixel becomes 2×2 equal ones.
Tensor upsample2x(const Tensor& input) {
  check_float32(input, "input");
  check_maps(input, 1);
  const int64_t n = input.size(0), c = input.size(1), h = input.size(2), w = input.size(3);
  const Tensor maps = channels_last(input, ScalarType::Float);
  const Tensor output = empty_maps(n, c, 2 * h, 2 * w, ScalarType::Float);
  if (output.numel() == 0) return output;
  torch::stable::parallel_for(0, n * h, 1, [&](int64_t begin, int64_t end) {
    const size_t pixel = static_cast<size_t>(c) * sizeof(float);
    for (int64_t row = begin; row < end; ++row) {
      const float* source = data(maps) + row * w * c;
      float* target = mutable_data(output) + row * 4 * w * c;
      for (int64_t x = 0; x < w; ++x) {
        std::memcpy(target + 2 * x * c, source + x * c, pixel);
        std::memcpy(target + (2 * x + 1) * c, source + x * c, pixel);
      }
      std::memcpy(target + 2 * w * c, target, 2 * static_cast<size_t>(w) * pixel);
    }
  });
  return output;
}

}  // namespace
}  // namespace dcnzoo::cpu

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&dcnzoo::cpu::conv3x3));
  m.impl("conv3x3_conv1x1", TORCH_BOX(&dcnzoo::cpu::conv3x3_conv1x1));
  m.impl("pack_conv3x3_weight", TORCH_BOX(&dcnzoo::cpu::pack_conv3x3_weight));
  m.impl("small_conv3x3", TORCH_BOX(&dcnzoo::cpu::small_conv3x3));
  m.impl("pack_small_conv3x3_weight", TORCH_BOX(&dcnzoo::cpu::pack_small_conv3x3_weight));
  m.impl("linear", TORCH_BOX(&dcnzoo::cpu::linear));
  m.impl("conv1x1", TORCH_BOX(&dcnzoo::cpu::conv1x1));
  m.impl("conv1x1_add_upsampled", TORCH_BOX(&dcnzoo::cpu::conv1x1_add_upsampled));
  m.impl("conv1x1_add_", TORCH_BOX(&dcnzoo::cpu::conv1x1_add_));
  m.impl("conv1x1_add_conv1x1_", TORCH_BOX(&dcnzoo::cpu::conv1x1_add_conv1x1_));
  m.impl("conv_transpose2x2", TORCH_BOX(&dcnzoo::cpu::conv_transpose2x2));
  m.impl("class_mask_logits", TORCH_BOX(&dcnzoo::cpu::class_mask_logits));
  m.impl("strided_conv3x3", TORCH_BOX(&dcnzoo::cpu::strided_conv3x3));
  m.impl("grouped_conv3x3", TORCH_BOX(&dcnzoo::cpu::grouped_conv3x3));
  m.impl("pack_grouped_conv3x3_weight", TORCH_BOX(&dcnzoo::cpu::pack_grouped_conv3x3_weight));
  m.impl("stem", TORCH_BOX(&dcnzoo::cpu::stem));
  m.impl("upsample2x", TORCH_BOX(&dcnzoo::cpu::upsample2x));
  m.impl("pack_linear_weight", TORCH_BOX(&dcnzoo::cpu::pack_linear_weight));
  m.impl("pack_stem_weight", TORCH_BOX(&dcnzoo::cpu::pack_stem_weight));
}

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("packed_conv3x3_numel", TORCH_BOX(&dcnzoo::cpu::packed_conv3x3_numel));
  m.impl("packed_small_conv3x3_numel", TORCH_BOX(&dcnzoo::cpu::packed_small_conv3x3_numel));
  m.impl("packed_linear_numel", TORCH_BOX(&dcnzoo::cpu::packed_linear_numel));
  m.impl("packed_stem_numel", TORCH_BOX(&dcnzoo::cpu::packed_stem_numel));
}
