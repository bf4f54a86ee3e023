// Memory of the maps between the layers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace dcnzoo::cpu {

// Uninitialised tensors: (N, C, H, W) in channels-last order, and (rows, columns).
//
// Large ones come from memory that earlier tensors left behind: the system would hand out new pages for
// each of them, and to clear and map those takes a quarter of a detector's time.
torch::stable::Tensor empty_maps(int64_t n, int64_t c, int64_t h, int64_t w, torch::headeronly::ScalarType type);
torch::stable::Tensor empty_matrix(int64_t rows, int64_t columns, torch::headeronly::ScalarType type);

}  // namespace dcnzoo::cpu
