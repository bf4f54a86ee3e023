// The kernels of csrc/cuda on an emulated GPU, for ctypes.
#include <algorithm>

#include "bias_relu.h"
#include "deform_conv2d_columns.h"
#include "deform_conv2d_plan.h"
#include "deform_conv2d_reduce.h"
#include "emulator.h"
#include "nms.h"
#include "roi_pool.h"

namespace dcnzoo::cuda {
namespace {

template <class Block>
void launch(const DeformConv2d& call, const Plan& plan, unsigned seed) {
  emulated::launch(plan.blocks, plan.threads, plan.shared_bytes, seed,
                   [&](char* shared) { Block(call, plan.tiling, shared).run(); });
}

template <class Factors>
void launch_mma(const DeformConv2d& call, const Plan& plan, unsigned seed) {
  switch (plan.kernel) {
    case Kernel::mma_64x128: return launch<MmaBlock<Mma64x128<Factors>>>(call, plan, seed);
    case Kernel::mma_128x64: return launch<MmaBlock<Mma128x64<Factors>>>(call, plan, seed);
    case Kernel::mma_128x128: return launch<MmaBlock<Mma128x128<Factors>>>(call, plan, seed);
    default: return launch<MmaBlock<Mma128x256<Factors>>>(call, plan, seed);
  }
}

// The kernels that need half the bits of float32.
template <class Factors>
bool launch_wgmma(const DeformConv2d& call, const Plan& plan, unsigned seed) {
  if constexpr (Factors::elements == 2) {
    switch (plan.kernel) {
      case Kernel::wgmma_64x128: launch<WgmmaBlock<Wgmma64x128<Factors>>>(call, plan, seed); return true;
      case Kernel::wgmma_64x256: launch<WgmmaBlock<Wgmma64x256<Factors>>>(call, plan, seed); return true;
      case Kernel::wgmma_128x128: launch<WgmmaBlock<Wgmma128x128<Factors>>>(call, plan, seed); return true;
      case Kernel::wgmma_128x256: launch<WgmmaBlock<Wgmma128x256<Factors>>>(call, plan, seed); return true;
      default: break;
    }
  }
  return false;
}

template <class T, class Factors>
void run(const DeformConv2d& call, const Plan& plan, unsigned seed) {
  if (plan.kernel == Kernel::simt) return launch<SimtBlock<Simt<T>>>(call, plan, seed);
  if (plan.kernel != Kernel::grouped) {
    if (!launch_wgmma<Factors>(call, plan, seed)) launch_mma<Factors>(call, plan, seed);
  } else if (sizeof(T) == 4 && call.shape.group_channels() == 32) {
    launch<GroupedBlock<Grouped<Tf32Factors, 2>>>(call, plan, seed);
  } else {
    launch<GroupedBlock<Grouped<Factors, 1>>>(call, plan, seed);
  }
  if (call.partial == nullptr) return;
  emulated::launch(3, reduce_threads, 0, seed, [&](char*) { reduce_splits<T>(call, plan.tiling.splits); });
}

template <class Access>
void run_columns(const DeformConv2dColumns& work, bool scatter, unsigned seed) {
  emulated::launch(3, column_threads, 0, seed, [&](char*) {
    const ColumnWarp<Access> warp(work);
    scatter ? warp.scatter() : warp.sample();
  });
}

template <class Factors>
void run_columns_of(const DeformConv2dColumns& work, bool scatter, unsigned seed) {
  if (!scatter && has_whole_chunks<Factors>(work.call.shape)) {
    run_columns<ChunkAccess<Factors>>(work, scatter, seed);
  } else {
    run_columns<ScalarAccess<typename Factors::Storage>>(work, scatter, seed);
  }
}

template <class Warp, class Call>
void launch_bins(const Call& call, const RoiPool& pool) {
  const int64_t blocks = ceil_div(pool.num_rois * pool.pooled_h * pool.pooled_w, roi_bins);
  emulated::launch(blocks, roi_threads, 0, 0, [&](char*) { Warp(call).run(); });
}

template <class Factors>
void pool(const RoiPool& call) {
  if (call.channels % ChunkAccess<Factors>::elements == 0) {
    launch_bins<RoiWarp<ChunkAccess<Factors>>>(call, call);
  } else {
    launch_bins<RoiWarp<ScalarAccess<typename Factors::Storage>>>(call, call);
  }
}

}  // namespace
}  // namespace dcnzoo::cuda

using namespace dcnzoo::cuda;

extern "C" {

void plan_deform_conv2d(const ConvShape* shape, int element, int allow_tf32, const Gpu* gpu, const Choice* forced,
                        Plan* plan) {
  *plan = Planner(*shape, static_cast<Element>(element), allow_tf32 != 0, *gpu).choose(forced);
}

void run_deform_conv2d(const DeformConv2d* call, const Plan* plan, unsigned seed) {
  switch (call->element) {
    case Element::float16: return run<Half, HalfFactors>(*call, *plan, seed);
    case Element::bfloat16: return run<Bfloat16, Bfloat16Factors>(*call, *plan, seed);
    case Element::float32: return run<float, Tf32Factors>(*call, *plan, seed);
    default: return launch<SimtBlock<Simt<double>>>(*call, *plan, seed);
  }
}

void run_columns(const DeformConv2dColumns* work, int scatter, unsigned seed) {
  switch (work->call.element) {
    case Element::float16: return run_columns_of<HalfFactors>(*work, scatter != 0, seed);
    case Element::bfloat16: return run_columns_of<Bfloat16Factors>(*work, scatter != 0, seed);
    case Element::float32: return run_columns_of<Tf32Factors>(*work, scatter != 0, seed);
    default: return run_columns<ScalarAccess<double>>(*work, scatter != 0, seed);
  }
}

void run_roi_pool(const RoiPool* call) {
  switch (call->element) {
    case Element::float16: return pool<HalfFactors>(*call);
    case Element::bfloat16: return pool<Bfloat16Factors>(*call);
    case Element::float32: return pool<Tf32Factors>(*call);
    default: return launch_bins<RoiWarp<ScalarAccess<double>>>(*call, *call);
  }
}

void run_roi_pool_grad(const RoiPoolGrad* call) {
  switch (call->pool.element) {
    case Element::float16: return launch_bins<RoiGradWarp<Half>>(*call, call->pool);
    case Element::bfloat16: return launch_bins<RoiGradWarp<Bfloat16>>(*call, call->pool);
    case Element::float32: return launch_bins<RoiGradWarp<float>>(*call, call->pool);
    default: return launch_bins<RoiGradWarp<double>>(*call, call->pool);
  }
}

void run_suppression(const Suppression* call, unsigned seed) {
  emulated::launch(call->problems, nms_threads, NmsBlock::shared_bytes(call->num_boxes), seed,
                   [&](char* shared) { NmsBlock(*call, shared).run(); });
}

void run_bias_relu(const BiasRelu* call, int64_t blocks) {
  const auto launch = [&](auto function) { emulated::launch(blocks, bias_relu_threads, 0, 0, function); };
  switch (call->element) {
    case Element::float16: return launch([&](char*) { add_bias_relu<HalfFactors>(*call); });
    case Element::bfloat16: return launch([&](char*) { add_bias_relu<Bfloat16Factors>(*call); });
    default: return launch([&](char*) { add_bias_relu<FloatWords>(*call); });
  }
}

// The entry of the table for a point of the input: its weights, and the pixel y0x0 with its steps.
void sample_point(const ConvShape* shape, int64_t image, float y, float x, int64_t stride, float* weights,
                  int64_t* address) {
  const Sample<float> sample = make_sample(*shape, SampleSource<float>{{y, x}, 1.0f, image}, stride);
  std::copy(sample.weights.corner, sample.weights.corner + 4, weights);
  *address = sample.corner.address;
}

// The output pixel `step` after number `index`.
void find_pixel(const ConvShape* shape, int64_t index, int step, int64_t* image_y_x) {
  const Pixel pixel = pixel_after(pixel_at(index, *shape), step, *shape);
  image_y_x[0] = pixel.image, image_y_x[1] = pixel.y, image_y_x[2] = pixel.x;
}

}  // extern "C"
