// Interface between the PyTorch binding and the CUDA kernels: raw pointers and sizes, nothing of PyTorch.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define DCNZOO_BOTH __host__ __device__ __forceinline__
#else
#define DCNZOO_BOTH inline
#endif

struct CUstream_st;

namespace dcnzoo::cuda {

using Stream = CUstream_st*;

enum class Element : int32_t { float16, bfloat16, float32, float64 };

DCNZOO_BOTH constexpr int element_bytes(Element element) {
  return element == Element::float64 ? 8 : element == Element::float32 ? 4 : 2;
}

// What a GPU offers.
struct Gpu {
  int multiprocessors;
  int shared_bytes;  // that a block can have
  bool wgmma;        // it has these instructions, and this library has machine code for it that uses them
  bool try_wgmma;    // whether estimates may choose kernels with them, which have not run on a GPU yet
};

// A 4-d tensor (N, C, H, W) of floating point numbers read through arbitrary strides (in elements).
struct StridedMaps {
  const void* data;
  Element element;
  int64_t n, c, h, w;
};

struct ConvShape {
  int64_t images;
  int32_t channels, height, width;
  int32_t out_channels, out_height, out_width;
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int32_t groups, deform_groups;

  DCNZOO_BOTH int taps() const { return kernel_h * kernel_w; }
  DCNZOO_BOTH int group_channels() const { return channels / groups; }
  DCNZOO_BOTH int group_columns() const { return out_channels / groups; }
  DCNZOO_BOTH int deform_channels() const { return channels / deform_groups; }
  DCNZOO_BOTH int64_t pixels() const { return images * out_height * out_width; }
};

// One call of deform_conv2d. `input` is (N, H, W, C), `weight` (O, kernel height, kernel width, C/G), `output`
// (N, Ho, Wo, O), all dense and of the same element; `bias` and `mask.data` may be null.
struct DeformConv2d {
  ConvShape shape;
  const void* input;
  const void* weight;
  const void* bias;
  void* output;
  float* partial;  // (splits, pixels, O) sums where the reduction axis is split, otherwise null
  StridedMaps offset, mask;
  Element element;
  bool mask_is_logits, relu;
};

// What the derivatives of a call need beside matrix products. Of `call` the shape, input, offset and mask count.
// `columns` is (G, pixels, taps, C/G), in the type of the input, for the `pixels` output pixels from `first_pixel` on.
// `sample_columns` writes the samples there. `scatter_columns` reads the gradients of the samples from there and adds
// to that of the input, (N, H, W, C), float32 or for float64 float64; it writes those of offset and mask, (N, channels,
// Ho, Wo), in the types of offset and mask; the latter may be null.
struct DeformConv2dColumns {
  DeformConv2d call;
  int64_t first_pixel, pixels;
  void* columns;
  void* grad_input;
  void* grad_offset;
  void* grad_mask;
};

// How a call is cut into blocks. The order of blocks is group, pixel tile, split, column tile, the last fastest.
struct Tiling {
  int64_t pixel_tiles;
  int column_tiles;    // per group
  int splits;          // of the reduction axis
  int window_taps;     // taps whose samples are in shared memory at once; 0 for less than the samples of one tap
  int table_capacity;  // pairs of a tap and a deformable group whose samples have room there
};

enum class Kernel : int32_t {
  simt,
  grouped,
  mma_64x128,
  mma_128x64,
  mma_128x128,
  mma_128x256,
  wgmma_64x128,
  wgmma_64x256,
  wgmma_128x128,
  wgmma_128x256
};

// Which kernel computes a call, and how.
struct Plan {
  Kernel kernel;
  bool tf32;  // float32 factors are rounded to TensorFloat-32
  Tiling tiling;
  int64_t blocks;
  int threads, shared_bytes;
  double cycles;  // of a multiprocessor, as estimated; 0 where there is no estimate
};

// A kernel and a number of splits to use where they can be, instead of what seems fastest.
struct Choice {
  Kernel kernel;
  int splits;
};

// `forced` may be null.
Plan plan_deform_conv2d(const ConvShape& shape, Element element, bool allow_tf32, const Gpu& gpu, const Choice* forced);

// A level of a feature pyramid, (N, H, W, C).
struct RoiLevel {
  const void* input;
  int32_t height, width;
  double spatial_scale;
};

constexpr int most_roi_levels = 8;

// One call of roi_pool, or of roi_align_pyramid. `rois` is (R, 5): image index, xyxy. A RoI of no image (-1) pools
// to 0, one that is not a number or too large to not-a-number. Places are computed in float32, for float64 in float64. `level_of_roi` is (R,) or null where there is one
// level; `offset` (R, 2, pooled_h, pooled_w), x first, or null. `output` is (R, pooled_h, pooled_w, C).
struct RoiPool {
  RoiLevel levels[most_roi_levels];
  int32_t num_levels, channels;
  int64_t images, num_rois;
  const void* rois;
  const int64_t* level_of_roi;
  const void* offset;
  Element rois_element, offset_element, element;
  int32_t pooled_h, pooled_w;
  double gamma;
  void* output;
};

// The derivatives of a call of roi_pool, one level: `grad_output` is (R, pooled_h, pooled_w, C) of the type of the input.
// Adds to `grad_input`, (N, H, W, C), float32 or for float64 float64; writes `grad_offset` in the type of the offset.
struct RoiPoolGrad {
  RoiPool pool;
  const void* grad_output;
  void* grad_input;
  void* grad_offset;
};

// Greedy suppression of (problems, boxes, 4) xyxy boxes, sorted by descending score; of each problem the first
// `counts` of them take part. `kept` is (problems, boxes).
struct Suppression {
  const float* boxes;
  const int64_t* counts;
  int64_t problems;
  int32_t num_boxes;
  float iou_threshold;
  bool* kept;
};

constexpr int chunk_bytes = 16;  // what a thread loads and stores at once

// Adds to each pixel of (N, H, W, C) maps the (C,) bias and, unless null, other maps; then ReLU, if wanted. All of one
// element, not float64, and of whole chunks per pixel.
struct BiasRelu {
  void* maps;  // overwritten
  const void* bias;
  const void* added;
  int64_t chunks, bias_chunks;
  Element element;
  bool relu;
};

// Each of these returns a cudaError_t. `device` is the current one.
int query_gpu(int device, Gpu& gpu);
int run_deform_conv2d(const DeformConv2d& call, const Plan& plan, const Gpu& gpu, Stream stream);
int sample_columns(const DeformConv2dColumns& work, Stream stream);
int scatter_columns(const DeformConv2dColumns& work, Stream stream);
int run_roi_pool(const RoiPool& call, Stream stream);
int run_roi_pool_grad(const RoiPoolGrad& call, Stream stream);
int run_suppression(const Suppression& call, Stream stream);
int run_bias_relu(const BiasRelu& call, Stream stream);

}  // namespace dcnzoo::cuda
