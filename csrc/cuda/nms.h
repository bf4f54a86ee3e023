// Greedy suppression without a word to the host: one block of threads per problem, whose boxes are sorted.
//
// Boxes are judged 64 at a time: first among themselves, then those that stay against all that follow.
#pragma once

#include "device.h"

namespace dcnzoo::cuda {

constexpr int nms_threads = 512, nms_group = 64, nms_warps = nms_threads / warp_threads;

struct alignas(16) Box {
  float x1, y1, x2, y2;
};

// As the definition has it, every product rounded.
DCNZOO_DEVICE bool overlap(const Box& a, const Box& b, float threshold) {
  const float width = larger(smaller(a.x2, b.x2) - larger(a.x1, b.x1), 0.0f);
  const float height = larger(smaller(a.y2, b.y2) - larger(a.y1, b.y1), 0.0f);
  const float both = product(width, height);
  const float either = product(a.x2 - a.x1, a.y2 - a.y1) + product(b.x2 - b.x1, b.y2 - b.y1) - both;
  return both / either > threshold;
}

// What a block has in shared memory; behind it lies a bit per box, set for those that are suppressed.
struct NmsShared {
  Box boxes[nms_group];
  uint32_t victims[nms_group][2];  // of each box of the group, among those that follow it there
  uint32_t kept[2];
};

class NmsBlock {
 public:
  static DCNZOO_BOTH int shared_bytes(int boxes) {
    return static_cast<int>(sizeof(NmsShared)) + static_cast<int>(ceil_div(boxes, nms_group)) * nms_group / 8;
  }

  DCNZOO_DEVICE NmsBlock(const Suppression& call, char* shared)
      : call_(call),
        shared_(*reinterpret_cast<NmsShared*>(shared)),
        suppressed_(reinterpret_cast<uint32_t*>(shared + sizeof(NmsShared))),
        boxes_(call.boxes + block_index() * call.num_boxes * 4),
        kept_(call.kept + block_index() * call.num_boxes),
        count_(static_cast<int>(smaller<int64_t>(load_scalar(call.counts + block_index()), call.num_boxes))) {}

  DCNZOO_DEVICE void run() const {
    const int words = static_cast<int>(ceil_div(call_.num_boxes, nms_group)) * 2;
    for (int w = thread_index(); w < words; w += nms_threads) store_shared(suppressed_ + w, 0u);
    sync_block();
    for (int first = 0; first < call_.num_boxes; first += nms_group) {
      if (first < count_) {
        judge_group(first);
        suppress_followers(first);
      }
      write(first);
      sync_block();
    }
  }

 private:
  DCNZOO_DEVICE Box box(int index) const {
    const Chunk chunk = load_global(boxes_ + 4 * static_cast<int64_t>(index));
    return {bits_float(chunk.word[0]), bits_float(chunk.word[1]), bits_float(chunk.word[2]), bits_float(chunk.word[3])};
  }

  // Finds which boxes of a group stay.
  DCNZOO_DEVICE void judge_group(int first) const {
    const int thread = thread_index(), lane = thread % warp_threads;
    const int size = smaller(nms_group, count_ - first);
    if (thread < nms_group) store_shared(shared_.boxes + thread, thread < size ? box(first + thread) : Box{});
    sync_block();
    for (int i = thread / warp_threads; i < nms_group; i += nms_warps) {
      const Box own = load_shared(shared_.boxes + i);
      for (int half = 0; half < 2; ++half) {
        const int j = half * warp_threads + lane;
        const uint32_t victims = vote(j > i && overlap(own, load_shared(shared_.boxes + j), call_.iou_threshold));
        if (lane == 0) store_shared(&shared_.victims[i][half], victims);
      }
    }
    sync_block();
    if (thread == 0) {
      const uint64_t present = size == nms_group ? ~uint64_t{0} : (uint64_t{1} << size) - 1;
      uint64_t open = present & ~pair(suppressed_ + first / 32), kept = 0;
      while (open != 0) {
        const int i = lowest_bit(open);
        kept |= uint64_t{1} << i;
        open &= ~(pair(shared_.victims[i]) | uint64_t{1} << i);
      }
      store_shared(&shared_.kept[0], static_cast<uint32_t>(kept));
      store_shared(&shared_.kept[1], static_cast<uint32_t>(kept >> 32));
    }
    sync_block();
  }

  static DCNZOO_DEVICE uint64_t pair(const uint32_t* words) {
    return load_shared(words) | static_cast<uint64_t>(load_shared(words + 1)) << 32;
  }

  // The boxes after a group, against those of it that stay; a warp takes as many as a word has bits.
  DCNZOO_DEVICE void suppress_followers(int first) const {
    const uint64_t kept = pair(shared_.kept);
    const int end = static_cast<int>(ceil_div(count_, warp_threads)) * warp_threads;
    for (int j = first + nms_group + thread_index(); j < end; j += nms_threads) {
      uint32_t* word = suppressed_ + j / warp_threads;
      const uint32_t before = load_shared(word);
      bool gone = j >= count_ || (before >> j % warp_threads & 1) != 0;
      const Box own = gone ? Box{} : box(j);
      for (uint64_t rest = gone ? 0 : kept; rest != 0 && !gone; rest &= rest - 1) {
        gone = overlap(load_shared(shared_.boxes + lowest_bit(rest)), own, call_.iou_threshold);
      }
      const uint32_t after = vote(gone);
      sync_warp();  // all have read the word: a vote orders no accesses to memory
      if (j % warp_threads == 0) store_shared(word, after);
    }
  }

  DCNZOO_DEVICE void write(int first) const {
    const int i = thread_index();
    if (i >= nms_group || first + i >= call_.num_boxes) return;
    kept_[first + i] = first + i < count_ && (pair(shared_.kept) >> i & 1) != 0;
  }

  const Suppression& call_;
  NmsShared& shared_;
  uint32_t* const suppressed_;
  const float* const boxes_;
  bool* const kept_;
  const int count_;
};

}  // namespace dcnzoo::cuda
