// The gradient of a map by the inverse of the transform, equation (4): every source pixel sums what the target
// pixels in reach have for it, in raster order, and is written once. Nothing is filled beforehand, and sums depend
// on nothing but the sizes.
//
// A thread walks the few candidates of its pixel by itself. Pixels with many of them (strong magnification, the
// borders that clipping reads from afar, maps that cannot be inverted) are walked by a whole warp, one by one, in a
// kernel of its own.
#pragma once

#include "interior.cuh"
#include "reach.cuh"

namespace stn {

constexpr int kGatherBlocks = sizeof(T) == 8 || D == 3 ? 2 : 3;
constexpr int kFarBlocks = 2;

// What a pixel weighs in a linear interpolation at x, exactly as when it was read: 0 from a pixel's distance on, and
// for NaN. `before` is the pixel before it.
STN_FUNCTION T tent(T x, T pixel, T before) {
  const T beyond = x - pixel;
  return larger(T(0), beyond < T(0) ? x - before : T(1) - beyond);
}

// What a tap of the coordinate weighs at a pixel, exactly as when it was read.
STN_FUNCTION T axis_weight(T x, int pixel, const Item& item, int a) {
  if constexpr (K == 4) {
    const AxisTaps taps = axis_taps(x, item, a);
    T weight = T(0);
#pragma unroll
    for (int k = 0; k < K; ++k) weight += taps.pixel[k] == pixel ? taps.weight[k] : T(0);
    return weight;
  } else {
    const T at = padded(x, item, a).x, place = static_cast<T>(pixel);
    if (K == 1) return round_of(at) == place ? T(1) : T(0);
    return tent(at, place, place - T(1));
  }
}

// `side` is the sign that W must have; 0 for any.
STN_FUNCTION T weight_of(const Item& item, const Rays& rays, const Pixel& target, const Pixel& source, double side) {
  T x[D], weight = T(1);
  rays.point(target, x);
  if (!all_finite(x)) return T(0);
  if (side != 0.0 && rays.projective && (rays.divisor(target) > T(0)) != (side > 0.0)) return T(0);
#pragma unroll
  for (int a = 0; a < D; ++a) weight *= axis_weight(x[a], source.at[a], item, a);
  return weight;
}

// Some channels of G.
struct Incoming {
  const Item& item;
  const S* grads;
  int channel;

  STN_MEMBER Incoming(const Item& item, int n, int channel)
      : item(item), grads(maps_of(item.target, n) + channel * item.target.channel_stride), channel(channel) {}

  template <int N, bool Interleaved, class Sum>
  STN_MEMBER void add(const Pixel& target, T weight, Sum (&sums)[N]) const {
    if (weight == T(0)) return;
    T grad[N];
    load_channels<N, Interleaved>(grads + offset_of<D>(item.target, 0, target), item.target.channel_stride,
                                  item.channels - channel, grad);
#pragma unroll
    for (int c = 0; c < N; ++c) sums[c] = fused(static_cast<Sum>(weight), static_cast<Sum>(grad[c]), sums[c]);
  }
};

template <int N, bool Interleaved>
STN_FUNCTION void walk_window(const Item& item, const Rays& rays, const Incoming& incoming, const Window& window,
                              const Pixel& source, T (&sums)[N]) {
  Pixel target = {{window.axis[0].first, window.axis[1].first, window.axis[2].first}};
  for (int left = static_cast<int>(window.pixels()); left > 0; --left) {
    incoming.add<N, Interleaved>(target, weight_of(item, rays, target, source, 0.0), sums);
    if (++target.at[0] < window.axis[0].last) continue;
    target.at[0] = window.axis[0].first;
    if (++target.at[1] < window.axis[1].last) continue;
    target.at[1] = window.axis[1].first;
    ++target.at[2];
  }
}

// Lanes take rows to find their columns, then columns of one row after the other.
template <int N, bool Interleaved>
STN_FUNCTION void walk_side(const Item& item, const Rays& rays, const Reach& reach, const Incoming& incoming,
                            const Window& window, const Pixel& source, double side, double (&sums)[N]) {
  const int lane = threadIdx.x % kWarp, height = window.axis[1].size();
  const Box box = box_of(item, source);
  const int rows = window.rows();
  for (int base = 0; base < rows; base += kWarp) {
    const int row = base + lane;
    Pixel mine = {{0, 0, 0}};
    Range columns = {0, 0};
    if (row < rows) {
      mine.at[1] = window.axis[1].first + row % height;
      mine.at[2] = window.axis[2].first + row / height;
      columns = columns_of(item, reach, box, mine.at[1], mine.at[2], side);
      columns = {larger(columns.first, window.axis[0].first), smaller(columns.last, window.axis[0].last)};
    }
    for (unsigned left = __ballot_sync(kAllLanes, columns.size() > 0); left != 0; left &= left - 1) {
      const int from = __ffs(static_cast<int>(left)) - 1;
      Pixel target = {{0, __shfl_sync(kAllLanes, mine.at[1], from), __shfl_sync(kAllLanes, mine.at[2], from)}};
      const int first = __shfl_sync(kAllLanes, columns.first, from), last = __shfl_sync(kAllLanes, columns.last, from);
      for (target.at[0] = first + lane; target.at[0] < last; target.at[0] += kWarp)
        incoming.add<N, Interleaved>(target, weight_of(item, rays, target, source, side), sums);
    }
  }
}

// The whole warp must call it, with the same pixel.
template <int N, bool Interleaved>
STN_FUNCTION void walk_rows(const Item& item, const Rays& rays, const Reach& reach, int n, int channel,
                            const Pixel& source, double (&sums)[N]) {
  const Window window = window_of(item, reach, source);
  const Incoming incoming(item, n, channel);
#pragma unroll
  for (int c = 0; c < N; ++c) sums[c] = 0.0;
  if (reach.sign >= 0.0) walk_side<N, Interleaved>(item, rays, reach, incoming, window, source, 1.0, sums);
  if (reach.sign <= 0.0) walk_side<N, Interleaved>(item, rays, reach, incoming, window, source, -1.0, sums);
#pragma unroll
  for (int c = 0; c < N; ++c) sums[c] = warp_sum(sums[c]);
}

// A source pixel and some of its channels, in one tile.
template <bool Interleaved>
struct Gathered {
  static constexpr int N = kChunk<Interleaved>;
  Pixel source;
  int channel;
  bool alive;

  STN_MEMBER Gathered(const Item& item, const Place& place, int unit) : source{{0, 0, 0}} {
    const int pixels = pixels_of(item.from), chunks = chunks_of(item);
    channel = N * (Interleaved ? unit % chunks : unit / pixels);
    alive = unit < pixels * chunks && pixel_of(place, item.from, Interleaved ? unit / chunks : unit % pixels, source);
  }

  static STN_MEMBER int chunks_of(const Item& item) { return (item.channels + N - 1) / N; }
  static STN_MEMBER int count(const Item& item) { return pixels_of(item.from) * chunks_of(item); }

  STN_MEMBER void store(const Item& item, int n, const T (&sums)[N]) const {
    S* to = reinterpret_cast<S*>(item.by_source.data) + offset_of<D>(item.by_source, n, source);
    store_channels<N, Interleaved>(to + channel * item.by_source.channel_stride, item.by_source.channel_stride,
                                   item.channels - channel, sums);
  }
};

// Behind the last item that reads map n.
STN_FUNCTION int last_reader(const Item& item, int n) { return item.by_source.batch == 1 ? item.batch : n + 1; }

STN_FUNCTION const Reach& reach_of(const Item& item, int n) {
  return item.reaches[shared_index(n, item.parameter_batch)];
}

constexpr bool kHasNearGather = D == 2 && K == 2;
constexpr int kAbreast = 3;  // candidates of a row that are read before the first is added; more are rare

// Affine maps under which no pixel has many candidates: windows in the precision of the sums, with slack for it, and
// candidates that need no more than their distance. Weights, and the order of sums, are those of the general path.
template <bool Interleaved>
STN_FUNCTION void gather_near(const Item& item, const Place& place, const Reach& reach, const Rays& rays) {
  constexpr int N = kChunk<Interleaved>;
  const Affinity affinity(rays);
  const S* grads = maps_of(item.target, place.n);
  T inverse[2][3], extent[2];
#pragma unroll
  for (int a = 0; a < 2; ++a) {
    T farthest = T(0);
#pragma unroll
    for (int b = 0; b < 3; ++b) {
      inverse[a][b] = static_cast<T>(reach.inverse[a][b == 2 ? D : b]);
      farthest += magnitude(inverse[a][b]) * static_cast<T>(b == 2 ? 1 : item.from.size[b]);
    }
    extent[a] = static_cast<T>(reach.extent[a]) + T(1e-3) + farthest * (sizeof(T) == 8 ? T(1e-15) : T(1e-6));
  }
#pragma unroll 1
  for (int unit = threadIdx.x; unit < Gathered<Interleaved>::count(item); unit += kThreads) {
    const Gathered<Interleaved> mine(item, place, unit);
    if (!mine.alive) continue;
    const T x = static_cast<T>(mine.source.at[0]), y = static_cast<T>(mine.source.at[1]);
    Range axis[2];
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      const T centre = fused(inverse[a][0], x, fused(inverse[a][1], y, inverse[a][2]));
      const T size = static_cast<T>(item.to.size[a]);
      axis[a].first = static_cast<int>(clamp_to(-floor_of(extent[a] - centre), T(0), size));
      axis[a].last = static_cast<int>(clamp_to(floor_of(centre + extent[a]) + T(1), T(0), size));
    }
    // One pointer a channel, so that a candidate needs one offset; those that are not there repeat the first.
    constexpr int Pointers = Interleaved ? 1 : N;
    const S* channels[Pointers];
#pragma unroll
    for (int c = 0; c < Pointers; ++c)
      channels[c] =
          grads + (mine.channel + c < item.channels ? mine.channel + c : mine.channel) * item.target.channel_stride;
    T sums[N] = {};
#pragma unroll 1
    for (int i = axis[1].first; i < axis[1].last; ++i) {
      const T row = static_cast<T>(i);
      const T from_x = fused(affinity.row[0][1], row, affinity.row[0][2]);
      const T from_y = fused(affinity.row[1][1], row, affinity.row[1][2]);
      const int line = i * item.target.stride[1];
#pragma unroll 1
      for (int j = axis[0].first; j < axis[0].last; j += kAbreast) {
        T weight[kAbreast], grad[kAbreast][N] = {};
#pragma unroll
        for (int k = 0; k < kAbreast; ++k) {
          const T column = static_cast<T>(j + k);
          weight[k] = tent(fused(affinity.row[0][0], column, from_x), x, x - T(1)) *
                      tent(fused(affinity.row[1][0], column, from_y), y, y - T(1));
          if (j + k >= axis[0].last) weight[k] = T(0);
          if (weight[k] == T(0)) continue;
          const int offset = line + (j + k) * item.target.stride[0];
          if constexpr (Interleaved) {
            load_channels<N, true>(channels[0] + offset, 1, N, grad[k]);
          } else {
#pragma unroll
            for (int c = 0; c < N; ++c) grad[k][c] = widened(fetched(channels[c] + offset));
          }
        }
#pragma unroll
        for (int k = 0; k < kAbreast; ++k)
#pragma unroll
          for (int c = 0; c < N; ++c) sums[c] = fused(weight[k], grad[k][c], sums[c]);
      }
    }
    mine.store(item, place.n, sums);
  }
}

// Pixels with few candidates.
template <bool Interleaved>
STN_FUNCTION void gather_tiles(const Launch& launch) {
  constexpr int N = kChunk<Interleaved>;
  for (Run run(launch); run.goes_on(); ++run.tile) {
    const Item& item = item_of(launch, run);
    const Place place = place_of(item.from, run.tile_of_item());
    const int last = last_reader(item, place.n);
    Rays rays = load_rays(item, place.n);
    if constexpr (kHasNearGather) {
      if (last == place.n + 1 && !rays.projective && reach_of(item, place.n).always_few &&
          reach_of(item, place.n).finite) {
        gather_near<Interleaved>(item, place, reach_of(item, place.n), rays);
        continue;
      }
    }
    for (int base = 0; base < Gathered<Interleaved>::count(item); base += kThreads) {
      const Gathered<Interleaved> mine(item, place, base + static_cast<int>(threadIdx.x));
      bool few = mine.alive;
      T sums[N] = {};
      for (int n = place.n; n < last; ++n) {
        rays = load_rays(item, n);
        if (!few) continue;
        const Window window = window_of(item, reach_of(item, n), mine.source);
        few = window.pixels() <= kFew;
        if (few) walk_window<N, Interleaved>(item, rays, Incoming(item, n, mine.channel), window, mine.source, sums);
      }
      if (few) mine.store(item, place.n, sums);
    }
  }
}

// Whether a pixel is left to its warp.
STN_FUNCTION bool has_many(const Item& item, const Place& place, int last, const Pixel& source) {
  bool many = false;
  for (int n = place.n; n < last; ++n) many = many || window_of(item, reach_of(item, n), source).pixels() > kFew;
  return many;
}

// All other pixels.
template <bool Interleaved>
STN_FUNCTION void gather_far_tiles(const Launch& launch) {
  constexpr int N = kChunk<Interleaved>;
  for (Run run(launch); run.goes_on(); ++run.tile) {
    const Item& item = item_of(launch, run);
    const Place place = place_of(item.from, run.tile_of_item());
    const int last = last_reader(item, place.n), lane = threadIdx.x % kWarp;
    bool any = false;
    for (int n = place.n; n < last; ++n) any = any || !reach_of(item, n).always_few;
    for (int base = 0; any && base < Gathered<Interleaved>::count(item); base += kThreads) {
      const Gathered<Interleaved> mine(item, place, base + static_cast<int>(threadIdx.x));
      const bool many = mine.alive && has_many(item, place, last, mine.source);
      const unsigned crowd = __ballot_sync(kAllLanes, many);
      T sums[N] = {};
      for (int n = place.n; n < last; ++n) {
        const Rays rays = load_rays(item, n);
        for (unsigned left = crowd; left != 0; left &= left - 1) {
          const int from = __ffs(static_cast<int>(left)) - 1, channel = __shfl_sync(kAllLanes, mine.channel, from);
          Pixel source;
          for (int a = 0; a < kMaxAxes; ++a) source.at[a] = __shfl_sync(kAllLanes, mine.source.at[a], from);
          double found[N];
          walk_rows<N, Interleaved>(item, rays, reach_of(item, n), n, channel, source, found);
#pragma unroll
          for (int c = 0; c < N; ++c) sums[c] += lane == from ? static_cast<T>(found[c]) : T(0);
        }
      }
      if (many) mine.store(item, place.n, sums);
    }
  }
}

// One block per theta: what all tiles of its items need to know of it.
STN_FUNCTION void find_reaches(const Launch& launch) {
  for (Run run(launch); run.goes_on(); ++run.tile) {
    const Item& item = item_of(launch, run);
    const int n = static_cast<int>(run.tile_of_item());
    if (threadIdx.x == 0) find_reach(item, n, item.reaches[n]);
  }
}

}  // namespace stn
