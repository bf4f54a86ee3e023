// Binds what follows a library's convolution to PyTorch tensors.
#include "binding.h"

namespace dcnzoo::cuda {
namespace {

const void* chunks_of(const Tensor& tensor, const Device& device, const Tensor& like, const char* name) {
  device.check(tensor, name);
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), name, " must be of the type of the maps");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % chunk_bytes == 0, name, " must be aligned");
  return tensor.const_data_ptr();
}

void bias_relu_(Tensor maps, const Tensor& bias, const std::optional<Tensor>& added, bool relu) {
  STD_TORCH_CHECK(maps.dim() == 4 && is_channels_last(maps), "bias_relu_: maps must be 4-d and channels-last");
  const Device device(maps);
  BiasRelu call{};
  call.element = element_of(maps, "bias_relu_: maps");
  STD_TORCH_CHECK(call.element != Element::float64, "bias_relu_: float64 is not supported");
  const int64_t chunk_elements = chunk_bytes / element_bytes(call.element);
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == maps.size(1) && bias.size(0) % chunk_elements == 0 &&
                      bias.is_contiguous(),
                  "bias_relu_: bias must be (C,), and C a multiple of ", chunk_elements);
  (void)chunks_of(maps, device, maps, "bias_relu_: maps");
  call.maps = maps.mutable_data_ptr();
  call.bias = chunks_of(bias, device, maps, "bias_relu_: bias");
  if (added) {
    bool fits = added->dim() == 4 && is_channels_last(*added);
    for (int axis = 0; axis < 4 && fits; ++axis) fits = added->size(axis) == maps.size(axis);
    STD_TORCH_CHECK(fits, "bias_relu_: what is added must have the shape of the maps, channels-last");
    call.added = chunks_of(*added, device, maps, "bias_relu_: what is added");
  }
  call.bias_chunks = maps.size(1) / chunk_elements;
  call.chunks = maps.numel() / chunk_elements;
  call.relu = relu;
  if (call.chunks > 0) check_cuda(run_bias_relu(call, device.stream()));
}

}  // namespace
}  // namespace dcnzoo::cuda

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) { m.impl("bias_relu_", TORCH_BOX(&dcnzoo::cuda::bias_relu_)); }
