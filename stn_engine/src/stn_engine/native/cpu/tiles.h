// The gradient of a map, tile by tile: equation (4) in an order that depends on nothing but the sizes.
//
// Every cell of a tile has one accumulator per tap. A target pixel adds its products to those of one cell in a
// single vector, and two pixels of a row meet in memory only if they read the same cell. When all pixels that
// reach the tile have been walked in raster order, every source pixel collects its taps from the cells around
// it. Tiles share no output, so threads share none either, and nothing needs to be zeroed beforehand.
#pragma once

#include "reach.h"
#include "read_pixels.h"
#include "taps.h"

namespace stn::STN_ISA {

constexpr int kTileBytes = 52 * 1024;
constexpr int kMaxGroup = 4;  // channels that share the plan of a tile

template <class T>
constexpr int kTileValues = kTileBytes / static_cast<int>(sizeof(T));

// How a map is cut. Cells stand before the pixels they reach, so a tile has K - 1 more of them per axis.
struct Tiling {
  int64_t size[kMaxAxes];  // pixels of a whole tile
  int64_t count[kMaxAxes];
  int64_t group, groups;  // channels

  STN_MEMBER int64_t units() const { return count[0] * count[1] * count[2] * groups; }
};

STN_FUNCTION int64_t at_most_size(int64_t wanted, int64_t size) { return wanted < size ? wanted : size; }

template <class T, int D, int K>
STN_FUNCTION Tiling tiling_of(const Item& item) {
  const Map& source = item.source;
  Tiling tiling{};
  tiling.group = kTileValues<T> / (kTaps<D, K> * 800);
  tiling.group = at_most_size(tiling.group < 1 ? 1 : tiling.group, kMaxGroup);
  tiling.group = at_most_size(tiling.group, source.channels);
  int64_t cells = kTileValues<T> / (kTaps<D, K> * tiling.group) - 1;
  const int64_t side = static_cast<int64_t>(std::pow(static_cast<double>(cells), 1.0 / D));
  for (int a = 0; a < kMaxAxes; ++a) {
    const int64_t room = a == D - 1 ? cells : a == 0 ? 2 * side : side;
    tiling.size[a] = a < D ? at_most_size(room - (K - 1), source.size[a]) : 1;
    cells /= tiling.size[a] + (a < D ? K - 1 : 0);
    tiling.count[a] = (source.size[a] + tiling.size[a] - 1) / tiling.size[a];
  }
  tiling.groups = (source.channels + tiling.group - 1) / tiling.group;
  return tiling;
}

template <class S, class T, int D, int K>
class Tile {
 public:
  STN_MEMBER Tile(const Item& item, const Tiling& tiling, int64_t unit) : item_(item) {
    channels_.first = unit % tiling.groups * tiling.group;
    channels_.count = at_most_size(tiling.group, item.source.channels - channels_.first);
    int64_t place = unit / tiling.groups;
    cells_ = 1;
    for (int a = 0; a < kMaxAxes; ++a) {
      first_[a] = place % tiling.count[a] * tiling.size[a];
      size_[a] = at_most_size(tiling.size[a], item.source.size[a] - first_[a]);
      place /= tiling.count[a];
      width_[a] = a < D ? size_[a] + K - 1 : 1;
      cells_ *= width_[a];
    }
  }

  // The gradient of item n_source; all items of the batch that read it, in order.
  void run(int64_t n_source) {
    std::memset(sums_, 0, sizeof(T) * static_cast<size_t>(channels_.count * (cells_ + 1) * kTaps<D, K>));
    const bool broadcast = item_.source.batch == 1;
    for (int64_t n = broadcast ? 0 : n_source; n < (broadcast ? item_.batch : n_source + 1); ++n) add_item(n);
    for (int64_t c = 0; c < channels_.count; ++c) collect(n_source, c);
  }

 private:
  static constexpr int kAll = kTaps<D, K>;
  // All taps of a cell in one vector.
  typedef T TapVector __attribute__((vector_size(kAll * sizeof(T))));

  void add_item(int64_t n) {
    const PointSource<T, D> source(item_, n);
    const Reach reach = Reach::of<T>(item_, source.matrix());
    const Box box = reading_box();
    const Columns columns(reach, box);
    const Range depth = D == 3 ? reach.rows(box, 2) : Range{0, item_.target.size[2]};
    const Range height = reach.rows(box, 1);
    for (int64_t k = depth.first; k < depth.last; ++k)
      for (int64_t i = height.first; i < height.last; ++i) {
        const Row row = {n, i, k};
        for_pieces(row, columns(row), [&](const Block& block) { add_block(source, block); });
      }
  }

  // Where coordinates have to be for a tap to fall into the tile.
  STN_MEMBER Box reading_box() const {
    Box box{};
    const double reach = K == 4 ? 2.0 : 1.0;
    const bool clipped = item_.sampling.padding == Padding::border;
    for (int a = 0; a < D; ++a) {
      const int64_t end = first_[a] + size_[a];
      box.low[a] = clipped && first_[a] == 0 ? -INFINITY : static_cast<double>(first_[a]) - reach;
      box.high[a] = clipped && end == item_.source.size[a] ? INFINITY : static_cast<double>(end - 1) + reach;
    }
    return box;
  }

  STN_MEMBER void add_block(const PointSource<T, D>& source, const Block& block) {
    Points<T, D> points;
    source.fill(block, points);
    plan(block.count, points);
    for (int64_t c = 0; c < channels_.count; ++c) {
      const Map& target = item_.target;
      const S* grad = start_of<const S>(target, block) + (channels_.first + c) * target.channel_stride;
      add_products(grad, target.stride[0], block.count, sums_of(c));
    }
  }

  STN_MEMBER T* sums_of(int64_t c) { return sums_ + c * (cells_ + 1) * kAll; }

  // Cells and weights of a block; points that do not reach the tile go to the cell behind the last.
  STN_MEMBER void plan(int count, Points<T, D>& points) {
    const int lanes = whole_lanes(count);
    alignas(64) Mask<T> live[kBlock];
    for (int b = 0; b < lanes; b += kLanes) store(keep_finite(points, b), live + b);
    alignas(64) T slope[kBlock];
    if (item_.sampling.padding == Padding::border)
      for (int a = 0; a < D; ++a) pad_axis(item_.sampling, item_.source.size[a], lanes, points.at[a], slope);
    for (int b = 0; b < lanes; b += kLanes) plan_lanes(b, load(live + b), points);
  }

  STN_MEMBER void plan_lanes(int b, Lanes<Mask<T>> live, const Points<T, D>& points) {
    AxisTaps<Lanes<T>, K> taps[D];
    Lanes<int32_t> cell{};
    int stride = 1;
    for (int a = 0; a < D; ++a) {
      const T low = static_cast<T>(first_[a] - (K - 1)), high = static_cast<T>(first_[a] + size_[a] - 1);
      taps[a] = axis_taps<K>(clamp_to(load(points.at[a] + b), low - T(2), high + T(4)));
      live &= (taps[a].first >= Lanes<T>::all(low)) & (taps[a].first <= Lanes<T>::all(high));
      cell += converted<int32_t>(taps[a].first - low) * stride;
      stride *= static_cast<int>(width_[a]);
    }
    const Lanes<int32_t> nowhere = Lanes<int32_t>::all(static_cast<int32_t>(cells_));
    store(choose(converted<int32_t>(live), cell, nowhere) * kAll, place_ + b);
    alignas(64) T products[kAll][kLanes];
    for (int tap = 0; tap < kAll; ++tap) {
      Lanes<T> product = taps[0].weight[digit<K>(tap, 0)];
      for (int a = 1; a < D; ++a) product *= taps[a].weight[digit<K>(tap, a)];
      store(product, products[tap]);
    }
    T* weight = weight_ + b * kAll;
    for (int l = 0; l < kLanes; ++l)
      for (int tap = 0; tap < kAll; ++tap) weight[l * kAll + tap] = products[tap][l];
  }

  STN_MEMBER void add_products(const S* grad, int64_t stride, int count, T* sums) const {
#pragma GCC unroll 4
    for (int b = 0; b < count; ++b) {
      T* at = sums + place_[b];
      TapVector sum, weight;
      std::memcpy(&sum, at, sizeof sum);
      std::memcpy(&weight, weight_ + b * kAll, sizeof weight);
      sum += weight * widened(grad[b * stride]);
      std::memcpy(at, &sum, sizeof sum);
    }
  }

  // Every pixel of the tile from the taps that fall on it.
  void collect(int64_t n, int64_t c) {
    const Map& to = item_.by_source;
    S* map = static_cast<S*>(to.data) + n * to.batch_stride + (channels_.first + c) * to.channel_stride;
    for (int64_t z = 0; z < size_[2]; ++z)
      for (int64_t y = 0; y < size_[1]; ++y) {
        S* row = map + (first_[2] + z) * to.stride[2] + (first_[1] + y) * to.stride[1] + first_[0] * to.stride[0];
        collect_row(sums_of(c), y, z, row, to.stride[0]);
      }
  }

  STN_MEMBER void collect_row(const T* sums, int64_t y, int64_t z, S* row, int64_t stride) const {
    const T* tap_sums[kAll];
    for (int tap = 0; tap < kAll; ++tap) {
      int64_t cell = K - 1 - digit<K>(tap, 0) + width_[0] * (y + K - 1 - digit<K>(tap, 1));
      if constexpr (D == 3) cell += width_[0] * width_[1] * (z + K - 1 - digit<K>(tap, 2));
      tap_sums[tap] = sums + cell * kAll + tap;
    }
    for (int64_t x = 0; x < size_[0]; ++x) {
      T sum = T(0);
      for (int tap = 0; tap < kAll; ++tap) sum += tap_sums[tap][x * kAll];
      row[x * stride] = stored<S>(sum);
    }
  }

  const Item& item_;
  Channels channels_;
  int64_t first_[kMaxAxes], size_[kMaxAxes], width_[kMaxAxes];
  int64_t cells_;
  alignas(64) int place_[kBlock];  // of a point's cell among the sums
  alignas(64) T weight_[kBlock * kAll];
  alignas(64) T sums_[kTileValues<T>];
};

// Gradients of many channels that stand side by side are added a pixel at a time, which is faster still.
STN_FUNCTION bool is_channels_last_gradient(const Item& item) {
  return item.by_source.channels >= kLanes && item.by_source.channel_stride == 1 && item.target.channel_stride == 1;
}

// Whether a gradient can be made by tiles: the coordinates, not the taps, must carry the padding, and the rows
// that reach a tile must be known in closed form.
STN_FUNCTION bool is_tileable(const Item& item) {
  if (!item.generator.is_linear() || item.sampling.padding == Padding::reflection) return false;
  if (item.sampling.interpolation != Interpolation::bicubic) return true;
  return item.axes == 2 && item.sampling.padding != Padding::border;
}

}  // namespace stn::STN_ISA
