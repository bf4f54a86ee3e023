// The kernel of what follows a library's convolution, and its launch.
#include <cuda_runtime.h>

#include "bias_relu.h"

namespace dcnzoo::cuda {
namespace {

template <class Words>
__global__ void __launch_bounds__(bias_relu_threads) bias_relu_kernel(const __grid_constant__ BiasRelu call) {
  add_bias_relu<Words>(call);
}

}  // namespace

int run_bias_relu(const BiasRelu& call, Stream stream) {
  const auto kernel = call.element == Element::float16    ? bias_relu_kernel<HalfFactors>
                      : call.element == Element::bfloat16 ? bias_relu_kernel<Bfloat16Factors>
                                                          : bias_relu_kernel<FloatWords>;
  const int64_t blocks = smaller<int64_t>(ceil_div(call.chunks, bias_relu_threads), 1 << 16);
  kernel<<<static_cast<unsigned>(blocks), bias_relu_threads, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace dcnzoo::cuda
