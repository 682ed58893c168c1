// Gradients of objectives: V and its slopes at target pixels, what they differ from the fixed map, and at once the
// adjoint of the generator. Neither V nor its gradient is ever in memory. What a tile has of each sum is summed in a
// fixed tree and left in `sums`: moments, the gradient of the matrix or the spline, and the curvatures that
// Gauss-Newton matrices are made of.
#pragma once

#include "comparisons.cuh"
#include "slopes.cuh"

namespace stn {

// Pixels of a tile whose terms shared memory holds at a time.
constexpr int kSlots = sizeof(T) == 8 && D == 3 ? kTilePixels / 2 : kTilePixels;

// Sums over channels of every pixel. Only those of splines are read by other threads than the one that wrote them.
struct Terms {
  T slope[D][kSlots];                // of the loss by the coordinates of a point, but for a factor that an item has
  T curvature[kCurvatures][kSlots];  // products of the slopes of V, weighted: (x, x), (x, y) and so on
};

// V and its slopes by the coordinates, in one walk over the taps. Values count from the first tap, so that a large
// common offset of the pixels cancels in the slopes.
template <class Read>
STN_FUNCTION T join_sample(const SlopeTapPlan& plan, Read read, T (&by)[D]) {
  T origin = T(0), row = T(0), rise_along = T(0), value = T(0), plane = T(0), across = T(0), down = T(0);
#pragma unroll
  for (int a = 0; a < D; ++a) by[a] = T(0);
  for_taps([&](int x, int y, int z) {
    T tap[1];
    read(x, y, z, tap);
    if (x + y + z == 0) origin = tap[0];
    const T rise = tap[0] - origin;
    row = fused(rise, plan.weight[0][x], x == 0 ? T(0) : row);
    rise_along = fused(rise, plan.slope[0][x], x == 0 ? T(0) : rise_along);
    if (x < K - 1) return;
    plane = fused(row, plan.weight[1][y], y == 0 ? T(0) : plane);
    across = fused(rise_along, plan.weight[1][y], y == 0 ? T(0) : across);
    down = fused(row, plan.slope[1][y], y == 0 ? T(0) : down);
    if (y < K - 1) return;
    if constexpr (D == 2) {
      value = plane;
      by[0] = across;
      by[1] = down;
    } else {
      value = fused(plane, plan.weight[D - 1][z], value);
      by[0] = fused(across, plan.weight[D - 1][z], by[0]);
      by[1] = fused(down, plan.weight[D - 1][z], by[1]);
      by[D - 1] = fused(plane, plan.slope[D - 1][z], by[D - 1]);
    }
  });
  return origin + value;
}

STN_FUNCTION T sample_with_slopes(const Descriptor& problem, const SlopeTapPlan& plan, const S* source, int channel,
                                  T (&by)[D]) {
  if constexpr (kHoldsTaps) {
    T taps[kTaps][1];
    read_taps<1, false>(problem, plan, source, channel, taps);
    return join_sample(plan, reader_of(taps), by);
  } else {
    T outside[1];
    fill_of(problem, channel, problem.fills != 0, outside);
    return join_sample(
        plan,
        [&](int x, int y, int z, T(&tap)[1]) {
          read_tap<1, false>(problem, plan, source, channel, outside, x, y, z, tap);
        },
        by);
  }
}

// The gradient of the loss by V, but for a factor that an item has.
STN_FUNCTION T gradient_of(const Descriptor& problem, const Verdict& verdict, T w, T V, T F) {
  const T e = V - F, delta = static_cast<T>(problem.delta);
  switch (static_cast<Loss>(problem.loss)) {
    case Loss::ssd: return w * e;
    case Loss::huber: return w * clamp_to(e, -delta, delta);
    default: break;
  }
  const T a = V - static_cast<T>(verdict.moving_mean), b = F - static_cast<T>(verdict.fixed_mean);
  return w * (static_cast<T>(verdict.ratio) * a - b);
}

// Sums over the channels of one pixel.
struct PixelTerms {
  double slope[D], curvature[kCurvatures];

  STN_MEMBER PixelTerms() : slope{}, curvature{} {}

  STN_MEMBER void add(const Descriptor& problem, const Verdict& verdict, const Place& place, const Pixel& pixel,
                      const T (&x)[D], T w, double& loss) {
    const bool finite = all_finite(x);
    const bool bends = static_cast<Loss>(problem.loss) == Loss::huber;
    const SlopeTapPlan plan(problem, x);
    const S* source = maps_of(problem.feature_map, place.n);
    const S* fixed = fixed_of(problem, place.n, pixel);
#pragma unroll 1
    for (int c = 0; c < problem.channels; ++c) {
      T by[D] = {};
      const T F = widened(fetched(fixed + c * problem.fixed.channel_stride));
      const T V = finite ? sample_with_slopes(problem, plan, source + c * problem.feature_map.channel_stride, c, by)
                         : value_of_nowhere(problem, c);
      if (static_cast<Loss>(problem.loss) != Loss::ncc)
        loss = fused(static_cast<double>(w), loss_of(problem, static_cast<double>(V - F)), loss);
      const T G = gradient_of(problem, verdict, w, V, F);
#pragma unroll
      for (int a = 0; a < D; ++a) slope[a] += static_cast<double>(by[a] == T(0) ? T(0) : G * by[a]);
      if (problem.curves == 0) continue;
      const T weight = bends && magnitude(V - F) > static_cast<T>(problem.delta) ? T(0) : w;
      int entry = 0;
#pragma unroll
      for (int a = 0; a < D; ++a)
#pragma unroll
        for (int b = a; b < D; ++b) curvature[entry++] += static_cast<double>(weight * by[a] * by[b]);
    }
  }
};

// The terms of the pixels of a tile from `first` on, and the moments of the losses that need none before.
template <class Generator>
STN_FUNCTION void find_terms(const Descriptor& problem, const Place& place, const Generator& generator,
                             const Verdict& verdict, int first, Terms& terms, double& weight, double& loss) {
#pragma unroll 1
  for (int slot = threadIdx.x; slot < kSlots && first + slot < pixels_of(problem.target); slot += kThreads) {
    Pixel pixel;
    if (!pixel_of(place, problem.target, first + slot, pixel)) continue;
    T x[D];
    generator.point(problem, place.n, pixel, x);
    PixelTerms found;
    const T w = weight_of(problem, place.n, pixel, x);
    if (w != T(0)) {
      weight += static_cast<double>(w);
      found.add(problem, verdict, place, pixel, x, w, loss);
    }
#pragma unroll
    for (int a = 0; a < D; ++a) terms.slope[a][slot] = static_cast<T>(found.slope[a]);
    if (problem.curves == 0) continue;
#pragma unroll
    for (int k = 0; k < kCurvatures; ++k) terms.curvature[k][slot] = static_cast<T>(found.curvature[k]);
  }
}

// Sums over the pixels of a tile from `first` on of q(slot, pixel) times each coordinate of the lattice and 1, or times
// each product of two of these.
template <int Degree, class Quantity>
STN_FUNCTION void put_lattice_sums(const Descriptor& problem, const Place& place, int first, Quantity quantity,
                                   double* out) {
  constexpr int kCount = Degree == 1 ? D + 1 : pairs_of(D + 1);
  double sums[kCount] = {};
#pragma unroll 1
  for (int slot = threadIdx.x; slot < kSlots && first + slot < pixels_of(problem.target); slot += kThreads) {
    Pixel pixel;
    if (!pixel_of(place, problem.target, first + slot, pixel)) continue;
    const double q = quantity(slot, pixel);
    int k = 0;
#pragma unroll
    for (int c = 0; c <= D; ++c) {
      const double once = c < D ? q * static_cast<double>(pixel.at[c]) : q;
      if constexpr (Degree == 1) sums[k++] += once;
      else {
#pragma unroll
        for (int d = c; d <= D; ++d, ++k)
          sums[k] = d < D ? fused(once, static_cast<double>(pixel.at[d]), sums[k]) : sums[k] + once;
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) put_warp_sum(sums[k], first == 0, out[k]);
}

// How ray r of a homography moves a point: x = X/W and y = Y/W by X, Y or W.
STN_FUNCTION void by_ray(const Rays& rays, const Pixel& pixel, int r, double (&by)[2]) {
  T x[D];
  rays.point(pixel, x);
  const T inverse = T(1) / rays.divisor(pixel);
  const bool finite = all_finite(x);
  by[0] = static_cast<double>(!finite || r == 1 ? T(0) : r == 0 ? inverse : -x[0] * inverse);
  by[1] = static_cast<double>(!finite || r == 0 ? T(0) : r == 1 ? inverse : -x[1] * inverse);
}

// Sums over the pixels of a tile from `first` on of what the entries of a matrix receive, and pairs of them.
STN_FUNCTION void put_matrix_sums(const Descriptor& problem, const Place& place, const Rays& rays, int first,
                                  const Terms& terms, double* out) {
  const bool divides = D == 2 && rays.projective;
  const int rows = divides ? 3 : D;
#pragma unroll 1
  for (int r = 0; r < rows; ++r, out += D + 1)
    put_lattice_sums<1>(
        problem, place, first,
        [&](int slot, const Pixel& pixel) {
          if (!divides) return static_cast<double>(terms.slope[r][slot]);
          double by[2];
          by_ray(rays, pixel, r, by);
          return by[0] * static_cast<double>(terms.slope[0][slot]) + by[1] * static_cast<double>(terms.slope[1][slot]);
        },
        out);
  if (problem.curves == 0) return;
  int pair = 0;
#pragma unroll 1
  for (int r = 0; r < rows; ++r)
#pragma unroll 1
    for (int s = r; s < rows; ++s, ++pair, out += pairs_of(D + 1))
      put_lattice_sums<2>(
          problem, place, first,
          [&](int slot, const Pixel& pixel) {
            if (!divides) return static_cast<double>(terms.curvature[pair][slot]);
            double left[2], right[2];
            by_ray(rays, pixel, r, left);
            by_ray(rays, pixel, s, right);
            const double xx = terms.curvature[0][slot], xy = terms.curvature[1][slot], yy = terms.curvature[2][slot];
            return left[0] * (xx * right[0] + xy * right[1]) + left[1] * (xy * right[0] + yy * right[1]);
          },
          out);
}

// What the moments say of the gradients of an item, where these need it.
STN_FUNCTION Verdict verdict_of(const Descriptor& problem, int n) {
  if (problem.verdicts == nullptr) return Verdict{0.0, 0.0, 0.0, 1.0};
  const Verdict* from = problem.verdicts + n;
  return {fetched(&from->moving_mean), fetched(&from->fixed_mean), fetched(&from->ratio), fetched(&from->factor)};
}

STN_FUNCTION void objective_matrix_tiles(const Launch& launch) {
  __shared__ Terms terms;
  __shared__ WarpSums warps;
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.target, loop.tile_of_problem());
    const Generator<true> generator(problem, place.n);
    const Verdict verdict = verdict_of(problem, place.n);
    double weight = 0.0, loss = 0.0;
    double* const own = warps[threadIdx.x / kWarp];
#pragma unroll 1
    for (int first = 0; first < pixels_of(problem.target); first += kSlots) {
      find_terms(problem, place, generator, verdict, first, terms, weight, loss);
      put_matrix_sums(problem, place, generator.rays, first, terms, own + kMoments);
    }
    put_warp_sum(weight, true, own[kWeight]);
    put_warp_sum(loss, true, own[kLoss]);
    const int64 tile = loop.tile_of_problem();
    if (static_cast<Loss>(problem.loss) != Loss::ncc) put_terms(problem, tile, 0, kLoss + 1, warps);
    put_terms(problem, tile, kMoments, problem.terms, warps);
  }
}

#if STN_AXES == 2

// Applies the transpose of the basis of a spline, tile by tile.
STN_FUNCTION void objective_spline_tiles(const Launch& launch) {
  __shared__ Terms terms;
  __shared__ WarpSums warps;
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.target, loop.tile_of_problem());
    const int pixels = pixels_of(problem.target);
    const Generator<false> generator(problem, place.n);
    double weight = 0.0, loss = 0.0;
    find_terms(problem, place, generator, verdict_of(problem, place.n), 0, terms, weight, loss);
    put_warp_sum(weight, true, warps[threadIdx.x / kWarp][kWeight]);
    put_warp_sum(loss, true, warps[threadIdx.x / kWarp][kLoss]);
    const int64 tile = loop.tile_of_problem();
    if (static_cast<Loss>(problem.loss) != Loss::ncc) put_terms(problem, tile, 0, kLoss + 1, warps);
    __syncthreads();  // before the terms of others are read
    const int64 all = static_cast<int64>(problem.target.size[0]) * problem.target.size[1];
    for (int k = threadIdx.x / kWarp; k < problem.count / 2; k += kWarps) {
      double sums[2] = {};
      for (int p = threadIdx.x % kWarp; p < pixels; p += kWarp) {
        Pixel pixel;
        if (!pixel_of(place, problem.target, p, pixel)) continue;
        const double basis = fetched(problem.basis + k * all + lattice_index(problem.target, pixel));
        for (int a = 0; a < 2; ++a) sums[a] = fused(static_cast<double>(terms.slope[a][p]), basis, sums[a]);
      }
      for (int a = 0; a < 2; ++a) {
        const double sum = warp_sum(sums[a]);
        if (threadIdx.x % kWarp == 0) in_device_memory(problem.sums)[tile * problem.terms + kMoments + 2 * k + a] = sum;
      }
    }
  }
}

#endif

// Writes the gradients of grids and flows, a vector for each point of every item.
STN_FUNCTION void objective_field_tiles(const Launch& launch) {
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.target, loop.tile_of_problem());
    const Generator<false> generator(problem, place.n);
    const Verdict verdict = verdict_of(problem, place.n);
    const bool is_grid = static_cast<Kind>(problem.kind) == Kind::grid;
#pragma unroll 1
    for (int p = threadIdx.x; p < pixels_of(problem.target); p += kThreads) {
      Pixel pixel;
      if (!pixel_of(place, problem.target, p, pixel)) continue;
      T x[D];
      generator.point(problem, place.n, pixel, x);
      const T w = weight_of(problem, place.n, pixel, x);
      PixelTerms found;
      double loss = 0.0;
      if (w != T(0) && verdict.factor != 0.0) found.add(problem, verdict, place, pixel, x, w, loss);
      const int64 index = offset_of<D>(problem.grad_points, place.n, pixel);
#pragma unroll
      for (int a = 0; a < D; ++a) {
        const double scale = fetched(problem.factors + (is_grid ? a : 3 * a + 2));
        put_number(problem.grad_points.data, problem.wide, index + a * problem.grad_points.channel_stride,
                   verdict.factor * found.slope[a] * scale);
      }
    }
  }
}

}  // namespace stn
