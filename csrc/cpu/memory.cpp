// An arena for large tensors: address-ordered first fit with coalescing in one reserved range of addresses.
#include "memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <torch/csrc/stable/ops.h>

#include <map>
#include <mutex>
#include <optional>
#include <vector>

namespace dcnzoo::cpu {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

class Arena {
 public:
  // Null when there is no room; the caller then asks PyTorch.
  void* take(size_t bytes) {
    bytes = (bytes + unit - 1) / unit * unit;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto range = free_.begin(); range != free_.end(); ++range) {
      if (range->second < bytes) continue;
      char* const begin = range->first;
      const size_t rest = range->second - bytes;
      free_.erase(range);
      if (rest > 0) free_.emplace(begin + bytes, rest);
      used_.emplace(begin, bytes);
      if (begin + bytes > peak_) peak_ = begin + bytes;
      return begin;
    }
    return nullptr;
  }

  void give_back(void* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto used = used_.find(static_cast<char*>(memory));
    auto range = free_.emplace(used->first, used->second).first;
    used_.erase(used);
    join(range, std::next(range));
    if (range != free_.begin()) join(std::prev(range), range);
    if (used_.empty()) return_surplus();
  }

  static Arena& get() {
    static Arena* const arena = new Arena;  // never destroyed: tensors may outlive static objects
    return *arena;
  }

 private:
  static constexpr size_t unit = 4096;

  // Addresses only: pages come with the first use. Where even those are limited, PyTorch allocates.
  // AddressSanitizer watches the bounds of what it has allocated itself: PyTorch asks it.
  Arena() {
#ifdef __SANITIZE_ADDRESS__
    return;
#endif
    constexpr size_t size = size_t{1} << 40;
    rlimit limit{};
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY) return;
    void* const range = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return;
    begin_ = peak_ = touched_ = static_cast<char*>(range);
    free_.emplace(begin_, size);
  }

  using Ranges = std::map<char*, size_t>;

  void join(Ranges::iterator left, Ranges::iterator right) {
    if (right == free_.end() || left->first + left->second != right->first) return;
    left->second += right->second;
    free_.erase(right);
  }

  // All maps of an image are gone: what a larger image took goes back to the system.
  void return_surplus() {
    if (peak_ > touched_) touched_ = peak_;
    if (touched_ - begin_ > 2 * (peak_ - begin_)) {
      madvise(peak_, static_cast<size_t>(touched_ - peak_), MADV_DONTNEED);
      touched_ = peak_;
    }
    peak_ = begin_;
  }

  std::mutex mutex_;
  Ranges free_, used_;
  char *begin_ = nullptr, *peak_ = nullptr, *touched_ = nullptr;  // end of what was used since all was free, and ever
};

constexpr int64_t smallest = 1 << 18;  // bytes; PyTorch's allocator reuses smaller pieces itself

int64_t element_size(ScalarType type) {
  return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
}

std::optional<Tensor> from_arena(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                                 ScalarType type) {
  int64_t bytes = element_size(type);
  for (const int64_t size : sizes) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) return std::nullopt;  // PyTorch will say that it is too much
  }
  void* const memory = bytes < smallest ? nullptr : Arena::get().take(static_cast<size_t>(bytes));
  if (memory == nullptr) return std::nullopt;
  return torch::stable::from_blob(memory, sizes, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU), type,
                                  [](void* data) { Arena::get().give_back(data); });
}

}  // namespace

Tensor empty_maps(int64_t n, int64_t c, int64_t h, int64_t w, ScalarType type) {
  if (const auto tensor = from_arena({n, c, h, w}, {c * h * w, 1, c * w, c}, type)) return *tensor;
  return torch::stable::empty({n, c, h, w}, type, std::nullopt, std::nullopt, std::nullopt, MemoryFormat::ChannelsLast);
}

Tensor empty_matrix(int64_t rows, int64_t columns, ScalarType type) {
  if (const auto tensor = from_arena({rows, columns}, {columns, 1}, type)) return *tensor;
  return torch::stable::empty({rows, columns}, type);
}

}  // namespace dcnzoo::cpu
