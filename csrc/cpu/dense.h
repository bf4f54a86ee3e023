// Interface between the PyTorch binding and the kernels of dense layers: Winograd convolution and
// matrix products with packed weights. Maps are channels-last and dense, and float32, but where `half_input` or `half_output`
// says that they consist of the 16-bit factors that the packed weights consist of, too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dcnzoo::cpu {

// 3×3 convolution with stride 1 and padding 1, computed by Winograd's algorithm.
struct Winograd {
  int64_t images, height, width, in_channels, out_channels;
  const void* input;
  const void* packed_weight;  // from `pack` of the same capability
  const float* bias;           // may be null
  void* output;
  bool half_input, half_output;
  bool relu;
  // A 1×1 convolution behind it, whose result is the output then, in float32. A linear layer of few channels; null for none.
  const void* point_weight;
  const float* point_bias;
  int64_t point_channels;
};

// How a call is cut into independent tasks: blocks of tiles × parts of the output channels.
struct WinogradSchedule {
  int64_t blocks, parts;
  size_t scratch_bytes;  // per worker, 64-byte aligned

  int64_t tasks() const { return blocks * parts; }
};

struct WinogradKernels {
  int64_t (*packed_numel)(int64_t out_channels, int64_t in_channels);
  // Packs the input channels [begin, end) of a dense (out_channels, in_channels, 3, 3) weight.
  void (*pack)(const float* weight, int64_t out_channels, int64_t in_channels, void* packed, int64_t begin,
               int64_t end);
  WinogradSchedule (*schedule)(const Winograd&, int threads);
  void (*run)(const Winograd&, const WinogradSchedule&, int64_t task, void* scratch);
};

// output = relu?(input · weightᵀ + bias [+ output]) over `runs` runs of `length` rows. Within a run, rows
// are `row_stride` elements apart in the input and `out_channels` in the output.
struct Linear {
  int64_t runs, length;
  int64_t row_stride, run_stride, output_run_stride;
  int64_t in_channels, out_channels;
  const void* input;
  const void* packed_weight;  // from `pack` of the same capability
  const float* bias;           // may be null
  void* output;
  bool half_input, half_output;
  bool accumulate;  // adds what the output holds, in float32
  bool relu;
  // A layer whose input is this one's output, computed behind it block by block, while that is in the cache; null for none.
  // Its weight is of the same type.
  const Linear* next;
};

// A task is a block of whole runs, or blocks of rows of one run.
struct LinearSchedule {
  int64_t run_blocks, row_blocks;
  size_t scratch_bytes;  // per worker, 64-byte aligned

  int64_t tasks() const { return run_blocks * row_blocks; }
};

struct LinearKernels {
  int64_t (*packed_numel)(int64_t out_channels, int64_t in_channels);
  // Packs the pieces [begin, end) of the input channels of a dense (out_channels, in_channels) weight.
  void (*pack)(const float* weight, int64_t out_channels, int64_t in_channels, void* packed, int64_t begin,
               int64_t end);
  int64_t (*pieces)(int64_t out_channels, int64_t in_channels);
  LinearSchedule (*schedule)(const Linear&, int threads);
  void (*run)(const Linear&, const LinearSchedule&, int64_t task, void* scratch);
};

// 3×3 convolution with stride 2 and padding 1, to few channels.
struct StridedConv {
  int64_t images, height, width, in_channels, out_channels;
  const void* input;          // of what the packed weight consists of
  const void* packed_weight;  // of nine linear layers, one per tap
  const float* bias;           // may be null
  float* output;
};

// The size of its result along an axis.
inline int64_t strided_conv_size(int64_t size) { return (size + 1) / 2; }

// A task is a row of the output.
struct StridedConvKernels {
  size_t (*scratch_bytes)(const StridedConv&);  // per worker, 64-byte aligned
  void (*run)(const StridedConv&, int64_t task, void* scratch);
};

// 3×3 convolution with stride 1 and padding 1 whose groups have four channels in and four out. The factors are float32.
struct GroupedConv {
  int64_t images, height, width, channels;
  const void* input;
  const float* packed_weight;  // from `pack` of the same capability
  const float* bias;           // may be null
  void* output;
  bool relu;
};

// A task is a row of the output.
struct GroupedConvKernels {
  int64_t channel_multiple;  // of which the channels are one
  int64_t (*packed_numel)(int64_t channels);
  // Packs a dense (channels, 4, 3, 3) weight.
  void (*pack)(const float* weight, int64_t channels, float* packed);
  size_t (*scratch_bytes)(const GroupedConv&);  // per worker, 64-byte aligned
  void (*run[2][2])(const GroupedConv&, int64_t task, void* scratch);  // [of 16-bit input][to 16-bit output]
};

// 7×7 convolution with stride 2 and padding 3, ReLU, 3×3 maximum with stride 2 and padding 1.
struct Stem {
  int64_t images, height, width, in_channels, out_channels;
  const float* input;
  const float* packed_weight;  // from `pack` of the same capability
  const float* bias;           // may be null
  float* output;
};

// The size of the convolution's map along an axis, and of the result.
inline int64_t stem_conv_size(int64_t size) { return (size - 1) / 2 + 1; }
inline int64_t stem_size(int64_t size) { return (stem_conv_size(size) - 1) / 2 + 1; }

// A task is a block of rows and columns of one image.
struct StemKernels {
  int64_t (*packed_numel)(int64_t out_channels, int64_t in_channels);
  // Packs a dense (out_channels, in_channels, 7, 7) weight; `dense` is room for 144 · out_channels · in_channels numbers.
  void (*pack)(const float* weight, int64_t out_channels, int64_t in_channels, float* dense, float* packed);
  int64_t (*tasks)(const Stem&);
  size_t (*scratch_bytes)(const Stem&);  // per worker, 64-byte aligned
  void (*run)(const Stem&, int64_t task, void* scratch);
};

// Transposed 2×2 convolution with stride 2 and ReLU, and of each of its pixels the logit of the RoI's own class.
struct MaskLogits {
  int64_t rois, height, width, in_channels, channels;  // channels: of the upsampled maps
  const float* input;
  const void* packed_weight;  // of two linear layers, the kernel's rows, to 2 · channels each
  const float* bias;           // of such a layer; may be null
  const float* class_weight;   // (classes, channels)
  const float* class_bias;     // may be null
  const int64_t* labels;       // of each RoI
  float* output;               // (rois, 2 · height, 2 · width)
};

struct MaskLogitsKernels {
  int64_t (*tasks)(const MaskLogits&);
  size_t (*scratch_bytes)(const MaskLogits&);
  void (*run)(const MaskLogits&, int64_t task, void* scratch);
};

// With packed weights of one type: float32, or 16-bit factors.
struct DenseKernels {
  WinogradKernels winograd;
  WinogradKernels small_winograd;  // for maps of 14×14, with larger errors
  LinearKernels linear;
  StridedConvKernels strided;
  MaskLogitsKernels mask_logits;
};

}  // namespace dcnzoo::cpu
