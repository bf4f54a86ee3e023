// Instance masks in one pass: a map of the mask head is sampled at the pixels of its box only, and the runs of the
// result are written down as they appear, in COCO's compressed text. No mask of a whole image ever exists.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

namespace dcnzoo::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The run lengths of a mask, column by column, beginning with the zeros, as COCO writes them.
class RunLengths {
 public:
  // Appends `length` pixels of a value.
  void repeat(uint8_t value, int64_t length) {
    if (length == 0) return;
    if (value != value_) {
      write();
      value_ = value;
      length_ = 0;
    }
    length_ += length;
  }

  // Appends the pixels of (part of) a column, each 0 or 1.
  void append(const uint8_t* pixels, int64_t count) {
    for (const uint8_t* end = pixels + count; pixels < end;) {
      const void* change = std::memchr(pixels, 1 - *pixels, static_cast<size_t>(end - pixels));
      const uint8_t* next = change == nullptr ? end : static_cast<const uint8_t*>(change);
      repeat(*pixels, next - pixels);
      pixels = next;
    }
  }

  std::string finish() {
    write();
    return text_;
  }

 private:
  // From the fourth run on, the difference to the run before last is written: five bits per character, lowest
  // first, until the rest is only the sign.
  void write() {
    int64_t rest = runs_ > 2 ? length_ - last_but_one_ : length_;
    last_but_one_ = last_;
    last_ = length_;
    ++runs_;
    for (bool more = true; more;) {
      const int64_t bits = rest & 31;
      rest >>= 5;
      more = rest != ((bits & 16) != 0 ? -1 : 0);
      text_ += static_cast<char>(48 + bits + (more ? 32 : 0));
    }
  }

  std::string text_;
  uint8_t value_ = 0;
  int64_t length_ = 0, last_ = 0, last_but_one_ = 0, runs_ = 0;
};

// Which cells of a map the pixels of its box sample along one axis: pixel `begin + i` lies between `cell[i]` and the
// next one, or outside all cells, and takes `weight[i]` of the first and `next_weight[i]` of the second.
struct Axis {
  int64_t begin = 0;
  std::vector<int64_t> cell;
  std::vector<float> weight, next_weight;

  int64_t pixels() const { return static_cast<int64_t>(cell.size()); }
  int64_t end() const { return begin + pixels(); }
};

// Takes the pixels whose centres may lie between `low` and `high`: one outside gets less than half an edge cell, and
// with it less than 0.5.
Axis sample_axis(float low, float high, int64_t size, int64_t cells) {
  Axis axis;
  const float limit = static_cast<float>(size), second_last = static_cast<float>(cells - 2);
  if (!(high > low && low < limit && high > 0.0f && std::isfinite(high - low))) return axis;
  axis.begin = static_cast<int64_t>(std::floor(std::max(low, 0.0f)));
  const int64_t end = static_cast<int64_t>(std::ceil(std::min(high, limit)));
  for (int64_t pixel = axis.begin; pixel < end; ++pixel) {
    const float centre = static_cast<float>(pixel) + 0.5f;
    const float position = (centre - low) / (high - low) * static_cast<float>(cells) - 0.5f;
    const float cell = std::min(std::max(std::floor(position), 0.0f), second_last);
    axis.cell.push_back(static_cast<int64_t>(cell));
    axis.weight.push_back(std::max(1.0f - std::fabs(position - cell), 0.0f));
    axis.next_weight.push_back(std::max(1.0f - std::fabs(position - (cell + 1.0f)), 0.0f));
  }
  return axis;
}

struct Masks {
  const float* probs;  // (count, cells_y, cells_x)
  const float* boxes;  // (count, 4), xyxy
  int64_t count, cells_y, cells_x, height, width;
};

// The map interpolated between its rows: (cells_x, pixels of `rows`).
std::vector<float> interpolate_rows(const float* map, int64_t cells_x, const Axis& rows) {
  const int64_t pixels = rows.pixels();
  std::vector<float> result(static_cast<size_t>(cells_x * pixels));
  for (int64_t x = 0; x < cells_x; ++x) {
    for (int64_t y = 0; y < pixels; ++y) {
      const float* cell = map + rows.cell[y] * cells_x + x;
      result[x * pixels + y] = rows.weight[y] * cell[0] + rows.next_weight[y] * cell[cells_x];
    }
  }
  return result;
}

void threshold_column(const float* left, const float* right, float left_weight, float right_weight, int64_t pixels,
                      uint8_t* result) {
  for (int64_t y = 0; y < pixels; ++y) result[y] = left[y] * left_weight + right[y] * right_weight >= 0.5f;
}

std::string paste(const Masks& masks, int64_t index) {
  const float* box = masks.boxes + 4 * index;
  const float* map = masks.probs + index * masks.cells_y * masks.cells_x;
  RunLengths runs;
  const Axis rows = sample_axis(box[1], box[3], masks.height, masks.cells_y);
  const Axis columns = sample_axis(box[0], box[2], masks.width, masks.cells_x);
  const bool finite = std::all_of(map, map + masks.cells_y * masks.cells_x, [](float p) { return std::isfinite(p); });
  if (!finite || rows.pixels() == 0 || columns.pixels() == 0) {
    runs.repeat(0, masks.height * masks.width);
    return runs.finish();
  }
  const int64_t pixels = rows.pixels();
  const std::vector<float> between = interpolate_rows(map, masks.cells_x, rows);
  std::vector<uint8_t> column(static_cast<size_t>(pixels));
  runs.repeat(0, columns.begin * masks.height);
  for (int64_t x = 0; x < columns.pixels(); ++x) {
    const float* left = between.data() + columns.cell[x] * pixels;
    threshold_column(left, left + pixels, columns.weight[x], columns.next_weight[x], pixels, column.data());
    runs.repeat(0, rows.begin);
    runs.append(column.data(), pixels);
    runs.repeat(0, masks.height - rows.end());
  }
  runs.repeat(0, (masks.width - columns.end()) * masks.height);
  return runs.finish();
}

std::vector<std::string> paste_all(const Masks& masks) {
  std::vector<std::string> texts(static_cast<size_t>(masks.count));
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min(masks.count, static_cast<int64_t>(torch::stable::get_num_threads()));
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t index; (index = next.fetch_add(1)) < masks.count;) texts[index] = paste(masks, index);
  });
  return texts;
}

// One line per mask, ASCII.
Tensor to_lines(const std::vector<std::string>& texts) {
  std::string lines;
  for (const std::string& text : texts) (lines += text) += '\n';
  const Tensor result = torch::stable::empty({static_cast<int64_t>(lines.size())}, ScalarType::Byte);
  std::copy(lines.begin(), lines.end(), static_cast<uint8_t*>(result.mutable_data_ptr()));
  return result;
}

Tensor paste_masks(const Tensor& probs, const Tensor& boxes, const std::vector<int64_t>& image_size) {
  STD_TORCH_CHECK(probs.scalar_type() == ScalarType::Float && boxes.scalar_type() == ScalarType::Float,
                  "paste_masks: probs and boxes must be float32");
  STD_TORCH_CHECK(probs.dim() == 3 && probs.size(1) > 1 && probs.size(2) > 1,
                  "paste_masks: probs must have 3 dimensions and more than one cell along each axis");
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(0) == probs.size(0) && boxes.size(1) == 4,
                  "paste_masks: boxes must be (D, 4), one for each map");
  STD_TORCH_CHECK(image_size.at(0) > 0 && image_size.at(1) > 0 && image_size.at(0) <= 1 << 24 &&
                      image_size.at(1) <= 1 << 24,
                  "paste_masks: the sides of the image must be positive, and at most 2^24 pixels");
  const Tensor maps = torch::stable::contiguous(probs), corners = torch::stable::contiguous(boxes);
  const Masks masks{static_cast<const float*>(maps.const_data_ptr()),
                    static_cast<const float*>(corners.const_data_ptr()),
                    probs.size(0),
                    probs.size(1),
                    probs.size(2),
                    image_size[0],
                    image_size[1]};
  return to_lines(paste_all(masks));
}

}  // namespace
}  // namespace dcnzoo::cpu

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) { m.impl("paste_masks", TORCH_BOX(&dcnzoo::cpu::paste_masks)); }
