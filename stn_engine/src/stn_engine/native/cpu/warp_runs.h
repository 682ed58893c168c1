// V, block by block: points, plan, then every channel.
#pragma once

#include "readers.h"
#include "read_pixels.h"
#include "read_taps.h"

namespace stn::STN_ISA {

template <class S>
STN_FUNCTION const S* source_of(const Item& item, int64_t n) {
  return static_cast<const S*>(item.source.data) + item_of(n, item.source.batch) * item.source.batch_stride;
}

// Whether all channels of a pixel stand side by side in both maps.
STN_FUNCTION bool is_channels_last(const Item& item) {
  return item.source.channels > 1 && item.source.channel_stride == 1 && item.target.channel_stride == 1;
}

STN_FUNCTION bool has_adjacent_pixels(const Map& map) { return map.stride[0] == 1 && map.size[0] > 1; }

// One channel of a block.
template <class S, class T, int D, bool Adjacent>
STN_FUNCTION void warp_plane(const Item& item, const Block& block, const CellPlan<T, D>& plan, const S* source,
                             const Constants<T>& constants, S* channel) {
  alignas(64) T buffer[kBlock];
  const Map& target = item.target;
  const bool direct = std::is_same_v<S, T> && target.stride[0] == 1 && is_even(target, block);
  T* out = direct ? reinterpret_cast<T*>(channel + offset_of(target, block.row, block.j)) : buffer;
  fetch_ahead(source, plan, block.count);
  read_cells<S, T, D, Adjacent>(source, plan, block.count, constants, out);
  if (!direct) store_values<S>(buffer, target, block, 0, block.count, channel);
}

// Blocks of which one channel is read after the other, so that what neighbouring blocks read of it is in the cache.
template <class T, int D>
struct Blocks {
  Block at[kBlocksTogether];
  CellPlan<T, D> plans[kBlocksTogether];
  int count = 0;
};

template <class S, class T, int D, bool Adjacent>
STN_LARGE_FUNCTION void warp_planes(const Item& item, const Blocks<T, D>& blocks) {
  const S* source = source_of<S>(item, blocks.at[0].row.n);
  for (int64_t c = 0; c < item.source.channels; ++c) {
    const Constants<T> constants = constants_of<T>(item.sampling, c);
    for (int b = 0; b < blocks.count; ++b)
      warp_plane<S, T, D, Adjacent>(item, blocks.at[b], blocks.plans[b], source, constants,
                                    channel_of<S>(item.target, blocks.at[b].row, c));
    source += item.source.channel_stride;
  }
}

template <class S, class T>
STN_FUNCTION void store_pixels(const T* values, int points, int64_t channels, int64_t stride, S* out) {
  if (stride == channels) return store_numbers<S>(values, static_cast<int>(points * channels), 1, out);
  for (int b = 0; b < points; ++b)
    store_numbers<S>(values + b * channels, static_cast<int>(channels), 1, out + b * stride);
}

// Points [first, last) of a block, into pixels that are evenly spaced from `out` on.
template <class S, class T, int D>
STN_LARGE_FUNCTION void warp_pixels(const Item& item, const S* source, const CellPlan<T, D>& plan, int first, int last,
                                    S* out) {
  const int64_t channels = item.source.channels, stride = item.target.stride[0];
  for (int64_t c = 0; c < channels; c += kBuffer) {
    const Channels some = {c, channels - c < kBuffer ? channels - c : kBuffer};
    if constexpr (std::is_same_v<S, T>)
      if (channels >= kLanes) {
        read_pixels<S, T, D>(item, source, plan, first, last, some, stride, out + c);
        continue;
      }
    alignas(64) T buffer[kBuffer + 1];
    const int step = static_cast<int>(kBuffer / some.count);
    for (int b = first; b < last; b += step) {
      const int points = last - b < step ? last - b : step;
      read_pixels<S, T, D>(item, source, plan, b, b + points, some, some.count, buffer);
      store_pixels<S, T>(buffer, points, some.count, stride, out + (b - first) * stride + c);
    }
  }
}

template <class S, class T, int D>
STN_FUNCTION void warp_block_of_pixels(const Item& item, const Block& block, const CellPlan<T, D>& plan) {
  const S* source = source_of<S>(item, block.row.n);
  S* out = channel_of<S>(item.target, block.row, 0);
  fetch_ahead(source, plan, block.count);
  for_pieces(item.target, block, [&](int first, int count, int64_t offset) {
    warp_pixels<S, T, D>(item, source, plan, first, first + count, out + offset);
  });
}

template <class S, class T, int D, int K>
STN_FUNCTION void warp_taps(const Item& item, const Block& block, const Points<T, D>& points, int64_t ahead) {
  const S* source = source_of<S>(item, block.row.n);
  const bool small = has_small_offsets(item.source), adjacent = item.source.stride[0] == 1;
  for (int b = 0; b < block.count; b += kLanes) {
    if (!small || !taps_are_inside<T, D, K>(item, points, b))
      warp_edge_taps<S, T, D, K>(item, source, points, block, b);
    else if (adjacent) warp_inside_taps<S, T, D, K, true>(item, source, points, block, b, ahead);
    else warp_inside_taps<S, T, D, K, false>(item, source, points, block, b, ahead);
  }
}

template <class S, class T, int D>
STN_FUNCTION void warp_together(const Item& item, Blocks<T, D>& blocks) {
  if (blocks.count == 0) return;
  if (is_channels_last(item)) {
    for (int b = 0; b < blocks.count; ++b) warp_block_of_pixels<S>(item, blocks.at[b], blocks.plans[b]);
  } else if (has_adjacent_pixels(item.source)) {
    warp_planes<S, T, D, true>(item, blocks);
  } else {
    warp_planes<S, T, D, false>(item, blocks);
  }
  blocks.count = 0;
}

// How rows are cut into blocks: pixels that read nothing are left out.
template <int D>
class Cuts {
 public:
  template <class T>
  STN_MEMBER Cuts(const Item& item, const Readers<T, D>& readers)
      : worthwhile_(readers.is_known() && pads_by_constant(item.sampling)),
        outer_(readers, grown(item, item.sampling.interpolation == Interpolation::bicubic ? 2.0 : 1.0)) {}

  // Runs skip(row, range) over pixels of a range that read nothing, and visit(block) over all others.
  template <class Skip, class Visit>
  STN_MEMBER void for_blocks(const Row& row, Range range, Skip skip, Visit visit) const {
    const Range outer = worthwhile_ ? outer_(row) : range;
    const int64_t first = clamped(outer.first, range), last = clamped(outer.last, range);
    if (range.first < first) skip(row, Range{range.first, first});
    for_blocks_of_row(row, Range{first, last}, visit);
    if (last < range.last) skip(row, Range{last, range.last});
  }

 private:
  STN_MEMBER static Box<D> grown(const Item& item, double by) {
    Box<D> box{};
    for (int a = 0; a < D; ++a) box.low[a] = -by, box.high[a] = static_cast<double>(item.source.size[a] - 1) + by;
    return box;
  }

  bool worthwhile_;
  ColumnsOfBox<D> outer_;
};

// Runs visit(source, block, points) over blocks of a run, and skip(row, range) over pixels that are known to read
// nothing.
template <class T, int D, class Skip, class Visit>
STN_FUNCTION void for_blocks(const Item& item, int64_t n, Range run, Skip skip, Visit visit) {
  const PointSource<T, D> source(item, n);
  const auto fill_and_visit = [&](const Block& block) {
    Points<T, D> points;
    source.fill(block, points);
    visit(source, block, points);
  };
  if (has_blocks_across_rows(item)) return for_blocks_of_run(item, n, run, fill_and_visit);
  const Cuts<D> cuts(item, Readers<T, D>(item, source.matrix()));
  for_rows_of_run(item, n, run,
                  [&](const Row& row, Range range) { cuts.for_blocks(row, range, skip, fill_and_visit); });
}

// What lies outside of the map, in a piece of a row.
template <class S>
STN_LARGE_FUNCTION void warp_nothing(const Item& item, const Row& row, Range range) {
  const Map& target = item.target;
  const int64_t count = range.last - range.first;
  S* out = channel_of<S>(target, row, 0) + offset_of(target, row, range.first);
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
STN_FUNCTION void warp_blocks(const Item& item, int64_t n, Range run, Visit visit) {
  using T = Compute<S>;
  for_blocks<T, D>(
      item, n, run, [&](const Row& row, Range range) { warp_nothing<S>(item, row, range); },
      [&](const PointSource<T, D>&, const Block& block, Points<T, D>& points) { visit(block, points); });
}

template <class S, int D, int K>
STN_FUNCTION void warp_run_of_taps(const Item& item, int64_t n, Range run) {
  using T = Compute<S>;
  const int64_t ahead = distance_ahead<T, D>(item, n);
  warp_blocks<S, D>(item, n, run, [&](const Block& block, Points<T, D>& points) {
    warp_taps<S, T, D, K>(item, block, points, ahead);
  });
}

template <class S, int D>
STN_FUNCTION void warp_run_of_cells(const Item& item, int64_t n, Range run) {
  using T = Compute<S>;
  const int most = is_channels_last(item) || item.source.channels < kChannelsTogether ? 1 : kBlocksTogether;
  Blocks<T, D> blocks;
  const int64_t ahead = distance_ahead<T, D>(item, n);
  for (int b = 0; b < most; ++b) blocks.plans[b].lie_over(item.source, ahead);
  warp_blocks<S, D>(item, n, run, [&](const Block& block, Points<T, D>& points) {
    blocks.at[blocks.count] = block;
    plan_cells(item.sampling, block.count, points, blocks.plans[blocks.count]);
    if (++blocks.count == most) warp_together<S>(item, blocks);
  });
  warp_together<S>(item, blocks);
}

template <class S, int D>
void warp_run(const Item& item, int64_t n, int64_t first, int64_t last) {
  const Range run = {first, last};
  switch (item.sampling.interpolation) {
    case Interpolation::nearest: return warp_run_of_taps<S, D, 1>(item, n, run);
    case Interpolation::bicubic: return warp_run_of_taps<S, D, 4>(item, n, run);
    case Interpolation::bilinear:
      if (!has_small_offsets(item.source)) return warp_run_of_taps<S, D, 2>(item, n, run);
      return warp_run_of_cells<S, D>(item, n, run);
  }
}

}  // namespace stn::STN_ISA
