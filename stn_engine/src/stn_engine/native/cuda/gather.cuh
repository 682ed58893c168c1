// The gradient of a map by the inverse of the transform, equation (4): every source pixel sums what the target
// pixels that may read it have for it, in raster order, and is written once. Nothing is filled beforehand, and sums
// depend on nothing but the sizes.
//
// A thread walks the few candidates of its pixel by itself. Pixels with many of them (strong magnification, the
// borders that clipping reads from afar, maps that cannot be inverted) are walked by a whole warp, one by one, in a
// kernel of its own.
#pragma once

#include "whole.cuh"
#include "preimage.cuh"

namespace stn {

// What a pixel weighs in a linear interpolation at x, exactly as when it was read: 0 from a pixel's distance on, and
// for NaN. `before` is the pixel before it.
STN_FUNCTION T tent(T x, T pixel, T before) {
  const T beyond = x - pixel;
  return larger(T(0), beyond < T(0) ? x - before : T(1) - beyond);
}

// What a tap of the coordinate weighs at a pixel, exactly as when it was read.
STN_FUNCTION T axis_weight(T x, int pixel, const Descriptor& problem, int a) {
  if constexpr (K == 4) {
    const AxisTaps taps = axis_taps(x, problem, a);
    T weight = T(0);
#pragma unroll
    for (int k = 0; k < K; ++k) weight += taps.pixel[k] == pixel ? taps.weight[k] : T(0);
    return weight;
  } else {
    const T at = padded(x, problem, a).x, place = static_cast<T>(pixel);
    if (K == 1) return round_of(at) == place ? T(1) : T(0);
    return tent(at, place, place - T(1));
  }
}

// What a target pixel weighs at a source pixel. `side` is the sign that W must have, or 0 for any.
STN_FUNCTION T weight_of(const Descriptor& problem, const Rays& rays, const Pixel& target, const Pixel& source,
                         double side) {
  T x[D], weight = T(1);
  rays.point(target, x);
  if (!all_finite(x)) return T(0);
  if (side != 0.0 && rays.projective && (rays.divisor(target) > T(0)) != (side > 0.0)) return T(0);
#pragma unroll
  for (int a = 0; a < D; ++a) weight *= axis_weight(x[a], source.at[a], problem, a);
  return weight;
}

// Adds some channels of G.
struct Incoming {
  const Descriptor& problem;
  const S* grads;
  int channel;

  STN_MEMBER Incoming(const Descriptor& problem, int n, int channel)
      : problem(problem),
        grads(maps_of(problem.grad_output, n) + channel * problem.grad_output.channel_stride),
        channel(channel) {}

  template <int N, bool Interleaved, class Sum>
  STN_MEMBER void add(const Pixel& target, T weight, Sum (&sums)[N]) const {
    if (weight == T(0)) return;
    T grad[N];
    load_channels<N, Interleaved>(grads + offset_of<D>(problem.grad_output, 0, target),
                                  problem.grad_output.channel_stride, problem.channels - channel, grad);
#pragma unroll
    for (int c = 0; c < N; ++c) sums[c] = fused(static_cast<Sum>(weight), static_cast<Sum>(grad[c]), sums[c]);
  }
};

template <int N, bool Interleaved>
STN_FUNCTION void walk_window(const Descriptor& problem, const Rays& rays, const Incoming& incoming,
                              const Window& window, const Pixel& source, T (&sums)[N]) {
  Pixel target = {{window.axis[0].first, window.axis[1].first, window.axis[2].first}};
  for (int left = static_cast<int>(window.pixels()); left > 0; --left) {
    incoming.add<N, Interleaved>(target, weight_of(problem, rays, target, source, 0.0), sums);
    if (++target.at[0] < window.axis[0].last) continue;
    target.at[0] = window.axis[0].first;
    if (++target.at[1] < window.axis[1].last) continue;
    target.at[1] = window.axis[1].first;
    ++target.at[2];
  }
}

// The lanes of a warp first take a row each, to find its columns, then the columns of one row after the other.
template <int N, bool Interleaved>
STN_FUNCTION void walk_side(const Descriptor& problem, const Rays& rays, const PixelPreimage& preimage,
                            const Incoming& incoming, const Window& window, const Pixel& source, double side,
                            double (&sums)[N]) {
  const int lane = threadIdx.x % kWarp, height = window.axis[1].size();
  const Box<D> box = box_of(problem, source);
  const int rows = window.rows();
  for (int base = 0; base < rows; base += kWarp) {
    const int row = base + lane;
    Pixel mine = {{0, 0, 0}};
    Range columns = {0, 0};
    if (row < rows) {
      mine.at[1] = window.axis[1].first + row % height;
      mine.at[2] = window.axis[2].first + row / height;
      columns = columns_of(problem, preimage, box, mine.at[1], mine.at[2], side);
      columns = {larger(columns.first, window.axis[0].first), smaller(columns.last, window.axis[0].last)};
    }
    for (unsigned left = __ballot_sync(kAllLanes, columns.size() > 0); left != 0; left &= left - 1) {
      const int from = __ffs(static_cast<int>(left)) - 1;
      Pixel target = {{0, __shfl_sync(kAllLanes, mine.at[1], from), __shfl_sync(kAllLanes, mine.at[2], from)}};
      const int first = __shfl_sync(kAllLanes, columns.first, from), last = __shfl_sync(kAllLanes, columns.last, from);
      for (target.at[0] = first + lane; target.at[0] < last; target.at[0] += kWarp)
        incoming.add<N, Interleaved>(target, weight_of(problem, rays, target, source, side), sums);
    }
  }
}

// Sums what a source pixel gets from all rows of its window. The whole warp must call it, with the same pixel.
template <int N, bool Interleaved>
STN_FUNCTION void walk_rows(const Descriptor& problem, const Rays& rays, const PixelPreimage& preimage, int n,
                            int channel, const Pixel& source, double (&sums)[N]) {
  const Window window = window_of(problem, preimage, source);
  const Incoming incoming(problem, n, channel);
#pragma unroll
  for (int c = 0; c < N; ++c) sums[c] = 0.0;
  if (preimage.sign >= 0.0) walk_side<N, Interleaved>(problem, rays, preimage, incoming, window, source, 1.0, sums);
  if (preimage.sign <= 0.0) walk_side<N, Interleaved>(problem, rays, preimage, incoming, window, source, -1.0, sums);
#pragma unroll
  for (int c = 0; c < N; ++c) sums[c] = warp_sum(sums[c]);
}

// A source pixel and some of its channels, in one tile.
template <bool Interleaved>
struct Gathered {
  static constexpr int N = kGroup<Interleaved>;
  Pixel source;
  int channel;
  bool alive;

  STN_MEMBER Gathered(const Descriptor& problem, const Place& place, int unit) : source{{0, 0, 0}} {
    const int pixels = pixels_of(problem.source), groups = groups_of(problem);
    channel = N * (Interleaved ? unit % groups : unit / pixels);
    alive =
        unit < pixels * groups && pixel_of(place, problem.source, Interleaved ? unit / groups : unit % pixels, source);
  }

  static STN_MEMBER int groups_of(const Descriptor& problem) { return (problem.channels + N - 1) / N; }
  static STN_MEMBER int count(const Descriptor& problem) { return pixels_of(problem.source) * groups_of(problem); }

  STN_MEMBER void store(const Descriptor& problem, int n, const T (&sums)[N]) const {
    S* to = reinterpret_cast<S*>(problem.grad_feature_map.data) + offset_of<D>(problem.grad_feature_map, n, source);
    store_channels<N, Interleaved>(to + channel * problem.grad_feature_map.channel_stride,
                                   problem.grad_feature_map.channel_stride, problem.channels - channel, sums);
  }
};

// The item of the batch behind the last one that reads map n.
STN_FUNCTION int last_reader(const Descriptor& problem, int n) {
  return problem.grad_feature_map.batch == 1 ? problem.batch : n + 1;
}

STN_FUNCTION const PixelPreimage& preimage_of(const Descriptor& problem, int n) {
  return in_device_memory(problem.preimages)[shared_index(n, problem.parameter_batch)];
}

constexpr bool kHasNearGather = D == 2 && K == 2;

// Candidates along each axis of which a pixel has no more where nothing is magnified.
constexpr int kNear = 3;

// An affine map and its inverse in the precision of the sums, for maps where no pixel has many candidates: windows have
// slack for it. Weights, and the order of sums, are those of the general path.
struct NearGather {
  T row[2][3], inverse[2][3], extent[2];
  bool is_near;  // whether the map is such a one
  bool has_few;  // whether no pixel has more than kNear along an axis

  STN_MEMBER void find(const Descriptor& problem, const Rays& rays, const PixelPreimage& preimage) {
    is_near = !rays.projective && preimage.always_few && preimage.finite;
    has_few = is_near;
    if (!is_near) return;
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      T farthest = T(0);
#pragma unroll
      for (int b = 0; b < 3; ++b) {
        row[a][b] = rays.at[a * (D + 1) + b];
        inverse[a][b] = static_cast<T>(preimage.inverse[a][b == 2 ? D : b]);
        farthest += magnitude(inverse[a][b]) * static_cast<T>(b == 2 ? 1 : problem.source.size[b]);
      }
      extent[a] = static_cast<T>(preimage.extent[a]) + T(1e-3) + farthest * (sizeof(T) == 8 ? T(1e-15) : T(1e-6));
      has_few = has_few && T(2) * extent[a] <= T(kNear) && problem.target.size[a] <= kLargestSize;
    }
  }

  // Whether lanes that lie along a row of the source read columns of the target.
  STN_MEMBER bool is_steep() const { return magnitude(inverse[1][0]) > T(kSteep) * magnitude(inverse[0][0]); }

  STN_MEMBER T centre(int a, T x, T y) const { return fused(inverse[a][0], x, fused(inverse[a][1], y, inverse[a][2])); }
  STN_MEMBER T point(int a, T column, T from) const { return fused(row[a][0], column, from); }
  STN_MEMBER T point_of_row(int a, T line) const { return fused(row[a][1], line, row[a][2]); }
};

// The same as `tent` behind the second pixel of an axis, where differences to the pixels around are exact.
STN_FUNCTION T inner_tent(T x, T pixel) {
#if defined(__CUDACC_RTC__)
  if constexpr (sizeof(T) == 4) return __saturatef(T(1) - ::fabsf(x - pixel));
#endif
  return larger(T(0), T(1) - magnitude(x - pixel));
}

// A source pixel and the first of its candidates along each axis.
struct NearPixel {
  int x, y, first[2];

  STN_MEMBER NearPixel(const NearGather& gather, int x, int y) : x(x), y(y) {
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      anchored(gather.centre(a, static_cast<T>(x), static_cast<T>(y)) - gather.extent[a], first[a]);
      ++first[a];
    }
  }

  // Whether all candidates from there on are in the target, and weights those of `inner_tent`.
  STN_MEMBER bool is_inner(const Descriptor& problem) const {
    bool is_inner = (x >= 2) & (y >= 2);
#pragma unroll
    for (int a = 0; a < 2; ++a) is_inner &= (first[a] >= 0) & (first[a] < problem.target.size[a] - (kNear - 1));
    return is_inner;
  }
};

// Sums over kNear candidates along each axis; G begins at the first channel of the group. Of pixels that are not inner
// ones some candidates may not be there.
template <int N, bool Interleaved, bool Inner>
STN_FUNCTION void add_near(const Descriptor& problem, const NearGather& gather, const S* grads, const NearPixel& pixel,
                           int live, T (&sums)[N]) {
  const Map& map = problem.grad_output;
  const int step = Inner && !Interleaved ? 1 : map.stride[0];
  const T x = static_cast<T>(pixel.x), y = static_cast<T>(pixel.y);
  const T column = static_cast<T>(pixel.first[0]), line = static_cast<T>(pixel.first[1]);
  const int place = pixel.first[0] * step + pixel.first[1] * map.stride[1];
  if (Inner) grads += static_cast<unsigned>(place);
  else grads += place;
#pragma unroll
  for (int i = 0; i < kNear; ++i, grads += map.stride[1]) {
    const T from_x = gather.point_of_row(0, line + T(i)), from_y = gather.point_of_row(1, line + T(i));
    T grad[kNear][N];
    bool there[kNear];
#pragma unroll
    for (int j = 0; j < kNear; ++j) {
      there[j] = Inner || (static_cast<unsigned>(pixel.first[0] + j) < static_cast<unsigned>(problem.target.size[0]) &&
                           static_cast<unsigned>(pixel.first[1] + i) < static_cast<unsigned>(problem.target.rows));
      if (there[j]) load_channels<N, Interleaved>(grads + j * step, map.channel_stride, live, grad[j]);
    }
#pragma unroll
    for (int j = 0; j < kNear; ++j) {
      const T at_x = gather.point(0, column + T(j), from_x), at_y = gather.point(1, column + T(j), from_y);
      const T weight =
          Inner ? inner_tent(at_x, x) * inner_tent(at_y, y) : tent(at_x, x, x - T(1)) * tent(at_y, y, y - T(1));
#pragma unroll
      for (int c = 0; c < N; ++c)
        if (there[j] && weight != T(0)) sums[c] = fused(weight, grad[j][c], sums[c]);  // what weighs nothing may be NaN
    }
  }
}

// Sums over a window of any size, by the distances of candidates alone.
template <int N, bool Interleaved>
STN_FUNCTION void add_window(const Descriptor& problem, const NearGather& gather, const S* grads, int live, int left,
                             int top, T (&sums)[N]) {
  const Map& map = problem.grad_output;
  const T x = static_cast<T>(left), y = static_cast<T>(top);
  Range axis[2];
#pragma unroll
  for (int a = 0; a < 2; ++a) {
    const T centre = gather.centre(a, x, y), size = static_cast<T>(problem.target.size[a]);
    axis[a].first = static_cast<int>(clamp_to(-floor_of(gather.extent[a] - centre), T(0), size));
    axis[a].last = static_cast<int>(clamp_to(floor_of(centre + gather.extent[a]) + T(1), T(0), size));
  }
#pragma unroll 1
  for (int i = axis[1].first; i < axis[1].last; ++i) {
    const T from_x = gather.point_of_row(0, static_cast<T>(i)), from_y = gather.point_of_row(1, static_cast<T>(i));
#pragma unroll 1
    for (int j = axis[0].first; j < axis[0].last; ++j) {
      const T weight = tent(gather.point(0, static_cast<T>(j), from_x), x, x - T(1)) *
                       tent(gather.point(1, static_cast<T>(j), from_y), y, y - T(1));
      if (weight == T(0)) continue;
      T grad[N];
      load_channels<N, Interleaved>(grads + (i * map.stride[1] + j * map.stride[0]), map.channel_stride, live, grad);
#pragma unroll
      for (int c = 0; c < N; ++c) sums[c] = fused(weight, grad[c], sums[c]);
    }
  }
}

STN_FUNCTION NearPixel quad_pixel(const NearGather& gather, const Quad& quad, int p) {
  const Pixel pixel = quad.pixel(p);
  return {gather, pixel.at[0], pixel.at[1]};
}

STN_FUNCTION void gather_quads(const Descriptor& problem, const Place& place, const NearGather& gather) {
  constexpr int N = kGroup<false>;
  const Quad quad(place, problem.source, gather.is_steep());
  const Map &from = problem.grad_output, &to = problem.grad_feature_map;
  const S* grads = maps_of(from, place.n);
  S* grad_feature_map = maps_of(to, place.n);
  // The first and the last pixel bound the others.
  const bool are_inner = gather.has_few && quad.fits(problem.source) && from.stride[0] == 1 &&
                         quad_pixel(gather, quad, 0).is_inner(problem) &&
                         quad_pixel(gather, quad, kQuad - 1).is_inner(problem);
  if (are_inner) {
    __shared__ T kept[N][kQuad][kThreads];  // of each thread, for itself: they would take its registers
    const QuadSteps steps(to, grad_feature_map, quad.is_row);
    S* target = grad_feature_map + offset_of<D>(to, 0, quad.pixel(0));
    for_groups<N, false>(0, problem.channels, [&](auto count, int first) {
      constexpr int M = decltype(count)::kCount;
#pragma unroll 1
      for (int p = 0; p < kQuad; ++p) {
        T sums[M] = {};
        add_near<M, false, true>(problem, gather, grads + first * from.channel_stride, quad_pixel(gather, quad, p), M,
                                 sums);
#pragma unroll
        for (int c = 0; c < M; ++c) kept[c][p][threadIdx.x] = sums[c];
      }
#pragma unroll
      for (int c = 0; c < M; ++c) {
        T values[kQuad];
#pragma unroll
        for (int p = 0; p < kQuad; ++p) values[p] = kept[c][p][threadIdx.x];
        steps.store(target + (first + c) * to.channel_stride, values);
      }
    });
    return;
  }
#pragma unroll 1
  for (int p = 0; p < kQuad; ++p) {
    if (!quad.has(p, problem.source)) continue;
    const Pixel pixel = quad.pixel(p);
    S* target = grad_feature_map + offset_of<D>(to, 0, pixel);
#pragma unroll 1
    for (int channel = 0; channel < problem.channels; ++channel) {
      const S* group = grads + channel * from.channel_stride;
      T sums[1] = {};
      if (gather.has_few) add_near<1, false, false>(problem, gather, group, quad_pixel(gather, quad, p), 1, sums);
      else add_window<1, false>(problem, gather, group, 1, pixel.at[0], pixel.at[1], sums);
      store_channels<1, false>(target + channel * to.channel_stride, 0, 1, sums);
    }
  }
}

STN_FUNCTION void gather_interleaved(const Descriptor& problem, const Place& place, const NearGather& gather) {
  constexpr int N = kGroup<true>;
  const S* grads = maps_of(problem.grad_output, place.n);
#pragma unroll 1
  for (int unit = threadIdx.x; unit < Gathered<true>::count(problem); unit += kThreads) {
    const Gathered<true> mine(problem, place, unit);
    if (!mine.alive) continue;
    T sums[N] = {};
    const NearPixel pixel(gather, mine.source.at[0], mine.source.at[1]);
    const S* group = grads + mine.channel;
    if (gather.has_few && pixel.is_inner(problem)) add_near<N, true, true>(problem, gather, group, pixel, N, sums);
    else add_window<N, true>(problem, gather, group, N, pixel.x, pixel.y, sums);
    mine.store(problem, place.n, sums);
  }
}

// Gathers all pixels that have few candidates.
template <bool Interleaved>
STN_FUNCTION void gather_tiles(const Launch& launch) {
  constexpr int N = kGroup<Interleaved>;
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.source, loop.tile_of_problem());
    const int last = last_reader(problem, place.n);
    const bool is_new = held().n != place.n;
    if (problem.inverts) find_preimage(problem, place.n);
    Rays rays = load_rays(problem, place.n);
    if constexpr (kHasNearGather) {
      __shared__ NearGather gather;
      if (is_new) {
        if (threadIdx.x == 0) gather.find(problem, rays, preimage_of(problem, place.n));
        __syncthreads();
      }
      if (last == place.n + 1 && gather.is_near) {
        if constexpr (Interleaved) gather_interleaved(problem, place, gather);
        else gather_quads(problem, place, gather);
        continue;
      }
    }
    for (int base = 0; base < Gathered<Interleaved>::count(problem); base += kThreads) {
      const Gathered<Interleaved> mine(problem, place, base + static_cast<int>(threadIdx.x));
      bool few = mine.alive;
      T sums[N] = {};
      for (int n = place.n; n < last; ++n) {
        rays = load_rays(problem, n);
        if (!few) continue;
        const Window window = window_of(problem, preimage_of(problem, n), mine.source);
        few = window.pixels() <= kFewCandidates;
        if (few)
          walk_window<N, Interleaved>(problem, rays, Incoming(problem, n, mine.channel), window, mine.source, sums);
      }
      if (few) mine.store(problem, place.n, sums);
    }
  }
}

// Whether a pixel has so many candidates that a warp gathers it.
STN_FUNCTION bool has_many(const Descriptor& problem, const Place& place, int last, const Pixel& source) {
  bool many = false;
  for (int n = place.n; n < last; ++n)
    many = many || window_of(problem, preimage_of(problem, n), source).pixels() > kFewCandidates;
  return many;
}

// Gathers all other pixels.
template <bool Interleaved>
STN_FUNCTION void gather_far_tiles(const Launch& launch) {
  constexpr int N = kGroup<Interleaved>;
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.source, loop.tile_of_problem());
    const int last = last_reader(problem, place.n), lane = threadIdx.x % kWarp;
    bool any = false;
    for (int n = place.n; n < last; ++n) any = any || !preimage_of(problem, n).always_few;
    if (!any) {  // nor has any other tile of this map
      loop.tile += tiles_left(problem.source, loop, place) - 1;
      continue;
    }
    for (int base = 0; base < Gathered<Interleaved>::count(problem); base += kThreads) {
      const Gathered<Interleaved> mine(problem, place, base + static_cast<int>(threadIdx.x));
      const bool many = mine.alive && has_many(problem, place, last, mine.source);
      const unsigned crowd = __ballot_sync(kAllLanes, many);
      T sums[N] = {};
      for (int n = place.n; n < last; ++n) {
        const Rays rays = load_rays(problem, n);
        for (unsigned left = crowd; left != 0; left &= left - 1) {
          const int from = __ffs(static_cast<int>(left)) - 1, channel = __shfl_sync(kAllLanes, mine.channel, from);
          Pixel source;
          for (int a = 0; a < kMaxAxes; ++a) source.at[a] = __shfl_sync(kAllLanes, mine.source.at[a], from);
          double found[N];
          walk_rows<N, Interleaved>(problem, rays, preimage_of(problem, n), n, channel, source, found);
#pragma unroll
          for (int c = 0; c < N; ++c) sums[c] += lane == from ? static_cast<T>(found[c]) : T(0);
        }
      }
      if (many) mine.store(problem, place.n, sums);
    }
  }
}

// Finds what all tiles need to know of each theta, one thread block per theta.
STN_FUNCTION void find_preimages(const Launch& launch) {
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    find_preimage(problem, static_cast<int>(loop.tile_of_problem()));
  }
}

}  // namespace stn
