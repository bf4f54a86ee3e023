// The kernels of the derivatives of the deformable convolution, and their launches.
#include <cuda_runtime.h>

#include "deform_conv2d_columns.h"

namespace dcnzoo::cuda {
namespace {

template <class Access>
__global__ void __launch_bounds__(column_threads) sample_kernel(const __grid_constant__ DeformConv2dColumns work) {
  ColumnWarp<Access>(work).sample();
}

template <class T>
__global__ void __launch_bounds__(column_threads) scatter_kernel(const __grid_constant__ DeformConv2dColumns work) {
  ColumnWarp<ScalarAccess<T>>(work).scatter();
}

using KernelFunction = void (*)(DeformConv2dColumns);

int launch(KernelFunction kernel, const DeformConv2dColumns& work, cudaStream_t stream) {
  constexpr int64_t most_blocks = 1 << 20;
  const ConvShape& shape = work.call.shape;
  const int64_t warps = work.pixels * shape.taps() * shape.deform_groups;
  const int64_t blocks = smaller(ceil_div(warps, column_warps), most_blocks);
  kernel<<<static_cast<unsigned>(blocks), column_threads, 0, stream>>>(work);
  return cudaGetLastError();
}

template <class Factors>
int launch_sample(const DeformConv2dColumns& work, cudaStream_t stream) {
  using T = typename Factors::Storage;
  return launch(has_whole_chunks<Factors>(work.call.shape) ? sample_kernel<ChunkAccess<Factors>>
                                                           : sample_kernel<ScalarAccess<T>>,
                work, stream);
}

}  // namespace

int sample_columns(const DeformConv2dColumns& work, Stream stream) {
  switch (work.call.element) {
    case Element::float16: return launch_sample<HalfFactors>(work, stream);
    case Element::bfloat16: return launch_sample<Bfloat16Factors>(work, stream);
    case Element::float32: return launch_sample<Tf32Factors>(work, stream);
    default: return launch(sample_kernel<ScalarAccess<double>>, work, stream);
  }
}

int scatter_columns(const DeformConv2dColumns& work, Stream stream) {
  switch (work.call.element) {
    case Element::float16: return launch(scatter_kernel<Half>, work, stream);
    case Element::bfloat16: return launch(scatter_kernel<Bfloat16>, work, stream);
    case Element::float32: return launch(scatter_kernel<float>, work, stream);
    default: return launch(scatter_kernel<double>, work, stream);
  }
}

}  // namespace dcnzoo::cuda
