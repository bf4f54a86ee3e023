// The arguments of a deformable convolution, checked.
#pragma once

#include <vector>

#include "binding.h"

namespace dcnzoo::cpu {

// Sizes of a call; throws unless the tensors fit together. All that the kernels read is checked here.
ConvShape conv_shape(const Tensor& input, const Tensor& weight, const Tensor& offset, const std::optional<Tensor>& mask,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation);

}  // namespace dcnzoo::cpu
