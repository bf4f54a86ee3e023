// The kernels of csrc/cuda as compiled to PTX, with the interface of tests/ops/emulator/kernels.cpp.
//
// Plans come from the host's code, the kernels themselves from the text alone.
#include <cxxabi.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <typeinfo>

#include "../machine.h"
#include "bias_relu.h"
#include "deform_conv2d_columns.h"
#include "deform_conv2d_plan.h"
#include "deform_conv2d_reduce.h"
#include "nms.h"
#include "roi_pool.h"

namespace dcnzoo::cuda {
namespace {

std::string demangle(const char* name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> found(abi::__cxa_demangle(name, nullptr, nullptr, &status), std::free);
  return found ? found.get() : name;
}

const std::string half = "dcnzoo::cuda::Half", bfloat16 = "dcnzoo::cuda::Bfloat16";

// A template argument as nvcc knows it: CUDA has types of its own for 16 bits.
template <class T>
std::string name_of() {
  std::string name = demangle(typeid(T).name());
  for (const auto& [ours, theirs] : {std::pair{half, "__half"}, std::pair{bfloat16, "__nv_bfloat16"}}) {
    const size_t at = name.find(ours), end = at + ours.size();
    const bool is_longer = end < name.size() && name[end] != '>' && name[end] != ',';  // HalfFactors
    if (at != std::string::npos && !is_longer) name.replace(at, ours.size(), theirs);
  }
  return name;
}

uint64_t order = 0;  // added to seeds

// By demangled names, without their namespace. Modules stay until the program ends.
class Kernels {
 public:
  void add(const std::string& text) {
    char error[1024];
    PtxModule* module = ptx_load(text.c_str(), error, sizeof(error));
    if (module == nullptr) throw std::runtime_error(error);
    const std::string start = ".entry ";
    for (size_t at = text.find(start); at != std::string::npos; at = text.find(start, at)) {
      at += start.size();
      const std::string name = text.substr(at, text.find_first_of("( \t\n", at) - at);
      std::string shown = demangle(name.c_str());
      const std::string space = "(anonymous namespace)::";
      shown = shown.substr(shown.find(space) + space.size());
      shown = shown.substr(0, shown.rfind('('));
      kernels_[shown] = {module, name};
    }
  }

  template <class... Arguments>
  void launch(const std::string& kernel, int64_t blocks, int threads, int shared_bytes, uint64_t seed,
              const Arguments&... arguments) {
    const auto found = kernels_.find(kernel);
    if (found == kernels_.end()) throw std::runtime_error("there is no kernel " + kernel);
    const uint32_t grid[3] = {static_cast<uint32_t>(blocks), 1, 1}, block[3] = {static_cast<uint32_t>(threads), 1, 1};
    void* params[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    char error[4096];
    const auto& [module, name] = found->second;
    if (ptx_launch(module, name.c_str(), grid, block, static_cast<uint32_t>(shared_bytes), params, seed + order, error,
                   sizeof(error)) != 0) {
      throw std::runtime_error(kernel + ": " + error);
    }
  }

 private:
  std::map<std::string, std::pair<PtxModule*, std::string>> kernels_;
};

Kernels kernels;
std::string last_error;
std::map<uint64_t, uint64_t> memory;  // begin and end of what kernels may touch

int is_allowed(uint64_t address, size_t bytes, int) {
  const auto next = memory.upper_bound(address);
  return next != memory.begin() && address + bytes <= std::prev(next)->second;
}

template <class Function>
void guarded(Function function) {
  try {
    function();
  } catch (const std::exception& error) {
    if (last_error.empty()) last_error = error.what();
  }
}

template <class Tile>
void launch_tile(const char* kernel, const DeformConv2d& call, const Plan& plan, unsigned seed) {
  kernels.launch(std::string(kernel) + "<" + name_of<Tile>() + " >", plan.blocks, plan.threads, plan.shared_bytes,
                 seed, call, plan.tiling);
}

template <class Factors>
void launch_mma(const DeformConv2d& call, const Plan& plan, unsigned seed) {
  switch (plan.kernel) {
    case Kernel::mma_64x128: return launch_tile<Mma64x128<Factors>>("mma_kernel", call, plan, seed);
    case Kernel::mma_128x64: return launch_tile<Mma128x64<Factors>>("mma_kernel", call, plan, seed);
    case Kernel::mma_128x128: return launch_tile<Mma128x128<Factors>>("mma_kernel", call, plan, seed);
    default: return launch_tile<Mma128x256<Factors>>("mma_kernel", call, plan, seed);
  }
}

// The kernels that need half the bits of float32.
template <class Factors>
bool launch_wgmma(const DeformConv2d& call, const Plan& plan, unsigned seed) {
  const auto launch = [&](auto tile) {
    launch_tile<decltype(tile)>("wgmma_kernel", call, plan, seed);
    return true;
  };
  if constexpr (Factors::elements == 2) {
    switch (plan.kernel) {
      case Kernel::wgmma_64x128: return launch(Wgmma64x128<Factors>{});
      case Kernel::wgmma_64x256: return launch(Wgmma64x256<Factors>{});
      case Kernel::wgmma_128x128: return launch(Wgmma128x128<Factors>{});
      case Kernel::wgmma_128x256: return launch(Wgmma128x256<Factors>{});
      default: break;
    }
  }
  return false;
}

template <class T, class Factors>
void run(const DeformConv2d& call, const Plan& plan, unsigned seed) {
  if (plan.kernel == Kernel::simt) return launch_tile<Simt<T>>("simt_kernel", call, plan, seed);
  if (plan.kernel == Kernel::grouped) {
    sizeof(T) == 4 && call.shape.group_channels() == 32
        ? launch_tile<Grouped<Tf32Factors, 2>>("grouped_kernel", call, plan, seed)
        : launch_tile<Grouped<Factors, 1>>("grouped_kernel", call, plan, seed);
  } else if (!launch_wgmma<Factors>(call, plan, seed)) {
    launch_mma<Factors>(call, plan, seed);
  }
  if (call.partial == nullptr) return;
  kernels.launch("reduce_kernel<" + name_of<T>() + ">", 3, reduce_threads, 0, seed, call, plan.tiling.splits);
}

template <class T>
void scatter(const DeformConv2dColumns& work, unsigned seed) {
  kernels.launch("scatter_kernel<" + name_of<T>() + ">", 3, column_threads, 0, seed, work);
}

template <class Access>
void sample(const DeformConv2dColumns& work, unsigned seed) {
  kernels.launch("sample_kernel<" + name_of<Access>() + " >", 3, column_threads, 0, seed, work);
}

template <class Factors>
void columns(const DeformConv2dColumns& work, bool is_scatter, unsigned seed) {
  using T = typename Factors::Storage;
  if (is_scatter) return scatter<T>(work, seed);
  has_whole_chunks<Factors>(work.call.shape) ? sample<ChunkAccess<Factors>>(work, seed)
                                             : sample<ScalarAccess<T>>(work, seed);
}

template <class Call>
void launch_bins(const std::string& kernel, const Call& call, const RoiPool& pool) {
  kernels.launch(kernel, ceil_div(pool.num_rois * pool.pooled_h * pool.pooled_w, roi_bins), roi_threads, 0, 0, call);
}

template <class Factors>
void pool(const RoiPool& call) {
  using T = typename Factors::Storage;
  const bool whole_chunks = call.channels % ChunkAccess<Factors>::elements == 0;
  const std::string access = whole_chunks ? name_of<ChunkAccess<Factors>>() : name_of<ScalarAccess<T>>();
  launch_bins("roi_kernel<" + access + " >", call, call);
}

}  // namespace
}  // namespace dcnzoo::cuda

using namespace dcnzoo::cuda;

extern "C" {

// Empty where all went well; else what went wrong first since it was asked for.
const char* take_error() {
  static std::string taken;
  taken = std::move(last_error);
  last_error.clear();
  return taken.c_str();
}

// Of PTX; they take the place of those of the same names.
void load_kernels(const char* text) {
  guarded([&] { kernels.add(text); });
}

// Lets all kernels run in another order.
void set_order(uint64_t seed) { order = seed; }

void allow_memory(uint64_t address, uint64_t bytes) {
  memory[address] = address + bytes;
  ptx_set_memory_check(is_allowed);
}
void forbid_memory(uint64_t address) { memory.erase(address); }

void plan_deform_conv2d(const ConvShape* shape, int element, int allow_tf32, const Gpu* gpu, const Choice* forced,
                        Plan* plan) {
  *plan = Planner(*shape, static_cast<Element>(element), allow_tf32 != 0, *gpu).choose(forced);
}

void run_deform_conv2d(const DeformConv2d* call, const Plan* plan, unsigned seed) {
  guarded([&] {
    switch (call->element) {
      case Element::float16: return run<Half, HalfFactors>(*call, *plan, seed);
      case Element::bfloat16: return run<Bfloat16, Bfloat16Factors>(*call, *plan, seed);
      case Element::float32: return run<float, Tf32Factors>(*call, *plan, seed);
      default: return launch_tile<Simt<double>>("simt_kernel", *call, *plan, seed);
    }
  });
}

void run_columns(const DeformConv2dColumns* work, int is_scatter, unsigned seed) {
  guarded([&] {
    switch (work->call.element) {
      case Element::float16: return columns<HalfFactors>(*work, is_scatter != 0, seed);
      case Element::bfloat16: return columns<Bfloat16Factors>(*work, is_scatter != 0, seed);
      case Element::float32: return columns<Tf32Factors>(*work, is_scatter != 0, seed);
      default: return is_scatter != 0 ? scatter<double>(*work, seed) : sample<ScalarAccess<double>>(*work, seed);
    }
  });
}

void run_roi_pool(const RoiPool* call) {
  guarded([&] {
    switch (call->element) {
      case Element::float16: return pool<HalfFactors>(*call);
      case Element::bfloat16: return pool<Bfloat16Factors>(*call);
      case Element::float32: return pool<Tf32Factors>(*call);
      default: return launch_bins("roi_kernel<" + name_of<ScalarAccess<double>>() + " >", *call, *call);
    }
  });
}

void run_roi_pool_grad(const RoiPoolGrad* call) {
  guarded([&] {
    switch (call->pool.element) {
      case Element::float16: return launch_bins("roi_grad_kernel<__half>", *call, call->pool);
      case Element::bfloat16: return launch_bins("roi_grad_kernel<__nv_bfloat16>", *call, call->pool);
      case Element::float32: return launch_bins("roi_grad_kernel<float>", *call, call->pool);
      default: return launch_bins("roi_grad_kernel<double>", *call, call->pool);
    }
  });
}

void run_suppression(const Suppression* call, unsigned seed) {
  guarded([&] {
    kernels.launch("nms_kernel", call->problems, nms_threads, NmsBlock::shared_bytes(call->num_boxes), seed, *call);
  });
}

void run_bias_relu(const BiasRelu* call, int64_t blocks) {
  const auto launch = [&](const std::string& words) {
    kernels.launch("bias_relu_kernel<" + words + ">", blocks, bias_relu_threads, 0, 0, *call);
  };
  guarded([&] {
    switch (call->element) {
      case Element::float16: return launch(name_of<HalfFactors>());
      case Element::bfloat16: return launch(name_of<Bfloat16Factors>());
      default: return launch(name_of<FloatWords>());
    }
  });
}

}  // extern "C"
