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
  const bool direct = std::is_same_v<S, T> && stride == 1;
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
STN_FUNCTION void warp_cells(
    const Item& item, const Row& row, int64_t j, int count, Points<T, D>& points, CellPlan<T, D>& plan) {
  plan_cells(item.sampling, count, points, plan);
  if (is_channels_last(item)) return warp_pixels<S, T, D>(item, row, j, count, plan);
  if (has_adjacent_pixels(item.source)) return warp_planes<S, T, D, true>(item, row, j, count, plan);
  return warp_planes<S, T, D, false>(item, row, j, count, plan);
}

STN_FUNCTION int64_t round_up(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

// How rows are cut into blocks, so that few blocks hold both points that read whole cells and others.
class Cuts {
 public:
  STN_MEMBER Cuts(const Item& item, const Reach& reach)
      : width_(item.target.size[0]),
        worthwhile_(reach.known() && width_ > 2 * kLanes && width_ * item.source.channels > 2 * kBlock),
        padded_(!pads_by_constant(item.sampling)),
        outer_(reach, grown(item, item.sampling.interpolation == Interpolation::bicubic ? 2.0 : 1.0)),
        inner_(reach, grown(item, -1.0)) {}

  // Runs skip(j, count) over pixels that read nothing, and visit(j, count) over blocks of all others.
  template <class Skip, class Visit>
  STN_MEMBER void for_blocks(const Row& row, Skip skip, Visit visit) const {
    if (!worthwhile_) return for_piece({0, width_}, visit);
    const Range outer = padded_ ? Range{0, width_} : outer_(row), inner = inner_(row);
    if (outer.first > 0) skip(0, outer.first);
    // Edges take whole lanes: they are short, and the rest of a lane costs nothing.
    const int64_t edge = clamp_to(inner.first, outer.first, outer.last) - outer.first;
    const int64_t first = at_most(outer.first + round_up(edge), outer.last);
    const int64_t last = at_least(outer.last - round_up(outer.last - clamp_to(inner.last, first, outer.last)), first);
    for_piece({outer.first, first}, visit);
    for_piece({first, last}, visit);
    for_piece({last, outer.last}, visit);
    if (outer.last < width_) skip(outer.last, width_ - outer.last);
  }

 private:
  STN_MEMBER static Box grown(const Item& item, double by) {
    Box box{};
    for (int a = 0; a < item.axes; ++a)
      box.low[a] = -by, box.high[a] = static_cast<double>(item.source.size[a] - 1) + by;
    return box;
  }

  template <class Visit>
  STN_MEMBER static void for_piece(Range piece, Visit visit) {
    for (int64_t j = piece.first; j < piece.last; j += kBlock)
      visit(j, static_cast<int>(piece.last - j < kBlock ? piece.last - j : kBlock));
  }

  int64_t width_;
  bool worthwhile_, padded_;
  Columns outer_, inner_;
};

// Runs visit(source, row, j, count, points) over blocks of some rows, and skip(row, j, count) over pixels that
// are known to read nothing.
template <class T, int D, class Skip, class Visit>
STN_FUNCTION void for_blocks(const Item& item, int64_t n, int64_t first_row, int64_t last_row, Skip skip, Visit visit) {
  const PointSource<T, D> source(item, n);
  const Reach reach = Reach::of<T>(item, source.matrix());
  const Cuts cuts(item, reach);
  for (int64_t r = first_row; r < last_row; ++r) {
    const Row row = row_of(item, n, r);
    cuts.for_blocks(
        row, [&](int64_t j, int64_t count) { skip(row, j, count); },
        [&](int64_t j, int count) {
          Points<T, D> points;
          source.fill(row, j, count, points);
          visit(source, row, j, count, points);
        });
  }
}

// What lies outside of the map, in a piece of a row.
template <class S>
STN_LARGE_FUNCTION void warp_nothing(const Item& item, const Row& row, int64_t j, int64_t count) {
  const Map& target = item.target;
  S* out = row_start<S>(target, row, j);
  if (target.channel_stride == 1 && target.channels > 1) {
    for (int64_t b = 0; b < count; ++b)
      for (int64_t c = 0; c < target.channels; ++c)
        out[b * target.stride[0] + c] = stored<S>(static_cast<Compute<S>>(item.sampling.outside_of(c)));
    return;
  }
  for (int64_t c = 0; c < target.channels; ++c, out += target.channel_stride) {
    const S outside = stored<S>(static_cast<Compute<S>>(item.sampling.outside_of(c)));
    if (target.stride[0] == 1)
      for (int64_t b = 0; b < count; ++b) out[b] = outside;
    else
      for (int64_t b = 0; b < count; ++b) out[b * target.stride[0]] = outside;
  }
}

template <class S, int D, class Visit>
STN_FUNCTION void warp_blocks(const Item& item, int64_t n, int64_t first_row, int64_t last_row, Visit visit) {
  using T = Compute<S>;
  for_blocks<T, D>(
      item, n, first_row, last_row,
      [&](const Row& row, int64_t j, int64_t count) { warp_nothing<S>(item, row, j, count); },
      [&](const PointSource<T, D>&, const Row& row, int64_t j, int count, Points<T, D>& points) {
        visit(row, j, count, points);
      });
}

template <class S, int D, int K>
STN_FUNCTION void warp_rows_of_taps(const Item& item, int64_t n, int64_t first_row, int64_t last_row) {
  using T = Compute<S>;
  warp_blocks<S, D>(item, n, first_row, last_row, [&](const Row& row, int64_t j, int count, Points<T, D>& points) {
    warp_taps<S, T, D, K>(item, row, j, count, points);
  });
}

template <class S, int D>
STN_FUNCTION void warp_rows_of_cells(const Item& item, int64_t n, int64_t first_row, int64_t last_row) {
  using T = Compute<S>;
  CellPlan<T, D> plan(item.source);
  warp_blocks<S, D>(item, n, first_row, last_row, [&](const Row& row, int64_t j, int count, Points<T, D>& points) {
    warp_cells<S>(item, row, j, count, points, plan);
  });
}

template <class S, int D>
void warp_rows(const Item& item, int64_t n, int64_t first_row, int64_t last_row) {
  switch (item.sampling.interpolation) {
    case Interpolation::nearest: return warp_rows_of_taps<S, D, 1>(item, n, first_row, last_row);
    case Interpolation::bicubic: return warp_rows_of_taps<S, D, 4>(item, n, first_row, last_row);
    case Interpolation::bilinear:
      if (!has_small_offsets(item.source)) return warp_rows_of_taps<S, D, 2>(item, n, first_row, last_row);
      return warp_rows_of_cells<S, D>(item, n, first_row, last_row);
  }
}

}  // namespace stn::STN_ISA
