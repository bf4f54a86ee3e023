// Interface between the PyTorch binding and the per-capability kernels.
//
// Nothing here depends on PyTorch: the kernels see raw pointers and sizes, so that each of them
// compiles in seconds with the flags of its own instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dense.h"

namespace dcnzoo::cpu {

enum class Element : int32_t { float32, float64, bfloat16, float16 };

// A 4-d tensor (N, C, H, W) of floating point numbers read through arbitrary strides (in elements).
struct StridedMaps {
  const void* data = nullptr;
  Element element = Element::float32;
  int64_t n = 0, c = 0, h = 0, w = 0;
};

struct ConvShape {
  int64_t images, in_channels, height, width;
  int64_t out_channels, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t groups, deform_groups;

  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t out_pixels() const { return out_height * out_width; }
};

// One call of deform_conv2d. `input` and `output` are channels-last and dense; `packed_weight` comes
// from `pack` of the same capability; `bias` may be null, `mask.data` as well. Short floats are computed with
// as float32, and the bias is float32 then.
struct DeformConv2d {
  ConvShape shape;
  const void* input;
  StridedMaps offset;
  StridedMaps mask;
  const void* packed_weight;
  const void* bias;
  void* output;
  bool mask_is_logits;
  bool relu;
};

// How a call is cut into independent tasks: rectangles of output pixels × column chunks (of output
// channels, or of groups when there are several).
struct Schedule {
  int64_t tiles_x, tiles_y, column_chunks;
  size_t scratch_bytes;  // per worker, 64-byte aligned

  int64_t tasks(const ConvShape& shape) const { return shape.images * tiles_x * tiles_y * column_chunks; }
};

// The kernels of one element type.
struct DeformConv2dKernels {
  int64_t (*packed_numel)(const ConvShape&);  // in elements of the packed tensor's type, whatever it is packed as
  // Packs the units [begin, end) of a dense (out_channels, in_channels / groups, kernel_h, kernel_w) weight.
  void (*pack)(const ConvShape&, const void* weight, void* packed, int64_t begin, int64_t end);
  int64_t (*pack_units)(const ConvShape&);
  Schedule (*schedule)(const ConvShape&, int threads);
  void (*run)(const DeformConv2d&, const Schedule&, int64_t task, void* scratch);
};

// Gradients of one call of deform_conv2d, all in one type; `offset` and `mask` may be of others. `input` and
// `grad_input` are channels-last and dense. Either the gradients of input, offset and mask are asked for, or that of
// the weight.
struct DeformConv2dGrad {
  ConvShape shape;
  const void* input;
  StridedMaps offset;
  StridedMaps mask;
  bool mask_is_logits;
  const void* grad_output;    // dense; channels-last, or for the gradient of the weight (N, C, H, W)
  const void* packed_weight;  // transposed; not for the gradient of the weight
  void* grad_input;           // added to
  void* grad_offset;          // (chunks, images, 2 · points, out_pixels), zeros at first
  void* grad_mask;            // (chunks, images, points, out_pixels), zeros at first; null without a mask
  void* grad_weight;          // dense
};

// A gradient is computed in images × chunks tasks, that of the weight in kernel_h × chunks.
struct GradKernels {
  int64_t (*chunks)(const ConvShape&, int threads);
  size_t (*scratch_bytes)(const ConvShape&, int64_t chunks);  // per worker
  void (*run)(const DeformConv2dGrad&, int64_t chunks, int64_t task, void* scratch);
};

struct DeformConv2dGradKernels {
  int64_t (*transposed_numel)(const ConvShape&);
  // Packs the units [begin, end) of a dense weight for the gradient of the input.
  void (*transpose)(const ConvShape&, const void* weight, void* packed, int64_t begin, int64_t end);
  int64_t (*transpose_units)(const ConvShape&);
  GradKernels input, weight;
};

// One call of roi_pool. `input` and `output` are channels-last and dense, (R, pooled_h, pooled_w, channels) the latter,
// of any element type. In the type that they are computed with are `rois`, (R, 5), and `offset`, (R, 2,
// pooled_h, pooled_w), x first, or null.
struct RoiPool {
  const void* input;
  int64_t channels, height, width;
  const void* rois;
  int64_t num_rois;
  const void* offset;
  int64_t pooled_h, pooled_w;
  double spatial_scale, gamma;
  void* output;
};

// The kernels of one element type.
struct RoiPoolKernels {
  size_t (*scratch_bytes)(const RoiPool&);  // per worker
  // Pools the RoIs [begin, end).
  void (*run)(const RoiPool&, int64_t begin, int64_t end, void* scratch);
};

// Gradients of one call of roi_pool, all in one type, float32 or float64.
struct RoiPoolGrad {
  RoiPool pool;
  int64_t images;
  const void* grad_output;
  void* grad_input;   // added to
  void* grad_offset;  // (chunks, R, 2, pooled_h, pooled_w); null without offset
};

struct RoiPoolGradKernels {
  int64_t (*chunks)(const RoiPoolGrad&, int threads);
  // One of images × chunks tasks.
  void (*run)(const RoiPoolGrad&, int64_t chunks, int64_t task);
};

// A kernel for every element type, and one of its gradients for those that are computed with.
template <class KernelsOfType, class GradKernelsOfType>
struct ByElement {
  KernelsOfType float32, float64, bfloat16, float16;
  GradKernelsOfType float32_grad, float64_grad;

  const KernelsOfType& operator[](Element element) const {
    switch (element) {
      case Element::float32: return float32;
      case Element::float64: return float64;
      case Element::bfloat16: return bfloat16;
      default: return float16;
    }
  }
  const GradKernelsOfType& grad(Element element) const {
    return element == Element::float64 ? float64_grad : float32_grad;
  }
};

// Kernels for float32 maps that round factors to 16 bits; their packed weights consist of such.
struct HalfKernels {
  Element factor;  // float16 or bfloat16
  DeformConv2dKernels deform_conv2d;
  RoiPoolKernels roi_pool;  // only the output is rounded
  DenseKernels dense;
};

struct Kernels {
  ByElement<DeformConv2dKernels, DeformConv2dGradKernels> deform_conv2d;
  ByElement<RoiPoolKernels, RoiPoolGradKernels> roi_pool;
  DenseKernels dense;
  StemKernels stem;
  GroupedConvKernels grouped;
  const HalfKernels* half;  // null where nothing is multiplied at twice the rate of float32
};

extern const Kernels kernels_default;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512bf16;
extern const Kernels kernels_avx512fp16;

}  // namespace dcnzoo::cpu
