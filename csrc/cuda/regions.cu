// The kernels of what detectors do with regions, and their launches.
#include <cuda_runtime.h>

#include "nms.h"
#include "roi_pool.h"

namespace dcnzoo::cuda {
namespace {

extern __shared__ __align__(128) char shared_memory[];

template <class Access>
__global__ void __launch_bounds__(roi_threads) roi_kernel(const __grid_constant__ RoiPool call) {
  RoiWarp<Access>(call).run();
}

__global__ void __launch_bounds__(nms_threads) nms_kernel(const __grid_constant__ Suppression call) {
  NmsBlock(call, shared_memory).run();
}

template <class T>
__global__ void __launch_bounds__(roi_threads) roi_grad_kernel(const __grid_constant__ RoiPoolGrad call) {
  RoiGradWarp<T>(call).run();
}

template <class Call>
cudaError_t launch_bins(void (*kernel)(Call), const Call& call, const RoiPool& pool, cudaStream_t stream) {
  const int64_t blocks = ceil_div(pool.num_rois * pool.pooled_h * pool.pooled_w, roi_bins);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(blocks), roi_threads, 0, stream>>>(call);
  return cudaGetLastError();
}

template <class Factors>
cudaError_t launch_roi_pool(const RoiPool& call, cudaStream_t stream) {
  using T = typename Factors::Storage;
  const bool whole_chunks = call.channels % ChunkAccess<Factors>::elements == 0;
  return launch_bins(whole_chunks ? roi_kernel<ChunkAccess<Factors>> : roi_kernel<ScalarAccess<T>>, call, call, stream);
}

}  // namespace

int run_roi_pool(const RoiPool& call, Stream stream) {
  switch (call.element) {
    case Element::float16: return launch_roi_pool<HalfFactors>(call, stream);
    case Element::bfloat16: return launch_roi_pool<Bfloat16Factors>(call, stream);
    case Element::float32: return launch_roi_pool<Tf32Factors>(call, stream);
    default: return launch_bins(roi_kernel<ScalarAccess<double>>, call, call, stream);
  }
}

int run_roi_pool_grad(const RoiPoolGrad& call, Stream stream) {
  switch (call.pool.element) {
    case Element::float16: return launch_bins(roi_grad_kernel<Half>, call, call.pool, stream);
    case Element::bfloat16: return launch_bins(roi_grad_kernel<Bfloat16>, call, call.pool, stream);
    case Element::float32: return launch_bins(roi_grad_kernel<float>, call, call.pool, stream);
    default: return launch_bins(roi_grad_kernel<double>, call, call.pool, stream);
  }
}

int run_suppression(const Suppression& call, Stream stream) {
  const int bytes = NmsBlock::shared_bytes(call.num_boxes);  // less than what every kernel may have
  nms_kernel<<<static_cast<unsigned>(call.problems), nms_threads, bytes, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace dcnzoo::cuda
