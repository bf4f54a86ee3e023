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
      "int[2] padding, int[2] dilation, Tensor? packed_weight=None, bool mask_is_logits=False, "
      "bool relu=False) -> Tensor");
  m.def("pack_deform_conv2d_weight(Tensor weight, int groups) -> Tensor");
  // Elements of what `pack_deform_conv2d_weight` makes of a weight of this shape.
  m.def("packed_deform_conv2d_numel(int[] weight_shape, int groups, bool float64) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
