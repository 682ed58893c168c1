// The gradient of a map, tile by tile: equation (4) in an order that depends on nothing but the sizes.
//
// Every cell of a tile has one accumulator per tap and channel. A target pixel adds its products to those of one cell
// in a single vector, and two pixels of a row meet in memory only if they read the same cell. When all pixels that
// reach the tile have been walked in raster order, every source pixel collects its taps from the cells around
// it. Tiles share no output, so threads share none either, and nothing needs to be zeroed beforehand.
//
// Few channels are summed at a time. Where there are more, cells and weights of the pixels are kept for the next ones,
// if there is room for them: to find them takes longer than to use them.
#pragma once

#include "readers.h"
#include "read_pixels.h"
#include "taps.h"

namespace stn::STN_ISA {

template <class T>
constexpr int kTileValues = kTileBytes / static_cast<int>(sizeof(T));

// Target pixels whose cells and weights are kept.
template <class T, int D, int K>
constexpr int kKept = kKeptBytes / (static_cast<int>(sizeof(T)) * kTaps<D, K> + 4);

// How a map is cut. Cells stand before the pixels they reach, so a tile has K - 1 more of them per axis.
struct Tiling {
  int64_t size[kMaxAxes];  // pixels of a whole tile
  int64_t count[kMaxAxes];
  int64_t group;          // channels that are summed at a time
  int64_t share, shares;  // channels of one unit of work, and how many of them there are
  bool keeps;             // whether cells and weights are kept for the next group of channels

  STN_MEMBER int64_t units() const { return count[0] * count[1] * count[2] * shares; }
};

STN_FUNCTION int64_t at_most_size(int64_t wanted, int64_t size) { return wanted < size ? wanted : size; }

template <class T, int D, int K>
STN_FUNCTION Tiling tiling_of(const Problem& problem) {
  const Map& source = problem.source;
  Tiling tiling{};
  tiling.group = kTileValues<T> / (kTaps<D, K> * kFewestCells);
  tiling.group = at_most_size(tiling.group < 1 ? 1 : tiling.group, kMaxGroup);
  tiling.group = at_most_size(tiling.group, source.channels);
  const int64_t cell_bytes = static_cast<int64_t>(sizeof(T)) * kTaps<D, K> * tiling.group;
  int64_t cells = kKeepingTileBytes / cell_bytes - 1;
  tiling.keeps = tiling.group < source.channels && cells <= kKept<T, D, K>;
  if (!tiling.keeps) cells = kTileBytes / cell_bytes - 1;
  const int64_t side = static_cast<int64_t>(std::pow(static_cast<double>(cells), 1.0 / D));
  for (int a = 0; a < kMaxAxes; ++a) {
    const int64_t width = a == D - 1 ? cells : a == 0 ? 2 * side : side;
    tiling.size[a] = a < D ? at_most_size(width - (K - 1), source.size[a]) : 1;
    cells /= tiling.size[a] + (a < D ? K - 1 : 0);
    tiling.count[a] = (source.size[a] + tiling.size[a] - 1) / tiling.size[a];
  }
  tiling.share = at_most_size(tiling.group * (tiling.keeps ? kMaxGroups : 1), source.channels);
  tiling.shares = (source.channels + tiling.share - 1) / tiling.share;
  return tiling;
}

template <class S, class T, int D, int K>
class Tile {
 public:
  STN_MEMBER Tile(const Problem& problem, const Tiling& tiling, int64_t unit)
      : problem_(problem),
        keeps_(tiling.keeps),
        across_rows_(has_readers_across_rows(problem)),
        group_(tiling.group),
        first_channel_(unit % tiling.shares * tiling.share) {
    end_channel_ = at_most_size(first_channel_ + tiling.share, problem.source.channels);
    int64_t place = unit / tiling.shares;
    cells_ = 1;
    for (int a = 0; a < kMaxAxes; ++a) {
      first_[a] = place % tiling.count[a] * tiling.size[a];
      size_[a] = at_most_size(tiling.size[a], problem.source.size[a] - first_[a]);
      place /= tiling.count[a];
      width_[a] = a < D ? size_[a] + K - 1 : 1;
      cells_ *= width_[a];
    }
  }

  // The gradient of item n_source; all items of the batch that read it, in order.
  void run(int64_t n_source) {
    const bool broadcast = problem_.source.batch == 1;
    const int64_t first = broadcast ? 0 : n_source, last = broadcast ? problem_.batch : n_source + 1;
    const bool kept = keeps_ && last == first + 1 && keep(first);
    for (int64_t c = first_channel_; c < end_channel_; c += group_) {
      channels_ = {c, at_most_size(group_, end_channel_ - c)};
      std::memset(sums_, 0, sizeof(T) * static_cast<size_t>(channels_.count * (cells_ + 1) * kAll));
      if (kept) add_kept();
      else
        for (int64_t n = first; n < last; ++n) add_item(n);
      collect(n_source);
    }
  }

 private:
  static constexpr int kAll = kTaps<D, K>;
  static constexpr int kPoints = kKept<T, D, K> > kBlock ? kKept<T, D, K> : kBlock;
  // All taps of a cell in one vector.
  typedef T TapVector __attribute__((vector_size(kAll * sizeof(T))));

  // Points that are planned one after the other, and where G is at them: evenly spaced from the first on, or, if they
  // go on in the rows below, where from_ says.
  struct Planned {
    const S* grads;  // of the first channel
    int count;
  };

  // Plans the target pixels of item n that may reach the tile from place at() on, until visit(planned) returns false.
  template <class At, class Visit>
  STN_MEMBER bool for_item(int64_t n, At at, Visit visit) {
    const PointSource<T, D> source(problem_, n);
    Readers<T, D> readers(problem_, source.matrix());
    readers.invert();
    return for_readers(problem_, n, readers, reading_box(), [&](const Block& block) {
      if (at() + block.count > kPoints) return false;
      plan(source, block, at());
      const S* grads = channel_of<const S>(problem_.target, block.row, 0);
      if (across_rows_) return visit(Planned{grads, compact(block, at())});
      return visit(Planned{grads + offset_of(problem_.target, block.row, block.j), block.count});
    });
  }

  void add_item(int64_t n) {
    for_item(
        n, [] { return 0; },
        [&](const Planned& planned) {
          add(planned, 0);
          return true;
        });
  }

  // Plans all of item n; false if there is no room for it.
  bool keep(int64_t n) {
    blocks_ = points_ = 0;
    return for_item(
        n, [&] { return points_; },
        [&](const Planned& planned) {
          if (blocks_ == kMaxBlocks) return false;
          kept_[blocks_++] = planned;
          points_ += planned.count;
          return true;
        });
  }

  void add_kept() {
    int at = 0;
    for (int k = 0; k < blocks_; ++k) {
      add(kept_[k], at);
      at += kept_[k].count;
    }
  }

  // Where coordinates have to be for a tap to fall into the tile.
  STN_MEMBER Box<D> reading_box() const {
    Box<D> box{};
    const double reach = K == 4 ? 2.0 : 1.0;
    const bool clipped = problem_.sampling.padding == Padding::border;
    for (int a = 0; a < D; ++a) {
      const int64_t end = first_[a] + size_[a];
      box.low[a] = clipped && first_[a] == 0 ? -kFar : static_cast<double>(first_[a]) - reach;
      box.high[a] = clipped && end == problem_.source.size[a] ? kFar : static_cast<double>(end - 1) + reach;
    }
    return box;
  }

  // Cells and weights of a block, from place `at` on; points that do not reach the tile go to the cell behind the last.
  STN_MEMBER void plan(const PointSource<T, D>& source, const Block& block, int at) {
    Points<T, D> points;
    source.fill(block, points);
    const int lanes = whole_lanes(block.count);
    alignas(64) Mask<T> live[kBlock];
    for (int b = 0; b < lanes; b += kLanes) store(keep_finite(points, b), live + b);
    alignas(64) T slope[kBlock];
    if (problem_.sampling.padding == Padding::border)
      for (int a = 0; a < D; ++a) pad_axis(problem_.sampling, problem_.source.size[a], lanes, points.at[a], slope);
    for (int b = 0; b < lanes; b += kLanes) plan_lanes(b, at + b, load(live + b), points);
  }

  // Leaves out the points of a block that do not reach the tile; how many are left.
  STN_MEMBER int compact(const Block& block, int at) {
    const int nowhere = static_cast<int>(cells_) * kAll;
    int to = at;
    for_pieces(problem_.target, block, [&](int first, int count, int64_t offset) {
      for (int b = at + first; b < at + first + count; ++b, offset += problem_.target.stride[0]) {
        if (place_[b] == nowhere) continue;
        place_[to] = place_[b];
        std::memcpy(weight_ + to * kAll, weight_ + b * kAll, kAll * sizeof(T));
        from_[to++] = offset;
      }
    });
    return to - at;
  }

  STN_MEMBER void plan_lanes(int b, int to, Lanes<Mask<T>> live, const Points<T, D>& points) {
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
    store(choose(converted<int32_t>(live), cell, nowhere) * kAll, place_ + to);
    alignas(64) T products[kAll][kLanes];
    for (int tap = 0; tap < kAll; ++tap) {
      Lanes<T> product = taps[0].weight[digit<K>(tap, 0)];
      for (int a = 1; a < D; ++a) product *= taps[a].weight[digit<K>(tap, a)];
      store(product, products[tap]);
    }
    T* weight = weight_ + to * kAll;
    for (int l = 0; l < kLanes; ++l)
      for (int tap = 0; tap < kAll; ++tap) weight[l * kAll + tap] = products[tap][l];
  }

  // Adds what points planned from place `at` on have for the present channels.
  STN_MEMBER void add(const Planned& planned, int at) {
    switch (channels_.count) {
      case 1: return add_channels<1>(planned, at);
      case 2: return add_channels<2>(planned, at);
      case 3: return add_channels<3>(planned, at);
      default: return add_channels<kMaxGroup>(planned, at);
    }
  }

  template <int Channels>
  STN_MEMBER void add_channels(const Planned& planned, int at) {
    const int64_t step = problem_.target.stride[0];
    if (across_rows_) add_products<Channels>(planned, at, [&](int b) { return from_[at + b]; });
    else if (step == 1) add_products<Channels>(planned, at, [](int b) { return b; });
    else add_products<Channels>(planned, at, [&](int b) { return b * step; });
  }

  STN_MEMBER T* sums_of(int64_t c) { return sums_ + c * (cells_ + 1) * kAll; }

  // A point's place and weights are read once for all channels.
  template <int Channels, class Offset>
  STN_MEMBER void add_products(const Planned& planned, int at, Offset offset) {
    const S* grads[Channels];
    T* sums[Channels];
    for (int c = 0; c < Channels; ++c) {
      grads[c] = planned.grads + (channels_.first + c) * problem_.target.channel_stride;
      sums[c] = sums_of(c);
    }
    const int* place = place_ + at;
    const T* weights = weight_ + at * kAll;
#pragma GCC unroll 4
    for (int b = 0; b < planned.count; ++b) {
      TapVector weight;
      std::memcpy(&weight, weights + b * kAll, sizeof weight);
      for (int c = 0; c < Channels; ++c) {
        T* to = sums[c] + place[b];
        TapVector sum;
        std::memcpy(&sum, to, sizeof sum);
        sum += weight * widened(grads[c][offset(b)]);
        std::memcpy(to, &sum, sizeof sum);
      }
    }
  }

  // Every pixel of the tile from the taps that fall on it.
  STN_MEMBER void collect(int64_t n) {
    const Map& to = problem_.grad_feature_map;
    S* map = static_cast<S*>(to.data) + n * to.batch_stride + channels_.first * to.channel_stride;
    for (int64_t z = 0; z < size_[2]; ++z)
      for (int64_t y = 0; y < size_[1]; ++y) {
        S* row = map + (first_[2] + z) * to.stride[2] + (first_[1] + y) * to.stride[1] + first_[0] * to.stride[0];
        for (int64_t c = 0; c < channels_.count; ++c)
          collect_row(sums_of(c), y, z, row + c * to.channel_stride, to.stride[0]);
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

  const Problem& problem_;
  bool keeps_, across_rows_;
  int64_t group_, first_channel_, end_channel_;
  Channels channels_;  // that are summed now
  int64_t first_[kMaxAxes], size_[kMaxAxes], width_[kMaxAxes];
  int64_t cells_;
  int blocks_, points_;  // that are kept
  Planned kept_[kMaxBlocks];
  alignas(64) int place_[kPoints + kLanes];  // of a point's cell among the sums
  alignas(64) T weight_[(kPoints + kLanes) * kAll];
  alignas(64) T sums_[kTileValues<T>];
  int64_t from_[kPoints];  // of G at a point, in a channel
};

// Gradients of many channels that stand side by side are added a pixel at a time, which is faster still.
STN_FUNCTION bool is_channels_last_gradient(const Problem& problem) {
  return problem.grad_feature_map.channels >= kLanes && problem.grad_feature_map.channel_stride == 1 &&
         problem.target.channel_stride == 1;
}

// Whether a gradient can be made by tiles: the coordinates, not the taps, must carry the padding, and the rows
// that reach a tile must be known in closed form.
STN_FUNCTION bool is_tileable(const Problem& problem) {
  if (!problem.generator.is_linear() || problem.sampling.padding == Padding::reflection) return false;
  if (problem.sampling.interpolation != Interpolation::bicubic) return true;
  return problem.axes == 2 && problem.sampling.padding != Padding::border;
}

}  // namespace stn::STN_ISA
