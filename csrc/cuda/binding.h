// What the bindings of the CUDA kernels to PyTorch tensors share.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace dcnzoo::cuda {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_cuda(int error) {
  char* message = nullptr;
  // PyTorch's macro for this check has another name in 2.11
  STD_TORCH_CHECK(torch_c10_cuda_check_msg(error, __FILE__, __func__, __LINE__, /*include_device_assertions=*/true,
                                           &message) == AOTI_TORCH_SUCCESS,
                  "a CUDA error could not be looked up: ", error);
  if (message == nullptr) return;
  const std::string text = message;
  torch_c10_cuda_free_error_msg(message);
  throw std::runtime_error(text);
}

// Makes the GPU of a tensor the current one, as long as this lives.
class Device {
 public:
  explicit Device(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {}

  Stream stream() const {
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream) == AOTI_TORCH_SUCCESS,
                    "the current stream is not to be had");
    return static_cast<Stream>(stream);
  }

  // Asked once, since the answer takes longer than a small kernel.
  Gpu gpu() const {
    static std::mutex mutex;
    static std::map<int32_t, Gpu> known;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(index_);
    if (found != known.end()) return found->second;
    Gpu gpu{};
    check_cuda(query_gpu(index_, gpu));
    return known[index_] = gpu;
  }

  void check(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == index_, name, " must be on the GPU of the input");
  }

 private:
  const int32_t index_;
  const torch::stable::accelerator::DeviceGuard guard_;
};

inline Element element_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return Element::float16;
    case ScalarType::BFloat16: return Element::bfloat16;
    case ScalarType::Float: return Element::float32;
    case ScalarType::Double: return Element::float64;
    default: STD_TORCH_CHECK(false, name, " must be a tensor of floating point numbers");
  }
}

inline StridedMaps strided_maps(const Tensor& tensor, const char* name) {
  return {tensor.const_data_ptr(), element_of(tensor, name), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          tensor.stride(3)};
}

inline bool is_channels_last(const Tensor& tensor) {
  const int64_t n = tensor.size(0), c = tensor.size(1), h = tensor.size(2), w = tensor.size(3);
  return (c == 1 || tensor.stride(1) == 1) && (w == 1 || tensor.stride(3) == c) &&
         (h == 1 || tensor.stride(2) == c * w) && (n == 1 || tensor.stride(0) == c * w * h);
}

// A 4-d tensor whose memory is dense, channels-last, and aligned to what a thread loads at once.
inline Tensor channels_last(const Tensor& tensor) {
  const bool aligned = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  if (aligned && is_channels_last(tensor)) return tensor;
  return torch::stable::to(tensor, std::nullopt, std::nullopt, std::nullopt, std::nullopt, false, /*copy=*/true,
                           MemoryFormat::ChannelsLast);
}

// A tensor whose memory is dense and aligned to what a thread loads at once.
inline Tensor aligned(const Tensor& tensor) {
  const Tensor dense = torch::stable::contiguous(tensor);
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0 ? dense : torch::stable::clone(dense);
}

inline Tensor empty_maps(const std::vector<int64_t>& size, const Tensor& like,
                         std::optional<ScalarType> type = std::nullopt) {
  return torch::stable::empty(size, type.value_or(like.scalar_type()), std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

}  // namespace dcnzoo::cuda
