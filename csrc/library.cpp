// The schemas of all operators, and the Python module whose import registers them.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/capability.h"

namespace {

std::string cpu_capability() { return dcnzoo::cpu::capability().name; }

}  // namespace

STABLE_TORCH_LIBRARY(dcnzoo, m) {
  // Name of the set of CPU kernels in use.
  m.def("cpu_capability() -> str");

  // Deformable convolution; the result is channels-last. `packed_weight` is what
  // `pack_deform_conv2d_weight` made of `weight`: pass it to save the packing on every call.
  // With `mask_is_logits` the mask goes through a sigmoid first.
  m.def(
      "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor? mask, Tensor? bias, int[2] stride, "
      "int[2] padding, int[2] dilation, *, Tensor? packed_weight=None, bool mask_is_logits=False, "
      "bool relu=False) -> Tensor");
  m.def("pack_deform_conv2d_weight(Tensor weight, int groups) -> Tensor");

  // 3×3 convolution, stride 1, padding 1, by Winograd's F(4×4, 3×3). `packed_weight` here and below
  // is what the `pack` operator of the same name made of the layer's weight; results are channels-last.
  m.def("pack_winograd_weight(Tensor weight) -> Tensor");
  m.def(
      "winograd_conv2d(Tensor input, Tensor packed_weight, Tensor? bias, int out_channels, bool relu) -> "
      "Tensor");

  // Linear layer on rows, 1×1 convolution on maps, and the latter added to `output`: before the ReLU.
  m.def("pack_linear_weight(Tensor weight) -> Tensor");
  m.def("linear(Tensor input, Tensor packed_weight, Tensor? bias, int out_channels, bool relu) -> Tensor");
  m.def(
      "pointwise_conv2d(Tensor input, Tensor packed_weight, Tensor? bias, int out_channels, int stride, bool relu) -> "
      "Tensor");
  m.def(
      "pointwise_conv2d_add_(Tensor(a!) output, Tensor input, Tensor packed_weight, Tensor? bias, bool relu) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
