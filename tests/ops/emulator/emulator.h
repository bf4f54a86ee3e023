// Runs a kernel, a block after the other, on this CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace dcnzoo::cuda::emulated {

// `kernel` is called by every thread of every block with the block's shared memory.
void launch(int64_t blocks, int threads, size_t shared_bytes, unsigned seed, const std::function<void(char*)>& kernel);

}  // namespace dcnzoo::cuda::emulated
