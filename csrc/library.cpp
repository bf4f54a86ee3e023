// The schemas of all operators, and the Python module whose import registers them.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/capability.h"

namespace {

std::string cpu_capability() { return dcnzoo::cpu::capability().name; }

std::string cpu_half_factor() {
  const dcnzoo::cpu::HalfKernels* half = dcnzoo::cpu::capability().kernels->half;
  if (half == nullptr) return "";
  return half->factor == dcnzoo::cpu::Element::float16 ? "float16" : "bfloat16";
}

}  // namespace

STABLE_TORCH_LIBRARY(dcnzoo, m) {
  // Name of the set of CPU kernels in use.
  m.def("cpu_capability() -> str");
  // The 16-bit type that it multiplies at twice the rate of float32, "float16" or "bfloat16"; "" if there is none. `half`
  // below asks for that: weights are packed in it, and the operators that get such weights round their float32 inputs to
  // it. Results are float32, but with `half_output`; inputs of float32 layers may be of that type where their weights are.
  m.def("cpu_half_factor() -> str");

  // Deformable convolution; the result is channels-last. Input, weight and bias have one type, of the four
  // floating-point ones (on a CPU weight and bias may be float32 for an input of bfloat16, if the packed weight is of that);
  // offset and mask may have others. `packed_weight` is what `pack_deform_conv2d_weight`
  // made of `weight`: pass it to save the packing on every call. With `mask_is_logits` the mask goes through a
  // sigmoid first.
  m.def(
      "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor? mask, Tensor? bias, int[2] stride, "
      "int[2] padding, int[2] dilation, Tensor? packed_weight=None, bool mask_is_logits=False, "
      "bool relu=False) -> Tensor");
  // The same on a GPU, where float32 factors are rounded to TensorFloat-32.
  m.def(
      "deform_conv2d_tf32(Tensor input, Tensor weight, Tensor offset, Tensor? mask, Tensor? bias, int[2] stride, "
      "int[2] padding, int[2] dilation, Tensor? packed_weight=None, bool mask_is_logits=False, "
      "bool relu=False) -> Tensor");
  // On a GPU the same by one kernel: "mma_128x128/2" is that kernel with the reduction in 2 parts. An error where it cannot
  // compute this.
  m.def(
      "deform_conv2d_by_kernel(Tensor input, Tensor weight, Tensor offset, Tensor? mask, Tensor? bias, int[2] stride, "
      "int[2] padding, int[2] dilation, bool mask_is_logits, bool relu, bool tf32, str kernel) -> Tensor");
  // What a GPU computes it with, if `kernel` is empty, or by that kernel: the kernel's number, its splits and the cycles
  // that it is estimated to take, float64 on the CPU.
  m.def(
      "deform_conv2d_plan(Tensor input, Tensor weight, Tensor offset, int[2] stride, int[2] padding, int[2] dilation, "
      "bool tf32, str kernel) -> Tensor");
  m.def("pack_deform_conv2d_weight(Tensor weight, int groups, bool half=False) -> Tensor");
  // Elements of what `pack_deform_conv2d_weight` makes of a weight of this shape and type.
  m.def("packed_deform_conv2d_numel(int[] weight_shape, int groups, ScalarType dtype, bool half=False) -> int");

  // Its gradients, given that of its output (before relu): of input (channels-last; on a GPU the order of additions
  // varies), offset and mask (empty without a mask), and of weight.
  m.def(
      "deform_conv2d_input_grads(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor? mask, int[2] stride, "
      "int[2] padding, int[2] dilation, bool mask_is_logits) -> (Tensor, Tensor, Tensor)");
  m.def(
      "deform_conv2d_weight_grad(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor? mask, int[2] stride, "
      "int[2] padding, int[2] dilation, bool mask_is_logits) -> Tensor");

  // On a GPU, what those gradients need beside matrix products. The samples of `pixels` output pixels from number
  // `first_pixel` on, (G, pixels, T * C/G) in the type of the input; `weight` gives the shapes.
  m.def(
      "deform_conv2d_columns(Tensor input, Tensor weight, Tensor offset, Tensor? mask, int[2] stride, int[2] padding, "
      "int[2] dilation, bool mask_is_logits, int first_pixel, int pixels) -> Tensor");
  // Given the gradient of the samples, `columns`: adds to that of the input (channels-last, float32 or float64), and
  // writes for those pixels those of offset and mask (contiguous, in their types). The order of additions varies.
  m.def(
      "deform_conv2d_scatter_(Tensor(a!) grad_input, Tensor(b!) grad_offset, Tensor(c!)? grad_mask, Tensor columns, "
      "Tensor input, Tensor weight, Tensor offset, Tensor? mask, int[2] stride, int[2] padding, int[2] dilation, "
      "bool mask_is_logits, int first_pixel) -> ()");

  // RoIAlign (aligned, adaptive grid), or with `offset` deformable RoI pooling; the result is channels-last, in the
  // type of the input. RoIs and offset may be of any floating type; positions are float32 at least.
  m.def(
      "roi_pool(Tensor input, Tensor rois, Tensor? offset, int[2] output_size, float spatial_scale, float gamma) "
      "-> Tensor");
  // Its gradients, given that of its output: of input (channels-last; on a GPU the order of additions varies) and
  // offset (empty without one).
  m.def(
      "roi_pool_grads(Tensor grad, Tensor input, Tensor rois, Tensor? offset, int[2] output_size, "
      "float spatial_scale, float gamma) -> (Tensor, Tensor)");

  // RoIAlign of every RoI from its own level of a pyramid: `levels` (R,) int64 index `inputs` and `spatial_scales`.
  m.def(
      "roi_align_pyramid(Tensor[] inputs, Tensor rois, Tensor levels, float[] spatial_scales, int[2] output_size, "
      "bool half_output=False) -> Tensor");

  // Indices of the boxes that remain, by descending score; boxes of different groups never interact.
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor groups, float iou_threshold) -> Tensor");

  // On a GPU. Greedy suppression of boxes (problems, A, 4) that are sorted by descending score; of each problem the
  // first `counts` of them take part. Says of each box whether it remains.
  m.def("nms_sorted(Tensor boxes, Tensor counts, float iou_threshold) -> Tensor");

  // On a GPU, what follows another library's convolution: adds the bias (C,) to channels-last maps (N, C, H, W) and, if
  // given, `added` of the same shape; then ReLU. All of one type, of 16 or 32 bits, and rows of C a multiple of 16 bytes.
  m.def("bias_relu_(Tensor(a!) maps, Tensor bias, Tensor? added, bool relu) -> ()");

  // Masks of an image of (height, width) from maps (D, M, M) over boxes (D, 4): COCO's compressed run lengths as
  // ASCII, each followed by a newline.
  m.def("paste_masks(Tensor probs, Tensor boxes, int[2] image_size) -> Tensor");

  // Dense layers, float32. `packed_weight` is what the `pack` operator of that name made of the layer's weight;
  // results are channels-last. `conv3x3` has stride 1 and padding 1, `conv_transpose2x2` stride 2.
  m.def(
      "conv3x3(Tensor input, Tensor packed_weight, Tensor? bias, int out_channels, bool relu, bool half_output=False) "
      "-> Tensor");
  // With `channels` of its own, ReLU, and a 1×1 convolution of few channels behind it, in float32; what is between the two is
  // never in memory.
  m.def(
      "conv3x3_conv1x1(Tensor input, Tensor packed_weight, Tensor? bias, int channels, Tensor packed_point_weight, "
      "Tensor? point_bias, int out_channels) -> Tensor");
  m.def("pack_conv3x3_weight(Tensor weight, bool half=False) -> Tensor");
  m.def("packed_conv3x3_numel(int out_channels, int in_channels, bool half=False) -> int");
  // The same for many small maps, with larger rounding errors.
  m.def("small_conv3x3(Tensor input, Tensor packed_weight, Tensor? bias, int out_channels, bool relu) -> Tensor");
  m.def("pack_small_conv3x3_weight(Tensor weight, bool half=False) -> Tensor");
  m.def("packed_small_conv3x3_numel(int out_channels, int in_channels, bool half=False) -> int");
  m.def("linear(Tensor input, Tensor packed_weight, Tensor? bias, int out_channels, bool relu) -> Tensor");
  m.def(
      "conv1x1(Tensor input, Tensor packed_weight, Tensor? bias, int out_channels, int stride, bool relu, "
      "bool half_output=False) -> Tensor");
  m.def("conv1x1_add_(Tensor(a!) output, Tensor input, Tensor packed_weight, Tensor? bias, bool relu) -> ()");
  // The sum with maps of half the size, whose pixels become 2×2.
  m.def("conv1x1_add_upsampled(Tensor input, Tensor packed_weight, Tensor? bias, Tensor coarse) -> Tensor");
  // `conv1x1_add_` with ReLU, and the result of a `conv1x1` with ReLU behind it, whose input is in the cache then.
  m.def(
      "conv1x1_add_conv1x1_(Tensor(a!) output, Tensor input, Tensor packed_weight, Tensor? bias, "
      "Tensor packed_next_weight, Tensor? next_bias, int next_channels, bool half_result=False) -> Tensor");
  m.def(
      "conv_transpose2x2(Tensor input, Tensor packed_weight, Tensor? bias, int out_channels, bool relu) -> Tensor");
  // The end of a mask head: logits (R, 2H, 2W) of each RoI's own class from maps (R, C, H, W), by `conv_transpose2x2` with
  // ReLU and the 1×1 convolution with `class_weight` (K, O).
  m.def(
      "class_mask_logits(Tensor input, Tensor packed_weight, Tensor? bias, Tensor class_weight, Tensor? class_bias, "
      "Tensor labels) -> Tensor");
  // The transposed convolution's weight is two packed ones, of the kernel's rows: (2 · out_channels, in_channels), column by column.
  m.def("pack_linear_weight(Tensor weight, bool half=False) -> Tensor");
  // 3×3 convolution with stride 2 and padding 1 to few channels; the packed weight is nine ones of linear layers, tap by tap,
  // and the input is of their type.
  m.def("strided_conv3x3(Tensor input, Tensor packed_weight, Tensor? bias, int out_channels) -> Tensor");
  // 3×3 convolution with stride 1 and padding 1 whose groups have 4 channels in and out; factors are float32.
  m.def("grouped_conv3x3(Tensor input, Tensor packed_weight, Tensor? bias, bool relu, bool half_output=False) -> Tensor");
  m.def("pack_grouped_conv3x3_weight(Tensor weight) -> Tensor");
  // 7×7 convolution with stride 2, ReLU and 3×3 maximum with stride 2.
  m.def("stem(Tensor input, Tensor packed_weight, Tensor? bias, int out_channels) -> Tensor");
  m.def("pack_stem_weight(Tensor weight) -> Tensor");
  m.def("packed_stem_numel(int out_channels, int in_channels) -> int");
  m.def("upsample2x(Tensor input) -> Tensor");
  m.def("packed_linear_numel(int out_channels, int in_channels, bool half=False) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
  m.impl("cpu_half_factor", TORCH_BOX(&cpu_half_factor));
}

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
