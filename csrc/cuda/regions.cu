// The kernels of what detectors do with regions, and their launches.
#include <cuda_runtime.h>

#include "nms.h"
#include "roi_pool.h"

namespace dcnzoo::cuda {
namespace {

extern __shared__ __align__(128) char shared_memory[];

template <class T, class Load>
__global__ void __launch_bounds__(roi_threads) roi_kernel(const __grid_constant__ RoiPool call) {
  RoiWarp<T, Load>(call).run();
}

__global__ void __launch_bounds__(nms_threads) nms_kernel(const __grid_constant__ Suppression call) {
  NmsBlock(call, shared_memory).run();
}

template <class Factors>
cudaError_t launch_roi_pool(const RoiPool& call, cudaStream_t stream) {
  using T = typename Factors::Storage;
  const int64_t blocks = ceil_div(call.num_rois * call.pooled_h * call.pooled_w, roi_bins);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const bool whole_chunks = call.channels % ChunkLoad<Factors>::elements == 0;
  const auto kernel = whole_chunks ? roi_kernel<T, ChunkLoad<Factors>> : roi_kernel<T, ScalarLoad<T>>;
  kernel<<<static_cast<unsigned>(blocks), roi_threads, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace

int run_roi_pool(const RoiPool& call, Stream stream) {
  switch (call.element) {
    case Element::float16: return launch_roi_pool<HalfFactors>(call, stream);
    case Element::bfloat16: return launch_roi_pool<Bfloat16Factors>(call, stream);
    default: return launch_roi_pool<Tf32Factors>(call, stream);
  }
}

int run_suppression(const Suppression& call, Stream stream) {
  const int bytes = NmsBlock::shared_bytes(call.num_boxes);
  const cudaError_t error = cudaFuncSetAttribute(nms_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  nms_kernel<<<static_cast<unsigned>(call.problems), nms_threads, bytes, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace dcnzoo::cuda
