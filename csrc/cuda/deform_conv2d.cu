// The kernels of the deformable convolution, and their launches.
#include <cuda_runtime.h>

#include "deform_conv2d_plan.h"
#include "deform_conv2d_reduce.h"

namespace dcnzoo::cuda {
namespace {

extern __shared__ __align__(1024) char shared_memory[];  // wgmma's swizzle counts from multiples of 1024

template <class Tile>
__global__ void __launch_bounds__(Tile::threads, Tile::resident)
    mma_kernel(const __grid_constant__ DeformConv2d call, const __grid_constant__ Tiling tiling) {
  MmaBlock<Tile>(call, tiling, shared_memory).run();
}

// Code for GPUs without wgmma is a stub that no block of the right size can be launched of.
template <class Tile>
__global__ void __launch_bounds__(has_wgmma ? Tile::threads : warp_threads, 1)
    wgmma_kernel(const __grid_constant__ DeformConv2d call, const __grid_constant__ Tiling tiling) {
  if constexpr (has_wgmma) {
    WgmmaBlock<Tile>(call, tiling, shared_memory).run();
  } else {
    stop();
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 3)
    grouped_kernel(const __grid_constant__ DeformConv2d call, const __grid_constant__ Tiling tiling) {
  GroupedBlock<Tile>(call, tiling, shared_memory).run();
}

template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 2)
    simt_kernel(const __grid_constant__ DeformConv2d call, const __grid_constant__ Tiling tiling) {
  SimtBlock<Tile>(call, tiling, shared_memory).run();
}

template <class T>
__global__ void __launch_bounds__(reduce_threads) reduce_kernel(const __grid_constant__ DeformConv2d call, int splits) {
  reduce_splits<T>(call, splits);
}

using KernelFunction = void (*)(DeformConv2d, Tiling);

template <class Factors>
KernelFunction mma_function(Kernel kernel) {
  switch (kernel) {
    case Kernel::mma_64x128: return mma_kernel<Mma64x128<Factors>>;
    case Kernel::mma_128x64: return mma_kernel<Mma128x64<Factors>>;
    case Kernel::mma_128x128: return mma_kernel<Mma128x128<Factors>>;
    default: return mma_kernel<Mma128x256<Factors>>;
  }
}

template <class Factors>
KernelFunction half_function(Kernel kernel) {
  switch (kernel) {
    case Kernel::wgmma_64x128: return wgmma_kernel<Wgmma64x128<Factors>>;
    case Kernel::wgmma_64x256: return wgmma_kernel<Wgmma64x256<Factors>>;
    case Kernel::wgmma_128x128: return wgmma_kernel<Wgmma128x128<Factors>>;
    case Kernel::wgmma_128x256: return wgmma_kernel<Wgmma128x256<Factors>>;
    default: return mma_function<Factors>(kernel);
  }
}

KernelFunction kernel_function(const DeformConv2d& call, const Plan& plan) {
  const bool simt = plan.kernel == Kernel::simt, grouped = plan.kernel == Kernel::grouped;
  switch (call.element) {
    case Element::float16:
      return simt      ? simt_kernel<Simt<Half>>
             : grouped ? grouped_kernel<Grouped<HalfFactors, 1>>
                       : half_function<HalfFactors>(plan.kernel);
    case Element::bfloat16:
      return simt      ? simt_kernel<Simt<Bfloat16>>
             : grouped ? grouped_kernel<Grouped<Bfloat16Factors, 1>>
                       : half_function<Bfloat16Factors>(plan.kernel);
    case Element::float32:
      if (simt) return simt_kernel<Simt<float>>;
      if (!grouped) return mma_function<Tf32Factors>(plan.kernel);
      return call.shape.group_channels() == 32 ? grouped_kernel<Grouped<Tf32Factors, 2>>
                                               : grouped_kernel<Grouped<Tf32Factors, 1>>;
    default: return simt_kernel<Simt<double>>;
  }
}

cudaError_t reduce(const DeformConv2d& call, int splits, cudaStream_t stream) {
  const int64_t threads = call.shape.pixels() * call.shape.out_channels / reduce_width(call.shape);
  const int blocks = static_cast<int>(smaller<int64_t>(ceil_div(threads, reduce_threads), 1 << 16));
  switch (call.element) {
    case Element::float16: reduce_kernel<Half><<<blocks, reduce_threads, 0, stream>>>(call, splits); break;
    case Element::bfloat16: reduce_kernel<Bfloat16><<<blocks, reduce_threads, 0, stream>>>(call, splits); break;
    default: reduce_kernel<float><<<blocks, reduce_threads, 0, stream>>>(call, splits); break;
  }
  return cudaGetLastError();
}

// Whether the current device, which has this number, runs code for sm_90a. Newer ones have no wgmma; those of its own
// capability may have got code for sm_90, or of PTX, in which the kernel is a stub.
cudaError_t query_wgmma(int device, bool& has) {
  int major = 0, minor = 0;
  has = false;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess || major != 9 || minor != 0) return error;
  using Tile = Wgmma128x128<HalfFactors>;
  cudaFuncAttributes code{};
  error = cudaFuncGetAttributes(&code, reinterpret_cast<const void*>(wgmma_kernel<Tile>));
  constexpr int stub_registers = 32;  // at most
  has = error == cudaSuccess && code.maxThreadsPerBlock >= Tile::threads && code.numRegs > stub_registers;
  return error;
}

}  // namespace

Plan plan_deform_conv2d(const ConvShape& shape, Element element, bool allow_tf32, const Gpu& gpu,
                        const Choice* forced) {
  return Planner(shape, element, allow_tf32, gpu).choose(forced);
}

int run_deform_conv2d(const DeformConv2d& call, const Plan& plan, const Gpu& gpu, Stream stream) {
  if (plan.blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const KernelFunction function = kernel_function(call, plan);
  // The limit is the function's, not the launch's: if it were less than the most, another thread could lower it
  // between this line and the launch.
  cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(function),
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, gpu.shared_bytes);
  if (error != cudaSuccess) return error;
  function<<<static_cast<unsigned>(plan.blocks), plan.threads, plan.shared_bytes, stream>>>(call, plan.tiling);
  error = cudaGetLastError();
  return error != cudaSuccess || call.partial == nullptr ? error : reduce(call, plan.tiling.splits, stream);
}

int query_gpu(int device, Gpu& gpu) {
  cudaError_t error = cudaDeviceGetAttribute(&gpu.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&gpu.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return error != cudaSuccess ? error : query_wgmma(device, gpu.wgmma);
}

}  // namespace dcnzoo::cuda
