// What the bindings of the deformable operators share: element types, layouts, tasks on PyTorch's threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "capability.h"
#include "memory.h"

namespace dcnzoo::cpu {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Element element_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Element::float32;
    case ScalarType::Double: return Element::float64;
    case ScalarType::BFloat16: return Element::bfloat16;
    case ScalarType::Half: return Element::float16;
    default: STD_TORCH_CHECK(false, "dcnzoo: tensors must be float32, float64, bfloat16 or float16");
  }
}

inline Element element_of(const Tensor& tensor) { return element_of(tensor.scalar_type()); }

// What an element type is computed with.
inline ScalarType computed_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// What packed weights consist of where products are to be computed in 16 bits.
inline ScalarType half_factor_type() {
  return half_kernels().factor == Element::float16 ? ScalarType::Half : ScalarType::BFloat16;
}

inline StridedMaps strided_maps(const Tensor& tensor) {
  return {tensor.const_data_ptr(), element_of(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          tensor.stride(3)};
}

inline Tensor converted(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

inline bool is_channels_last(const Tensor& tensor) {
  const int64_t c = tensor.size(1), h = tensor.size(2), w = tensor.size(3);
  return (c == 1 || tensor.stride(1) == 1) && (w == 1 || tensor.stride(3) == c) &&
         (h == 1 || tensor.stride(2) == c * w) && (tensor.size(0) == 1 || tensor.stride(0) == c * w * h);
}

// The tensor in this type, channels-last and dense.
inline Tensor channels_last(const Tensor& tensor, ScalarType type) {
  if (is_channels_last(tensor) && tensor.scalar_type() == type) return tensor;
  return torch::stable::to(tensor, type, std::nullopt, std::nullopt, std::nullopt, false, /*copy=*/true,
                           MemoryFormat::ChannelsLast);
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Threads take the next task as they become free, so that a slow or busy core delays nobody. Calls
// function(task, scratch); every thread has scratch memory of its own, a multiple of 64 bytes, aligned so.
template <class Function>
void run_tasks(int64_t tasks, size_t scratch_bytes, const Function& function) {
  const int64_t threads = torch::stable::get_num_threads();
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, tasks < threads ? tasks : threads, 1, [&](int64_t, int64_t) {
    const std::unique_ptr<void, Free> scratch(scratch_bytes == 0 ? nullptr : std::aligned_alloc(64, scratch_bytes));
    STD_TORCH_CHECK(scratch_bytes == 0 || scratch != nullptr, "dcnzoo: out of memory");
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) function(task, scratch.get());
  });
}

// (chunks, …) → their sum, added up in order, in the type of `like`.
inline Tensor sum_of_chunks(const Tensor& chunks, const Tensor& like) {
  const Tensor sum = chunks.size(0) == 1 ? torch::stable::select(chunks, 0, 0)
                                         : torch::stable::sum(chunks, std::vector<int64_t>{0});
  return converted(sum, like.scalar_type());
}

}  // namespace dcnzoo::cpu
