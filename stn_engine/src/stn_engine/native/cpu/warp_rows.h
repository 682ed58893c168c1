// V, row by row: points, plan, then every channel.
#pragma once

#include "reach.h"
#include "read_pixels.h"
#include "taps.h"

namespace stn::STN_ISA {

template <class S>
STN_FUNCTION S* row_start(const Map& map, const Row& row, int64_t j) {
  return static_cast<S*>(map.data) + row.n * map.batch_stride + j * map.stride[0] + row.i * map.stride[1] +
         row.k * map.stride[2];
}

template <class S>
STN_FUNCTION const S* source_of(const Item& item, int64_t n) {
  return static_cast<const S*>(item.source.data) + item_of(n, item.source.batch) * item.source.batch_stride;
}

template <class S>
STN_FUNCTION void store_row(const Compute<S>* values, int count, int64_t stride, S* out) {
  if (stride == 1)
    for (int b = 0; b < count; ++b) out[b] = stored<S>(values[b]);
  else
    for (int b = 0; b < count; ++b) out[b * stride] = stored<S>(values[b]);
}

// Whether all channels of a pixel stand side by side in both maps.
STN_FUNCTION bool is_channels_last(const Item& item) {
  return item.source.channels > 1 && item.source.channel_stride == 1 && item.target.channel_stride == 1;
}

STN_FUNCTION bool has_adjacent_pixels(const Map& map) { return map.stride[0] == 1 && map.size[0] > 1; }

template <class S, class T, int D, bool Adjacent>
STN_LARGE_FUNCTION void warp_planes(const Item& item, const Row& row, int64_t j, int count, const CellPlan<T, D>& plan) {
  const S* source = source_of<S>(item, row.n);
  S* out = row_start<S>(item.target, row, j);
  const int64_t stride = item.target.stride[0];
  const bool direct = std::is_same_v<S, T> && stride == 1 && count % kLanes == 0;
  for (int64_t c = 0; c < item.source.channels; ++c) {
    alignas(64) T buffer[kBlock];
    T* values = direct ? reinterpret_cast<T*>(out) : buffer;
    read_cells<S, T, D, Adjacent>(source, plan, count, constants_of<T>(item.sampling, c), values);
    if (!direct) store_row<S>(buffer, count, stride, out);
    source += item.source.channel_stride;
    out += item.target.channel_stride;
  }
}

// Values of some points in some channels wait here before they are stored.
constexpr int kBuffer = 1024;

template <class S, class T>
STN_FUNCTION void store_pixels(const T* values, int points, int64_t channels, int64_t stride, S* out) {
  if (stride == channels) return store_row<S>(values, static_cast<int>(points * channels), 1, out);
  for (int b = 0; b < points; ++b) store_row<S>(values + b * channels, static_cast<int>(channels), 1, out + b * stride);
}

template <class S, class T, int D>
STN_LARGE_FUNCTION void warp_pixels(const Item& item, const Row& row, int64_t j, int count, const CellPlan<T, D>& plan) {
  const S* source = source_of<S>(item, row.n);
  S* out = row_start<S>(item.target, row, j);
  const int64_t channels = item.source.channels, stride = item.target.stride[0];
  alignas(64) T buffer[kBuffer + 1];
  for (int64_t c = 0; c < channels; c += kBuffer) {
    const Channels some = {c, channels - c < kBuffer ? channels - c : kBuffer};
    const int step = static_cast<int>(kBuffer / some.count);
    for (int b = 0; b < count; b += step) {
      const int points = count - b < step ? count - b : step;
      read_pixels<S, T, D>(item, source, plan, b, b + points, some, buffer);
      store_pixels<S, T>(buffer, points, some.count, stride, out + b * stride + c);
    }
  }
}

template <class S, class T, int D, int K>
STN_LARGE_FUNCTION void warp_taps(const Item& item, const Row& row, int64_t j, int count, Points<T, D>& points) {
  TapPlan<T, D, K> plan;
  plan_taps(item, count, points, plan);
  const S* source = source_of<S>(item, row.n);
  S* out = row_start<S>(item.target, row, j);
  for (int64_t c = 0; c < item.source.channels; ++c) {
    T values[kBlock];
    read_taps<S, T, D, K>(source + c * item.source.channel_stride, plan, count, constants_of<T>(item.sampling, c),
                          values);
    store_row<S>(values, count, item.target.stride[0], out + c * item.target.channel_stride);
  }
}

template <class S, class T, int D>
STN_FUNCTION void warp_cells(const Item& item, const Row& row, int64_t j, int count, Points<T, D>& points) {
  if (!has_small_offsets(item.source)) return warp_taps<S, T, D, 2>(item, row, j, count, points);
  CellPlan<T, D> plan;
  plan_cells(item, count, points, plan);
  if (is_channels_last(item)) return warp_pixels<S, T, D>(item, row, j, count, plan);
  if (has_adjacent_pixels(item.source)) return warp_planes<S, T, D, true>(item, row, j, count, plan);
  return warp_planes<S, T, D, false>(item, row, j, count, plan);
}

// Where a row is cut into blocks, so that few of them hold both points that read whole cells and others.
class Cuts {
 public:
  STN_MEMBER Cuts(const Item& item, const Reach& reach) : width_(item.target.size[0]), reach_(reach) {
    worthwhile_ = reach.known() && width_ > kBlock && item.sampling.interpolation == Interpolation::bilinear;
    for (int a = 0; a < item.axes; ++a) {
      // Reach may find a pixel too many; the inner box makes up for it.
      inner_.low[a] = 1.0, inner_.high[a] = static_cast<double>(item.source.size[a]) - 2.0;
      outer_.low[a] = -1.0, outer_.high[a] = static_cast<double>(item.source.size[a]);
    }
  }

  // Runs visit(j, count) over the blocks of a row.
  template <class F>
  STN_MEMBER void for_blocks(const Row& row, F visit) const {
    if (!worthwhile_) return for_piece(0, width_, visit);
    const Range outer = reach_.columns(outer_, row);
    const Range found = reach_.columns(inner_, row);
    const Range inner = {clamp_to(found.first, outer.first, outer.last), clamp_to(found.last, outer.first, outer.last)};
    for_piece(0, outer.first, visit);
    for_piece(outer.first, inner.first, visit);
    for_piece(inner.first, inner.last, visit);
    for_piece(inner.last, outer.last, visit);
    for_piece(outer.last, width_, visit);
  }

 private:
  template <class F>
  STN_MEMBER static void for_piece(int64_t first, int64_t last, F visit) {
    for (int64_t j = first; j < last; j += kBlock)
      visit(j, static_cast<int>(last - j < kBlock ? last - j : kBlock));
  }

  int64_t width_;
  const Reach& reach_;
  bool worthwhile_;
  Box inner_{}, outer_{};
};

// Runs visit(source, row, j, count, points) over the blocks of some rows.
template <class T, int D, class F>
STN_FUNCTION void for_blocks(const Item& item, int64_t n, int64_t first_row, int64_t last_row, F visit) {
  const PointSource<T, D> source(item, n);
  const Reach reach = Reach::of<T>(item, source.matrix());
  const Cuts cuts(item, reach);
  for (int64_t r = first_row; r < last_row; ++r) {
    const Row row = row_of(item, n, r);
    cuts.for_blocks(row, [&](int64_t j, int count) {
      Points<T, D> points;
      source.fill(row, j, count, points);
      visit(source, row, j, count, points);
    });
  }
}

template <class S, int D>
void warp_rows(const Item& item, int64_t n, int64_t first_row, int64_t last_row) {
  using T = Compute<S>;
  for_blocks<T, D>(item, n, first_row, last_row,
                   [&](const PointSource<T, D>&, const Row& row, int64_t j, int count, Points<T, D>& points) {
                     switch (item.sampling.interpolation) {
                       case Interpolation::nearest: return warp_taps<S, T, D, 1>(item, row, j, count, points);
                       case Interpolation::bilinear: return warp_cells<S, T, D>(item, row, j, count, points);
                       case Interpolation::bicubic: return warp_taps<S, T, D, 4>(item, row, j, count, points);
                     }
                   });
}

}  // namespace stn::STN_ISA
