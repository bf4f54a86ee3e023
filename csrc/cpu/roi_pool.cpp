// Binds RoI pooling of the CPU kernels, and its gradients, to PyTorch tensors.
#include <tuple>

#include "binding.h"

namespace dcnzoo::cpu {
namespace {

constexpr int64_t rois_per_task = 4;
constexpr double most_samples = 65536;  // per axis of a bin: a larger RoI is a mistake, and would take for ever

template <class T>
void check_roi(const void* data, const RoiPool& call, int64_t images) {
  const T* const roi = static_cast<const T*>(data);
  const double limit_w = most_samples * static_cast<double>(call.pooled_w) / call.spatial_scale;
  const double limit_h = most_samples * static_cast<double>(call.pooled_h) / call.spatial_scale;
  STD_TORCH_CHECK(roi[0] >= 0 && roi[0] < static_cast<T>(images), "roi_pool: image index out of range");
  STD_TORCH_CHECK(roi[3] - roi[1] <= limit_w && roi[4] - roi[2] <= limit_h, "roi_pool: RoI too large or not a number");
}

// The RoIs (R, 5), checked and dense, in the type that is computed with.
struct Rois {
  Tensor tensor;
  int64_t count, bytes;  // of one RoI

  Rois(const Tensor& rois, ScalarType input_type, const std::vector<int64_t>& output_size)
      : tensor(torch::stable::contiguous(converted(rois, computed_type(input_type)))),
        count(rois.dim() == 2 ? rois.size(0) : 0),
        bytes(5 * static_cast<int64_t>(tensor.element_size())) {
    element_of(rois);  // floating point
    STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "roi_pool: rois must be (R, 5)");
    STD_TORCH_CHECK(output_size.at(0) > 0 && output_size.at(1) > 0, "roi_pool: output_size must be positive");
  }

  const void* at(int64_t index) const { return static_cast<const char*>(tensor.const_data_ptr()) + index * bytes; }

  void check(int64_t index, const RoiPool& call, int64_t images) const {
    if (tensor.scalar_type() == ScalarType::Double) return check_roi<double>(at(index), call, images);
    check_roi<float>(at(index), call, images);
  }
};

// What all RoIs of a feature map share; `map` is its dense form, to be kept as long as the call.
RoiPool map_call(const Tensor& map, const std::vector<int64_t>& output_size, double spatial_scale, double gamma) {
  STD_TORCH_CHECK(spatial_scale > 0, "roi_pool: spatial_scale must be positive");
  RoiPool call{};
  call.input = map.const_data_ptr();
  call.channels = map.size(1), call.height = map.size(2), call.width = map.size(3);
  call.pooled_h = output_size.at(0), call.pooled_w = output_size.at(1);
  call.spatial_scale = spatial_scale, call.gamma = gamma;
  return call;
}

Tensor dense_map(const Tensor& input, ScalarType type) {
  element_of(input);  // floating point
  STD_TORCH_CHECK(input.dim() == 4 && input.numel() > 0, "roi_pool: input must have 4 dimensions and elements");
  return channels_last(input, type);
}

Tensor dense_offset(const Tensor& offset, const Rois& rois, const RoiPool& call) {
  element_of(offset);  // floating point
  STD_TORCH_CHECK(offset.dim() == 4 && offset.size(0) == rois.count && offset.size(1) == 2 &&
                      offset.size(2) == call.pooled_h && offset.size(3) == call.pooled_w,
                  "roi_pool: offset does not fit");
  return torch::stable::contiguous(converted(offset, rois.tensor.scalar_type()));
}

// Calls `pool(begin, end, scratch)` for a few RoIs at a time, on all threads.
template <class Function>
void for_rois(int64_t num_rois, size_t scratch_bytes, const Function& pool) {
  const int64_t tasks = (num_rois + rois_per_task - 1) / rois_per_task;
  run_tasks(tasks, (scratch_bytes + 63) / 64 * 64, [&](int64_t task, void* scratch) {
    const int64_t begin = task * rois_per_task, end = begin + rois_per_task;
    pool(begin, end < num_rois ? end : num_rois, scratch);
  });
}

// A call over the RoIs of one map, and what it points to.
struct MapCall {
  Tensor map;
  Rois rois;
  std::optional<Tensor> offset;
  RoiPool call;

  MapCall(const Tensor& input, const Tensor& given_rois, const std::optional<Tensor>& given_offset,
          const std::vector<int64_t>& output_size, double spatial_scale, double gamma, ScalarType type)
      : map(dense_map(input, type)),
        rois(given_rois, type, output_size),
        call(map_call(map, output_size, spatial_scale, gamma)) {
    call.rois = rois.at(0);
    call.num_rois = rois.count;
    if (given_offset) {
      offset = dense_offset(*given_offset, rois, call);
      call.offset = offset->const_data_ptr();
    }
    for (int64_t i = 0; i < rois.count; ++i) rois.check(i, call, map.size(0));
  }
};

Tensor roi_pool(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
                const std::vector<int64_t>& output_size, double spatial_scale, double gamma) {
  const ScalarType type = input.scalar_type();
  MapCall map(input, rois, offset, output_size, spatial_scale, gamma, type);
  const Tensor output = empty_maps(rois.size(0), input.size(1), output_size[0], output_size[1], type);
  map.call.output = output.mutable_data_ptr();
  const RoiPoolKernels& kernels = capability().kernels->roi_pool[element_of(type)];
  for_rois(map.rois.count, kernels.scratch_bytes(map.call), [&](int64_t begin, int64_t end, void* scratch) {
    kernels.run(map.call, begin, end, scratch);
  });
  return output;
}

std::tuple<Tensor, Tensor> roi_pool_grads(const Tensor& grad, const Tensor& input, const Tensor& rois,
                                          const std::optional<Tensor>& offset, const std::vector<int64_t>& output_size,
                                          double spatial_scale, double gamma) {
  const ScalarType type = computed_type(input.scalar_type());
  const MapCall map(input, rois, offset, output_size, spatial_scale, gamma, type);
  element_of(grad);  // floating point
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == map.rois.count && grad.size(1) == input.size(1) &&
                      grad.size(2) == output_size[0] && grad.size(3) == output_size[1],
                  "roi_pool: the gradient does not fit the output");
  const Tensor dense_grad = channels_last(grad, type);
  Tensor grad_input = empty_maps(input.size(0), input.size(1), input.size(2), input.size(3), type);
  torch::stable::zero_(grad_input);
  RoiPoolGrad call{map.call, input.size(0), dense_grad.const_data_ptr(), grad_input.mutable_data_ptr(), nullptr};
  const RoiPoolGradKernels& kernels = capability().kernels->roi_pool.grad(element_of(type));
  const int64_t chunks = kernels.chunks(call, static_cast<int>(torch::stable::get_num_threads()));
  const int64_t offsets = offset ? 2 : 0;
  const Tensor grad_offset =
      torch::stable::empty({chunks, map.rois.count, offsets, output_size[0], output_size[1]}, type);
  call.grad_offset = offset ? grad_offset.mutable_data_ptr() : nullptr;
  run_tasks(call.images * chunks, 0, [&](int64_t task, void*) { kernels.run(call, chunks, task); });
  return {converted(grad_input, input.scalar_type()), sum_of_chunks(grad_offset, offset ? *offset : input)};
}

Tensor roi_align_pyramid(const std::vector<Tensor>& inputs, const Tensor& rois, const Tensor& levels,
                         const std::vector<double>& spatial_scales, const std::vector<int64_t>& output_size,
                         bool half_output) {
  STD_TORCH_CHECK(!inputs.empty() && inputs.size() == spatial_scales.size(), "roi_pool: one spatial_scale per level");
  const ScalarType type = inputs[0].scalar_type();
  STD_TORCH_CHECK(!half_output || type == ScalarType::Float, "roi_pool: only what is pooled in float32 is rounded");
  const Rois boxes(rois, type, output_size);
  STD_TORCH_CHECK(levels.scalar_type() == ScalarType::Long && levels.dim() == 1 && levels.size(0) == boxes.count,
                  "roi_pool: levels must be (R,) int64");
  const Tensor dense_levels = torch::stable::contiguous(levels);
  std::vector<Tensor> maps;
  std::vector<RoiPool> calls;
  for (size_t level = 0; level < inputs.size(); ++level) {
    maps.push_back(dense_map(inputs[level], type));
    STD_TORCH_CHECK(maps[level].size(0) == maps[0].size(0) && maps[level].size(1) == maps[0].size(1) &&
                        inputs[level].scalar_type() == type,
                    "roi_pool: levels differ in images, channels or type");
    calls.push_back(map_call(maps[level], output_size, spatial_scales[level], 0.0));
  }
  const int64_t channels = maps[0].size(1);
  const Tensor output = empty_maps(boxes.count, channels, output_size[0], output_size[1], half_output ? half_factor_type() : type);
  const int64_t* const level_data = static_cast<const int64_t*>(dense_levels.const_data_ptr());
  for (int64_t i = 0; i < boxes.count; ++i) {
    STD_TORCH_CHECK(level_data[i] >= 0 && level_data[i] < static_cast<int64_t>(calls.size()), "roi_pool: no such level");
    boxes.check(i, calls[static_cast<size_t>(level_data[i])], maps[0].size(0));
  }
  char* const output_data = static_cast<char*>(output.mutable_data_ptr());
  const int64_t roi_bytes = channels * output_size[0] * output_size[1] * static_cast<int64_t>(output.element_size());
  const RoiPoolKernels& kernels = half_output ? half_kernels().roi_pool : capability().kernels->roi_pool[element_of(type)];
  for_rois(boxes.count, kernels.scratch_bytes(calls[0]), [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t i = begin; i < end; ++i) {
      RoiPool call = calls[static_cast<size_t>(level_data[i])];
      call.rois = boxes.at(i), call.num_rois = 1;
      call.output = output_data + i * roi_bytes;
      kernels.run(call, 0, 1, scratch);
    }
  });
  return output;
}

}  // namespace
}  // namespace dcnzoo::cpu

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("roi_pool", TORCH_BOX(&dcnzoo::cpu::roi_pool));
  m.impl("roi_pool_grads", TORCH_BOX(&dcnzoo::cpu::roi_pool_grads));
  m.impl("roi_align_pyramid", TORCH_BOX(&dcnzoo::cpu::roi_align_pyramid));
}
