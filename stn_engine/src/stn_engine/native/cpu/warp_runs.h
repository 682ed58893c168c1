// V, block by block: points, plan, then every channel.
#pragma once

#include "readers.h"
#include "read_pixels.h"
#include "read_taps.h"

namespace stn::STN_ISA {

template <class S>
STN_FUNCTION const S* source_of(const Problem& problem, int64_t n) {
  return static_cast<const S*>(problem.source.data) + item_of(n, problem.source.batch) * problem.source.batch_stride;
}

// Whether all channels of a pixel stand side by side in both maps.
STN_FUNCTION bool is_channels_last(const Problem& problem) {
  return problem.source.channels > 1 && problem.source.channel_stride == 1 && problem.target.channel_stride == 1;
}

STN_FUNCTION bool has_adjacent_pixels(const Map& map) { return map.stride[0] == 1 && map.size[0] > 1; }

// One channel of a block.
template <class S, class T, int D, bool Adjacent>
STN_FUNCTION void warp_plane(const Problem& problem, const Block& block, const CellPlan<T, D>& plan, const S* source,
                             const Constants<T>& constants, S* channel) {
  alignas(64) T buffer[kBlock];
  const Map& target = problem.target;
  const bool direct = std::is_same_v<S, T> && target.stride[0] == 1 && is_even(target, block);
  T* out = direct ? reinterpret_cast<T*>(channel + offset_of(target, block.row, block.j)) : buffer;
  prefetch(source, plan, block.count);
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

STN_FUNCTION int blocks_together(const Problem& problem) {
  return is_channels_last(problem) || problem.source.channels < kChannelsTogether ? 1 : kBlocksTogether;
}

template <class S, class T, int D, bool Adjacent>
STN_LARGE_FUNCTION void warp_planes(const Problem& problem, const Blocks<T, D>& blocks) {
  const S* source = source_of<S>(problem, blocks.at[0].row.n);
  for (int64_t c = 0; c < problem.source.channels; ++c) {
    const Constants<T> constants = constants_of<T>(problem.sampling, c);
    for (int b = 0; b < blocks.count; ++b)
      warp_plane<S, T, D, Adjacent>(problem, blocks.at[b], blocks.plans[b], source, constants,
                                    channel_of<S>(problem.target, blocks.at[b].row, c));
    source += problem.source.channel_stride;
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
STN_LARGE_FUNCTION void warp_pixels(const Problem& problem, const S* source, const CellPlan<T, D>& plan, int first,
                                    int last, S* out) {
  const int64_t channels = problem.source.channels, stride = problem.target.stride[0];
  for (int64_t c = 0; c < channels; c += kBuffer) {
    const Channels some = {c, channels - c < kBuffer ? channels - c : kBuffer};
    if constexpr (std::is_same_v<S, T>)
      if (channels >= kLanes) {
        read_pixels<S, T, D>(problem, source, plan, first, last, some, stride, out + c);
        continue;
      }
    alignas(64) T buffer[kBuffer + 1];
    const int step = static_cast<int>(kBuffer / some.count);
    for (int b = first; b < last; b += step) {
      const int points = last - b < step ? last - b : step;
      read_pixels<S, T, D>(problem, source, plan, b, b + points, some, some.count, buffer);
      store_pixels<S, T>(buffer, points, some.count, stride, out + (b - first) * stride + c);
    }
  }
}

template <class S, class T, int D>
STN_FUNCTION void warp_block_of_pixels(const Problem& problem, const Block& block, const CellPlan<T, D>& plan) {
  const S* source = source_of<S>(problem, block.row.n);
  S* out = channel_of<S>(problem.target, block.row, 0);
  prefetch(source, plan, block.count);
  for_pieces(problem.target, block, [&](int first, int count, int64_t offset) {
    warp_pixels<S, T, D>(problem, source, plan, first, first + count, out + offset);
  });
}

template <class S, class T, int D, int K>
STN_FUNCTION void warp_taps(const Problem& problem, const Block& block, const Points<T, D>& points, int64_t ahead) {
  const S* source = source_of<S>(problem, block.row.n);
  const bool small = has_small_offsets(problem.source), adjacent = problem.source.stride[0] == 1;
  for (int b = 0; b < block.count; b += kLanes) {
    if (!small || !taps_are_inside<T, D, K>(problem, points, b))
      warp_edge_taps<S, T, D, K>(problem, source, points, block, b);
    else if (adjacent) warp_inside_taps<S, T, D, K, true>(problem, source, points, block, b, ahead);
    else warp_inside_taps<S, T, D, K, false>(problem, source, points, block, b, ahead);
  }
}

template <class S, class T, int D>
STN_FUNCTION void warp_together(const Problem& problem, Blocks<T, D>& blocks) {
  if (blocks.count == 0) return;
  if (is_channels_last(problem)) {
    for (int b = 0; b < blocks.count; ++b) warp_block_of_pixels<S>(problem, blocks.at[b], blocks.plans[b]);
  } else if (has_adjacent_pixels(problem.source)) {
    warp_planes<S, T, D, true>(problem, blocks);
  } else {
    warp_planes<S, T, D, false>(problem, blocks);
  }
  blocks.count = 0;
}

// How rows are cut into blocks: pixels that read nothing are left out.
template <int D>
class Cuts {
 public:
  template <class T>
  STN_MEMBER Cuts(const Problem& problem, const Readers<T, D>& readers)
      : worthwhile_(readers.is_known() && pads_by_constant(problem.sampling)),
        outer_(readers, grown(problem, problem.sampling.interpolation == Interpolation::bicubic ? 2.0 : 1.0)) {}

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
  STN_MEMBER static Box<D> grown(const Problem& problem, double by) {
    Box<D> box{};
    for (int a = 0; a < D; ++a) box.low[a] = -by, box.high[a] = static_cast<double>(problem.source.size[a] - 1) + by;
    return box;
  }

  bool worthwhile_;
  ColumnsOfBox<D> outer_;
};

// Runs visit(source, block, points) over blocks of a run, and skip(row, range) over pixels that are known to read
// nothing.
template <class T, int D, class Skip, class Visit>
STN_FUNCTION void for_blocks(const Problem& problem, int64_t n, Range run, Skip skip, Visit visit) {
  const PointSource<T, D> source(problem, n);
  const auto fill_and_visit = [&](const Block& block) {
    Points<T, D> points;
    source.fill(block, points);
    visit(source, block, points);
  };
  if (has_blocks_across_rows(problem)) return for_blocks_of_run(problem, n, run, fill_and_visit);
  const Cuts<D> cuts(problem, Readers<T, D>(problem, source.matrix()));
  for_rows_of_run(problem, n, run,
                  [&](const Row& row, Range range) { cuts.for_blocks(row, range, skip, fill_and_visit); });
}

// What lies outside of the map, in a piece of a row.
template <class S>
STN_LARGE_FUNCTION void warp_nothing(const Problem& problem, const Row& row, Range range) {
  const Map& target = problem.target;
  const int64_t count = range.last - range.first;
  S* out = channel_of<S>(target, row, 0) + offset_of(target, row, range.first);
  if (target.channel_stride == 1 && target.channels > 1) {
    for (int64_t b = 0; b < count; ++b)
      for (int64_t c = 0; c < target.channels; ++c) out[b * target.stride[0] + c] = outside_as<S>(problem.sampling, c);
    return;
  }
  for (int64_t c = 0; c < target.channels; ++c, out += target.channel_stride) {
    const S outside = outside_as<S>(problem.sampling, c);
    if (target.stride[0] == 1)
      for (int64_t b = 0; b < count; ++b) out[b] = outside;
    else
      for (int64_t b = 0; b < count; ++b) out[b * target.stride[0]] = outside;
  }
}

template <class S, int D, class Visit>
STN_FUNCTION void warp_blocks(const Problem& problem, int64_t n, Range run, Visit visit) {
  using T = Compute<S>;
  for_blocks<T, D>(
      problem, n, run, [&](const Row& row, Range range) { warp_nothing<S>(problem, row, range); },
      [&](const PointSource<T, D>&, const Block& block, Points<T, D>& points) { visit(block, points); });
}

template <class S, int D, int K>
STN_FUNCTION void warp_run_of_taps(const Problem& problem, int64_t n, Range run) {
  using T = Compute<S>;
  const int64_t ahead = prefetch_distance<T, D>(problem, n);
  warp_blocks<S, D>(problem, n, run, [&](const Block& block, Points<T, D>& points) {
    warp_taps<S, T, D, K>(problem, block, points, ahead);
  });
}

template <class S, int D>
STN_FUNCTION void warp_run_of_cells(const Problem& problem, int64_t n, Range run) {
  using T = Compute<S>;
  const int most = blocks_together(problem);
  Blocks<T, D> blocks;
  const int64_t ahead = prefetch_distance<T, D>(problem, n);
  for (int b = 0; b < most; ++b) blocks.plans[b].lie_over(problem.source, ahead);
  warp_blocks<S, D>(problem, n, run, [&](const Block& block, Points<T, D>& points) {
    blocks.at[blocks.count] = block;
    plan_cells(problem.sampling, block.count, points, blocks.plans[blocks.count]);
    if (++blocks.count == most) warp_together<S>(problem, blocks);
  });
  warp_together<S>(problem, blocks);
}

// Labels of the nearest pixels, bit for bit.
template <class S, int D>
STN_FUNCTION void warp_run_of_labels(const Problem& problem, int64_t n, Range run) {
  using T = Compute<S>;
  warp_blocks<S, D>(problem, n, run, [&](const Block& block, Points<T, D>& points) {
    TapPlan<T, D, 1> plan;
    plan_taps(problem, block.count, points, plan);
    const S* source = source_of<S>(problem, block.row.n);
    for (int64_t c = 0; c < problem.source.channels; ++c, source += problem.source.channel_stride) {
      const S outside = outside_as<S>(problem.sampling, c);
      const S fill = fill_as<S>(problem.sampling, c);
      S labels[kBlock];
      for (int b = 0; b < block.count; ++b)
        labels[b] = !plan.finite[b] ? fill : tap_inside(plan, 0, b) ? source[tap_offset(plan, 0, b)] : outside;
      S* channel = channel_of<S>(problem.target, block.row, c);
      for_pieces(problem.target, block, 0, block.count, [&](int b, int some, int64_t offset) {
        for (int i = 0; i < some; ++i) channel[offset + i * problem.target.stride[0]] = labels[b + i];
      });
    }
  });
}

template <class S, int D>
void warp_run(const Problem& problem, int64_t n, int64_t first, int64_t last) {
  const Range run = {first, last};
  if constexpr (kIsLabel<S>) {
    return warp_run_of_labels<S, D>(problem, n, run);
  } else {
    switch (problem.sampling.interpolation) {
      case Interpolation::nearest: return warp_run_of_taps<S, D, 1>(problem, n, run);
      case Interpolation::bicubic: return warp_run_of_taps<S, D, 4>(problem, n, run);
      case Interpolation::bilinear:
        if (!has_small_offsets(problem.source)) return warp_run_of_taps<S, D, 2>(problem, n, run);
        return warp_run_of_cells<S, D>(problem, n, run);
    }
  }
}

}  // namespace stn::STN_ISA
