// Deformable convolution without a column buffer: a block of output pixels is sampled, a piece of the
// reduction axis at a time, into a tile that stays in the cache, and multiplied with packed weights.
//
// The reduction axis of a group, (tap, channel), is cut into pieces; a piece is either whole taps or
// part of one tap. A dense convolution has long pieces and one group per tile; a grouped one has
// all of its taps in one piece and many groups per tile.
#pragma once

#include <type_traits>

#include "gemm.h"
#include "half_factor.h"
#include "sampling.h"
#include "strassen.h"

namespace dcnzoo::cpu {
namespace {

// A float32 of maps and weights that is rounded to 16 bits as it is multiplied.
struct HalfMultiplied {
  float value;
};

inline float number(HalfMultiplied element) { return element.value; }
DCNZOO_INLINE Floats load_vector(const HalfMultiplied* source) { return load_vector(&source->value); }

// What the sampled tile consists of. Short floats are widened, except where there is an
// instruction for products of bfloat16.
template <class Element>
struct TileElement {
  using type = Computed<Element>;
};
#ifdef DCNZOO_HALF_FACTOR
template <>
struct TileElement<HalfMultiplied> {
  using type = HalfFactor;
};
#endif
#ifdef DCNZOO_BF16_DOT
template <>
struct TileElement<BFloat16> {
  using type = BFloat16;
};
#endif

template <class Element>
using TileMultiplier = Multiplier<typename TileElement<Element>::type>;

// What packed weights consist of, and the tensor that holds them, whose type is the weight's unless factors are rounded.
template <class Element>
using PackedElement = typename TileMultiplier<Element>::B;
template <class Element>
using PackedTensorElement = std::conditional_t<std::is_same_v<Element, HalfMultiplied>, PackedElement<Element>, Element>;

template <class Element>
constexpr int64_t panel_of = panel_columns<typename TileElement<Element>::type>;

// A piece of the reduction axis of one group.
struct Piece {
  int64_t tap_begin, tap_end, channel_begin, channel_end;

  int64_t channels() const { return channel_end - channel_begin; }
  int64_t depth() const { return (tap_end - tap_begin) * channels(); }
};

// Sizes of the convolution as it is computed: small groups are merged, with zeros off the diagonal,
// until they fill a vector. That costs no time, since the idle lanes are multiplied either way.
struct Layout {
  int64_t groups, channels, columns;  // channels in and columns out per merged group
  int64_t merged;                     // groups of the convolution per merged group
  int64_t piece_taps, piece_channels; // of a full piece
  int64_t taps, padded_columns;
  int64_t depth_multiple;
  bool strassen;        // multiplies by Strassen's algorithm
  int64_t group_numel;  // of the packed weight

  template <class Element>
  static Layout of(const ConvShape& shape) {
    using Multiplied = TileMultiplier<Element>;
    // A panel of B with this depth and one row tile of A should fit the first-level cache together.
    constexpr int64_t longest_piece = sizeof(typename TileElement<Element>::type) == 2 ? 512 : 256;
    return Layout(shape, Multiplied::width, Multiplied::depth_multiple, longest_piece, std::is_same_v<Element, float>);
  }

  Layout(const ConvShape& shape, int width, int64_t multiple, int64_t longest_piece, bool has_strassen)
      : depth_multiple(multiple) {
    const int64_t group_channels = shape.in_channels / shape.groups, group_columns = shape.out_channels / shape.groups;
    merged = 1;
    while (shape.groups % (2 * merged) == 0 && 2 * merged * max(group_channels, group_columns) <= width) merged *= 2;
    groups = shape.groups / merged;
    channels = group_channels * merged;
    columns = group_columns * merged;
    taps = shape.taps();
    padded_columns = round_up(columns, width);
    strassen = has_strassen && shape.groups == 1 && strassen_pays(taps * channels, columns) && channels % 2 == 0;
    const int64_t longest = strassen ? longest_strassen_piece : longest_piece;
    piece_channels = ceil_div(channels, ceil_div(channels, longest));
    if (strassen) piece_channels = round_up(piece_channels, 2);
    piece_taps = piece_channels < channels ? 1 : min(taps, max<int64_t>(1, longest / channels));
    if (strassen) piece_taps = ceil_div(taps, ceil_div(taps, piece_taps));  // even pieces, none of them short
    if (groups > 1 && taps * channels <= longest_grouped_piece) piece_taps = taps;
    group_numel = 0;
    for_each_piece([&](const Piece& piece) { group_numel += packed_numel(piece); });
  }

  int64_t padded_depth(const Piece& piece) const { return round_up(piece.depth(), depth_multiple); }
  int64_t packed_numel(const Piece& piece) const {
    return strassen ? strassen_numel(piece.depth(), columns) : padded_depth(piece) * padded_columns;
  }
  int64_t longest() const { return round_up(piece_taps * piece_channels, depth_multiple); }
  bool one_piece() const { return piece_taps * piece_channels == taps * channels; }

  template <class Function>
  DCNZOO_INLINE void for_each_piece(const Function& function) const {
    for (int64_t tap = 0; tap < taps; tap += piece_taps) {
      for (int64_t channel = 0; channel < channels; channel += piece_channels) {
        function(Piece{tap, min(tap + piece_taps, taps), channel, min(channel + piece_channels, channels)});
      }
    }
  }

  static constexpr int64_t longest_grouped_piece = 512;
  // As the second-level cache allows, which holds the piece of a tile and its sums.
  static constexpr int64_t longest_strassen_piece = DCNZOO_VECTOR_BYTES == 64 ? 640 : 512;
};

// One column of a piece of a merged group's weight; zero between different groups of the convolution. put(k, value) takes
// its elements.
template <class Element, class Put>
void pack_column(const Layout& layout, const Piece& piece, const Element* weight, int64_t group, int64_t column, const Put& put) {
  const int64_t channels = layout.channels / layout.merged, columns = layout.columns / layout.merged;
  const bool real = column < layout.columns;
  const int64_t begin = column / columns * channels, end = real ? begin + channels : begin;
  const Element* source = weight + ((group * layout.columns + column) * channels - begin) * layout.taps;
  int64_t k = 0;
  for (int64_t tap = piece.tap_begin; tap < piece.tap_end; ++tap)
    for (int64_t channel = piece.channel_begin; channel < piece.channel_end; ++channel, ++k)
      put(k, channel >= begin && channel < end ? number(source[channel * layout.taps + tap]) : 0);
  for (; k < layout.padded_depth(piece); ++k) put(k, 0);
}

// The packed weight: [merged group][piece][panel of columns], or [piece][part of Strassen's][panel]. A unit of work is
// one panel of one group or part.
template <class Element>
void pack(const ConvShape& shape, const void* weight, void* packed, int64_t begin, int64_t end) {
  constexpr int64_t panel = panel_of<Element>;
  const Layout layout = Layout::of<Element>(shape);
  const int64_t panels = ceil_div(layout.strassen ? layout.columns / 2 : layout.padded_columns, panel);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit / panels, first = unit % panels * panel;  // with Strassen's, the group is a part
    if constexpr (std::is_same_v<Element, float>) {
      if (layout.strassen) {
        float* piece_target = static_cast<float*>(packed);
        layout.for_each_piece([&](const Piece& piece) {
          const int64_t depth = piece.depth() / 2, columns = layout.columns / 2;
          pack_strassen_panel(static_cast<StrassenPart>(group), depth, columns, first,
                              piece_target + depth * (group * columns + first), [&](int64_t k, int64_t column) {
            const int64_t tap = piece.tap_begin + k / piece.channels();
            const int64_t channel = piece.channel_begin + k % piece.channels();
            return static_cast<const float*>(weight)[(column * layout.channels + channel) * layout.taps + tap];
          });
          piece_target += layout.packed_numel(piece);
        });
        continue;
      }
    }
    const int64_t columns = min(panel, layout.padded_columns - first);
    auto* piece_target = static_cast<PackedElement<Element>*>(packed) + group * layout.group_numel;
    layout.for_each_piece([&](const Piece& piece) {
      const int64_t depth = layout.padded_depth(piece);
      for (int64_t column = 0; column < columns; ++column) {
        pack_column(layout, piece, static_cast<const Element*>(weight), group, first + column,
                    [&](int64_t k, Computed<Element> value) {
          store_number(piece_target + first * depth + TileMultiplier<Element>::place(k, column, columns), value);
        });
      }
      piece_target += layout.packed_numel(piece);
    });
  }
}

template <class Element>
int64_t pack_units(const ConvShape& shape) {
  const Layout layout = Layout::of<Element>(shape);
  if (layout.strassen) return strassen_parts * (layout.columns / 2 / panel_columns<float>);
  return layout.groups * ceil_div(layout.padded_columns, panel_of<Element>);
}

template <class Element>
int64_t packed_numel(const ConvShape& shape) {
  const Layout layout = Layout::of<Element>(shape);
  return layout.groups * layout.group_numel * sizeof(PackedElement<Element>) / sizeof(PackedTensorElement<Element>);
}

// Whether the product goes straight to the output, or through sums in float32.
template <class Element>
constexpr bool direct = std::is_same_v<Element, Computed<Element>> || std::is_same_v<Element, HalfMultiplied>;

// Scratch memory of one worker, carved from one allocation.
template <class Element>
struct Scratch {
  using T = Computed<Element>;
  using TileType = typename TileElement<Element>::type;

  T *y, *x, *scale;  // per pixel of the block
  char* tables;      // tap-major, then deformable group
  T* sums;           // [pixel][column], unless the product goes straight to the output
  TileType* tile;    // [group][pixel][depth]
  void* strassen;

  static int64_t group_tile(const Layout& layout, int64_t pixels) { return pixels * layout.longest() + 16; }
  static int64_t tables_bytes(const ConvShape& shape, int64_t pixels) {
    return shape.taps() * shape.deform_groups * pixels * SampleTable<T>::bytes_per_pixel;
  }
  static int64_t sums_numel(int64_t pixels, int64_t columns) { return direct<Element> ? 0 : pixels * columns; }

  static size_t bytes(const ConvShape& shape, const Layout& layout, int64_t pixels, int64_t columns,
                      int64_t tile_groups) {
    return (3 * pixels + sums_numel(pixels, columns)) * sizeof(T) + tables_bytes(shape, pixels) +
           tile_groups * group_tile(layout, pixels) * sizeof(TileType) +
           (layout.strassen ? StrassenProduct::scratch_bytes(pixels, layout.longest(), layout.columns) : 0);
  }

  Scratch(void* memory, const ConvShape& shape, const Layout& layout, int64_t pixels, int64_t columns) {
    T* arrays = static_cast<T*>(memory);
    y = arrays, x = y + pixels, scale = x + pixels;
    tables = reinterpret_cast<char*>(scale + pixels);
    sums = reinterpret_cast<T*>(tables + tables_bytes(shape, pixels));
    tile = reinterpret_cast<TileType*>(sums + sums_numel(pixels, columns));
    strassen = tile + group_tile(layout, pixels);  // of the only group
  }

  SampleTable<T> table(const ConvShape& shape, int64_t tap, int64_t deform_group, int64_t pixels) const {
    return {tables + (tap * shape.deform_groups + deform_group) * pixels * SampleTable<T>::bytes_per_pixel, pixels};
  }
};

// Groups whose tiles are sampled together: as many as the second-level cache can half hold, since a table
// entry costs as much as sampling a dozen vectors of channels. Measured; the exact size matters little.
template <class Element>
int64_t tile_groups(const Layout& layout, int64_t pixels) {
  if (!layout.one_piece()) return 1;
  const int64_t group_bytes =
      Scratch<Element>::group_tile(layout, pixels) * static_cast<int64_t>(sizeof(typename TileElement<Element>::type));
  return min(layout.groups, max<int64_t>(1, 655360 / group_bytes));
}

// Pixels of the largest rectangle, padded to whole vectors.
inline int64_t tile_pixels(const ConvShape& shape, const Schedule& schedule) {
  return round_up(ceil_div(shape.out_height, schedule.tiles_y) * ceil_div(shape.out_width, schedule.tiles_x), 16);
}

// Estimated time of a cut into rectangles, in pixels of one thread: the busiest thread's share, row tiles
// that are not full, streaming the weights per rectangle, and the rim of input that neighbours read again.
inline double cut_cost(const ConvShape& shape, int64_t tiles_x, int64_t tiles_y, int64_t rows, int threads) {
  const int64_t height = ceil_div(shape.out_height, tiles_y), width = ceil_div(shape.out_width, tiles_x);
  const int64_t rounds = ceil_div(tiles_x * tiles_y * shape.images, threads);
  const int64_t steps = tiles_x == 1 ? ceil_div(height * width, rows) : height * ceil_div(width, rows);
  const double filled = 0.8 * static_cast<double>(height * width) + 0.2 * static_cast<double>(steps * rows);
  return static_cast<double>(rounds) * (filled + 4 + 0.1 * static_cast<double>(height + width));
}

// What the columns of a call are cut into: panels of the only group (of both halves at once, with Strassen's), or whole
// groups.
template <class Element>
int64_t column_parts(const Layout& layout) {
  if (layout.strassen) return layout.columns / 2 / panel_columns<float>;
  return layout.groups > 1 ? layout.groups : ceil_div(layout.columns, panel_of<Element>);
}

// Columns of the widest chunk.
template <class Element>
int64_t chunk_columns(const Layout& layout, int64_t chunks) {
  const int64_t part = layout.groups > 1 ? layout.columns : panel_of<Element>;
  return ceil_div(column_parts<Element>(layout), chunks) * part;
}

template <class Element>
Schedule schedule(const ConvShape& shape, int threads) {
  using T = Computed<Element>;
  const Layout layout = Layout::of<Element>(shape);
  const int64_t table_bytes = shape.taps() * shape.deform_groups * SampleTable<T>::bytes_per_pixel;
  const int64_t rows = layout.columns > panel_of<Element> / 2 ? micro_rows2 : micro_rows1;
  const int64_t target = layout.groups > 1 ? 64 : layout.strassen ? 160 : 192, least = 24;
  const int64_t most = max<int64_t>(least, min<int64_t>(target, 1048576 / table_bytes));
  ConvShape cut = shape;
  if (layout.strassen) cut.images = 1;  // its sums join pixels of a rectangle: an image's should not depend on the batch
  Schedule best{};
  double best_cost = 0;
  for (int64_t tiles_x = 1; tiles_x <= max<int64_t>(1, shape.out_width / 12); ++tiles_x) {
    const int64_t width = ceil_div(shape.out_width, tiles_x);
    const int64_t fewest = ceil_div(shape.out_height, max<int64_t>(1, most / width));
    for (int64_t tiles_y = fewest; tiles_y <= min(2 * fewest + threads, shape.out_height); ++tiles_y) {
      if (tiles_y > fewest && ceil_div(shape.out_height, tiles_y) * width < least) break;
      const double cost = cut_cost(cut, tiles_x, tiles_y, rows, threads);
      if (best.tiles_x == 0 || cost < best_cost) best.tiles_x = tiles_x, best.tiles_y = tiles_y, best_cost = cost;
    }
  }
  best.column_chunks =
      min(column_parts<Element>(layout), ceil_div(threads, best.tiles_x * best.tiles_y * shape.images));
  const int64_t pixels = tile_pixels(shape, best), columns = chunk_columns<Element>(layout, best.column_chunks);
  const size_t bytes =
      Scratch<Element>::bytes(shape, layout, pixels, columns, tile_groups<Element>(layout, pixels));
  best.scratch_bytes = round_up(bytes, 64);
  return best;
}

template <class Element>
class BlockConvolution {
 public:
  BlockConvolution(const DeformConv2d& call, const Schedule& schedule, void* memory, int64_t task)
      : call_(call),
        shape_(call.shape),
        layout_(Layout::of<Element>(call.shape)),
        pixels_(tile_pixels(call.shape, schedule)),
        scratch_(memory, call.shape, layout_, pixels_, chunk_columns<Element>(layout_, schedule.column_chunks)) {
    const int64_t chunk = task % schedule.column_chunks, tile = task / schedule.column_chunks;
    // Rectangles follow each other downwards, so that the next one finds its input in the cache.
    const int64_t tile_y = tile % schedule.tiles_y, strip = tile / schedule.tiles_y;
    const int64_t tile_x = strip % schedule.tiles_x;
    image_ = strip / schedule.tiles_x;
    area_.y = shape_.out_height * tile_y / schedule.tiles_y;
    area_.x = shape_.out_width * tile_x / schedule.tiles_x;
    area_.height = shape_.out_height * (tile_y + 1) / schedule.tiles_y - area_.y;
    area_.width = shape_.out_width * (tile_x + 1) / schedule.tiles_x - area_.x;
    const bool by_group = layout_.groups > 1;
    const int64_t parts = column_parts<Element>(layout_);
    const int64_t first = parts * chunk / schedule.column_chunks, last = parts * (chunk + 1) / schedule.column_chunks;
    group_begin_ = by_group ? first : 0;
    group_end_ = by_group ? last : 1;
    column_begin_ = by_group ? 0 : first * panel_of<Element>;
    column_end_ = by_group ? layout_.columns : min(last * panel_of<Element>, layout_.columns);
  }

  void run() {
    fill_tables();
    const int64_t step = tile_groups<Element>(layout_, pixels_);
    for (int64_t group = group_begin_; group < group_end_; group += step) {
      const int64_t group_end = min(group + step, group_end_);
      int64_t done = 0;  // elements of the packed weight of the pieces before this one
      layout_.for_each_piece([&](const Piece& piece) {
        sample_tile(group, group_end, piece);
        multiply_tile(group, group_end, piece, done);
        done += layout_.packed_numel(piece);
      });
    }
    if constexpr (!direct<Element>) round_sums();
  }

 private:
  using T = Computed<Element>;
  using TileType = typename TileElement<Element>::type;

  void fill_tables() {
    for (int64_t deform_group = 0; deform_group < shape_.deform_groups; ++deform_group) {
      for (int64_t tap = 0; tap < layout_.taps; ++tap) fill_table_of(tap, deform_group);
    }
  }

  void fill_table_of(int64_t tap, int64_t deform_group) {
    const int64_t point = deform_group * layout_.taps + tap;
    gather_channel(call_.offset, image_, 2 * point, area_, scratch_.y);
    gather_channel(call_.offset, image_, 2 * point + 1, area_, scratch_.x);
    add_origins(shape_, tap, area_, scratch_.y, scratch_.x);
    const bool masked = call_.mask.data != nullptr;
    if (masked) gather_channel(call_.mask, image_, point, area_, scratch_.scale);
    if (masked && call_.mask_is_logits) sigmoid(scratch_.scale, area_.pixels());
    fill_table(scratch_.y, scratch_.x, masked ? scratch_.scale : nullptr, area_.pixels(), shape_.height, shape_.width,
               scratch_.table(shape_, tap, deform_group, pixels_));
  }

  // Samples the piece for the groups [group, group_end).
  void sample_tile(int64_t group, int64_t group_end, const Piece& piece) {
    const bool whole_groups = piece.channels() == layout_.channels &&
                              (shape_.in_channels / shape_.deform_groups) % layout_.channels == 0;
    if (!whole_groups || layout_.channels % Simd<T>::width != 0) return sample_tile_by<0>(group, group_end, piece);
    switch (layout_.channels / Simd<T>::width) {
      case 1: return sample_tile_by<1>(group, group_end, piece);
      case 2: return sample_tile_by<2>(group, group_end, piece);
      case 4: return sample_tile_by<4>(group, group_end, piece);
      case 8: return sample_tile_by<8>(group, group_end, piece);
      default: return sample_tile_by<0>(group, group_end, piece);
    }
  }

  template <int VECTORS>
  void sample_tile_by(int64_t group, int64_t group_end, const Piece& piece) {
    const int64_t image_numel = shape_.height * shape_.width * shape_.in_channels;
    const Element* image = static_cast<const Element*>(call_.input) + image_ * image_numel;
    const int64_t begin = group * layout_.channels + piece.channel_begin;
    const int64_t end = (group_end - 1) * layout_.channels + piece.channel_end;
    const int64_t deform_channels = shape_.in_channels / shape_.deform_groups, depth = layout_.padded_depth(piece);
    for (int64_t d = begin / deform_channels; d * deform_channels < end; ++d) {
      const int64_t first = max(begin, d * deform_channels), last = min(end, (d + 1) * deform_channels);
      if (layout_.groups > 1) {  // of all groups' channels: the taps of a pixel share corners, and lines of each group's tile
        for (int64_t i = 0; i < area_.pixels(); ++i) {
          TileType* target = scratch_.tile + i * depth;
          for (int64_t tap = piece.tap_begin; tap < piece.tap_end; ++tap, target += piece.channels()) {
            const Corners<Element> corners(scratch_.table(shape_, tap, d, pixels_), i, image, shape_.in_channels);
            sample_run<VECTORS>(corners, first, last, group, piece.channel_begin, target);
          }
        }
        continue;
      }
      for (int64_t tap = piece.tap_begin; tap < piece.tap_end; ++tap) {  // a tap's table is looked up once
        TileType* tile = scratch_.tile + (tap - piece.tap_begin) * piece.channels();
        const SampleTable<T> table = scratch_.table(shape_, tap, d, pixels_);
        for (int64_t i = 0; i < area_.pixels(); ++i) {
          const Corners<Element> corners(table, i, image, shape_.in_channels);
          sample_run<VECTORS>(corners, first, last, group, piece.channel_begin, tile + i * depth);
        }
      }
    }
    if (depth == piece.depth()) return;
    for (int64_t i = 0; i < area_.pixels(); ++i) pad(group, group_end, scratch_.tile + i * depth + piece.depth());
  }

  // A last element per group that counts for nothing.
  void pad(int64_t group, int64_t group_end, TileType* target) const {
    for (; group < group_end; ++group, target += Scratch<Element>::group_tile(layout_, pixels_)) *target = TileType{};
  }

  // Channels [first, last) of the image; `target` stands for channel `origin` of group `group`. VECTORS is
  // the length of a group, or 0 for any length.
  template <int VECTORS>
  DCNZOO_INLINE void sample_run(const Corners<Element>& corners, int64_t first, int64_t last, int64_t group,
                                int64_t origin, TileType* target) const {
    const int64_t group_stride = Scratch<Element>::group_tile(layout_, pixels_);
    if constexpr (VECTORS > 0) {
      constexpr int64_t channels = VECTORS * Simd<T>::width;
      target += (first / channels - group) * group_stride;
#pragma GCC unroll 4
      for (int64_t c = first; c < last; c += channels, target += group_stride) {
        constexpr int block = min(VECTORS, 4);
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v += block) {
          corners.template sample_vectors<block>(c + v * Simd<T>::width, target + v * Simd<T>::width);
        }
      }
      return;
    }
    if (layout_.groups == 1) return corners.sample(first, last - first, target + (first - origin));
    for (int64_t c = first; c < last;) {
      const int64_t g = c / layout_.channels, segment_end = min(last, (g + 1) * layout_.channels);
      corners.sample(c, segment_end - c, target + (g - group) * group_stride + (c - g * layout_.channels - origin));
      c = segment_end;
    }
  }

  void multiply_tile(int64_t group, int64_t group_end, const Piece& piece, int64_t done) {
    const bool full_rows = area_.width == shape_.out_width || !direct<Element>;
    const int64_t stride = direct<Element> ? shape_.out_channels : last_column() - first_column();
    const Rows rows = full_rows ? Rows{1, area_.pixels(), 0}
                                : Rows{area_.height, area_.width, shape_.out_width * shape_.out_channels};
    const T* bias = static_cast<const T*>(call_.bias);
    const bool last = piece.tap_end == layout_.taps && piece.channel_end == layout_.channels;
    const int64_t depth = layout_.padded_depth(piece);
    if constexpr (std::is_same_v<Element, float>) {
      if (layout_.strassen) {
        const Epilogue<float> epilogue{done > 0, call_.relu && last, done > 0 ? nullptr : bias};
        StrassenProduct(rows, layout_.columns, depth, scratch_.tile, depth, product() - column_begin_, stride, epilogue,
                        scratch_.strassen)
            .run(static_cast<const float*>(call_.packed_weight) + done, column_begin_, column_end_, 0);
        return;
      }
    }
    for (int64_t g = group; g < group_end; ++g) {
      const auto* b = static_cast<const PackedElement<Element>*>(call_.packed_weight) + g * layout_.group_numel + done +
                          column_begin_ * depth;
      const int64_t column = g * layout_.columns + column_begin_;
      const Epilogue<T> epilogue{done > 0, call_.relu && last, bias == nullptr || done > 0 ? nullptr : bias + column};
      matrix_product(rows, column_end_ - column_begin_, depth,
                     scratch_.tile + (g - group) * Scratch<Element>::group_tile(layout_, pixels_), depth, b,
                     product() + (column - first_column()), stride, epilogue);
    }
  }

  int64_t first_column() const { return group_begin_ * layout_.columns + column_begin_; }
  int64_t last_column() const { return (group_end_ - 1) * layout_.columns + column_end_; }

  Element* output(int64_t y, int64_t x) const {
    const int64_t pixel = image_ * shape_.out_pixels() + y * shape_.out_width + x;
    return static_cast<Element*>(call_.output) + pixel * shape_.out_channels + first_column();
  }

  // Where the product of the first pixel and column goes.
  T* product() const {
    if constexpr (direct<Element>) {
      return reinterpret_cast<T*>(output(area_.y, area_.x));
    } else {
      return scratch_.sums;
    }
  }

  void round_sums() const {
    const int64_t columns = last_column() - first_column();
    const T* source = scratch_.sums;
    for (int64_t y = area_.y; y < area_.y + area_.height; ++y) {
      for (int64_t x = area_.x; x < area_.x + area_.width; ++x, source += columns) {
        store_numbers(output(y, x), source, columns);
      }
    }
  }

  const DeformConv2d& call_;
  const ConvShape& shape_;
  const Layout layout_;
  const int64_t pixels_;
  const Scratch<Element> scratch_;
  Rectangle area_;
  int64_t image_, group_begin_, group_end_, column_begin_, column_end_;
};

template <class Element>
void run(const DeformConv2d& call, const Schedule& schedule, int64_t task, void* scratch) {
  BlockConvolution<Element>(call, schedule, scratch, task).run();
}

template <class Element>
constexpr DeformConv2dKernels deform_conv2d_kernels() {
  return {packed_numel<Element>, pack<Element>, pack_units<Element>, schedule<Element>, run<Element>};
}

}  // namespace
}  // namespace dcnzoo::cpu
