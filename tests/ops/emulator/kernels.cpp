// The kernels of csrc/cuda on an emulated GPU, for ctypes.
#include "deform_conv2d_plan.h"
#include "deform_conv2d_reduce.h"
#include "emulator.h"

namespace dcnzoo::cuda {
namespace {

template <class Block>
void launch(const DeformConv2d& call, const Plan& plan, unsigned seed) {
  emulated::launch(plan.blocks, plan.threads, plan.shared_bytes, seed,
                   [&](char* shared) { Block(call, plan.tiling, shared).run(); });
}

template <class Factors>
void launch_mma(const DeformConv2d& call, const Plan& plan, unsigned seed) {
  switch (plan.kernel) {
    case Kernel::mma_64x128: return launch<MmaBlock<Mma64x128<Factors>>>(call, plan, seed);
    case Kernel::mma_128x64: return launch<MmaBlock<Mma128x64<Factors>>>(call, plan, seed);
    case Kernel::mma_128x128: return launch<MmaBlock<Mma128x128<Factors>>>(call, plan, seed);
    default: return launch<MmaBlock<Mma128x256<Factors>>>(call, plan, seed);
  }
}

template <class T, class Factors>
void run(const DeformConv2d& call, const Plan& plan, unsigned seed) {
  if (plan.kernel == Kernel::simt) return launch<SimtBlock<Simt<T>>>(call, plan, seed);
  if (plan.kernel != Kernel::grouped) {
    launch_mma<Factors>(call, plan, seed);
  } else if (sizeof(T) == 4 && call.shape.group_channels() == 32) {
    launch<GroupedBlock<Grouped<Tf32Factors, 2>>>(call, plan, seed);
  } else {
    launch<GroupedBlock<Grouped<Factors, 1>>>(call, plan, seed);
  }
  if (call.partial == nullptr) return;
  emulated::launch(3, reduce_threads, 0, seed, [&](char*) { reduce_splits<T>(call, plan.tiling.splits); });
}

}  // namespace
}  // namespace dcnzoo::cuda

using namespace dcnzoo::cuda;

extern "C" {

void plan_deform_conv2d(const ConvShape* shape, int element, int allow_tf32, const Gpu* gpu, const Choice* forced,
                        Plan* plan) {
  *plan = Planner(*shape, static_cast<Element>(element), allow_tf32 != 0, *gpu).choose(forced);
}

void run_deform_conv2d(const DeformConv2d* call, const Plan* plan, unsigned seed) {
  switch (call->element) {
    case Element::float16: return run<Half, HalfFactors>(*call, *plan, seed);
    case Element::bfloat16: return run<Bfloat16, Bfloat16Factors>(*call, *plan, seed);
    case Element::float32: return run<float, Tf32Factors>(*call, *plan, seed);
    default: return launch<SimtBlock<Simt<double>>>(*call, *plan, seed);
  }
}

}  // extern "C"
