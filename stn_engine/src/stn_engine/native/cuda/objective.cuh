// Gradients of objectives: V and its slopes at target pixels, what they differ from the fixed map, and at once the
// adjoint of the generator. Neither V nor its gradient is ever in memory. What a tile has of each sum is summed in a
// fixed tree and left in `sums`: moments, the gradient of the matrix or the spline, and the curvatures that
// Gauss-Newton matrices are made of.
#pragma once

#include "comparisons.cuh"
#include "slopes.cuh"

namespace stn {

// Pixels of a tile whose terms shared memory holds at a time.
constexpr int kSlots = kTilePixels / 2;
static_assert(kSlots % kThreads == 0, "a thread has the same pixels as in a walk over the whole tile");

// Sums over channels of every pixel, in float64: products of large or small maps leave the range of float32. Only those
// of splines are read by other threads than the one that wrote them.
struct Terms {
  double slope[D][kSlots];                // of the loss by the coordinates of a point, but for a factor of the item
  double curvature[kCurvatures][kSlots];  // products of the slopes of V, weighted: (x, x), (x, y) and so on
};

// V and its slopes by the coordinates, in one walk over the taps. V has the bits of `join_taps`. In the slopes values
// count from the first tap, so that a large common offset of the pixels cancels.
template <class Read>
STN_FUNCTION T join_sample(const SlopeTapPlan& plan, Read read, T (&by)[D]) {
  T row = T(0), plane = T(0), value = T(0);
  T origin = T(0), rise_row = T(0), rise_plane = T(0), along = T(0), across = T(0), down = T(0);
#pragma unroll
  for (int a = 0; a < D; ++a) by[a] = T(0);
  for_taps([&](int x, int y, int z) {
    T tap[1];
    read(x, y, z, tap);
    if (x + y + z == 0) origin = tap[0];
    const T rise = tap[0] - origin;
    row = x == 0 ? tap[0] * plan.weight[0][x] : fused(tap[0], plan.weight[0][x], row);
    rise_row = fused(rise, plan.weight[0][x], x == 0 ? T(0) : rise_row);
    along = fused(rise, plan.slope[0][x], x == 0 ? T(0) : along);
    if (x < K - 1) return;
    plane = y == 0 ? row * plan.weight[1][y] : fused(row, plan.weight[1][y], plane);
    rise_plane = fused(rise_row, plan.weight[1][y], y == 0 ? T(0) : rise_plane);
    across = fused(along, plan.weight[1][y], y == 0 ? T(0) : across);
    down = fused(rise_row, plan.slope[1][y], y == 0 ? T(0) : down);
    if (y < K - 1) return;
    if constexpr (D == 2) {
      value = plane;
      by[0] = across;
      by[1] = down;
    } else {
      value = z == 0 ? plane * plan.weight[D - 1][z] : fused(plane, plan.weight[D - 1][z], value);
      by[0] = fused(across, plan.weight[D - 1][z], by[0]);
      by[1] = fused(down, plan.weight[D - 1][z], by[1]);
      by[D - 1] = fused(rise_plane, plan.slope[D - 1][z], by[D - 1]);
    }
  });
  return value;
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

// Sums over the channels of one pixel.
struct PixelTerms {
  double slope[D], curvature[kCurvatures];

  STN_MEMBER PixelTerms() : slope{}, curvature{} {}

  STN_MEMBER void add(const Descriptor& problem, const Compared& item, const Place& place, const Pixel& pixel,
                      const T (&x)[D], double w, double& loss) {
    const bool finite = all_finite(x);
    const Loss kind = static_cast<Loss>(problem.loss);
    const SlopeTapPlan plan(problem, x);
    const S* source = maps_of(problem.feature_map, place.n);
    const S* fixed = fixed_of(problem, place.n, pixel);
#pragma unroll 1
    for (int c = 0; c < problem.channels; ++c) {
      T by[D] = {};
      const T F = widened(fetched(fixed + c * problem.fixed.channel_stride));
      const T V = finite ? sample_with_slopes(problem, plan, source + c * problem.feature_map.channel_stride, c, by)
                         : fill_value(problem, c);
      const double e = static_cast<double>(V - F);
      if (kind != Loss::ncc) loss = fused(w, loss_of(problem, e), loss);
      const double G = gradient_of(kind, problem.delta, item, w, static_cast<double>(V), static_cast<double>(F), e);
#pragma unroll
      for (int a = 0; a < D; ++a)
        if (by[a] != T(0)) slope[a] = fused(G, static_cast<double>(by[a]), slope[a]);
      if (problem.curves == 0) continue;
      const double weight = curvature_of(kind, problem.delta, w, e);
      int entry = 0;
#pragma unroll
      for (int a = 0; a < D; ++a) {
        const double weighted = weight * static_cast<double>(by[a]);
#pragma unroll
        for (int b = a; b < D; ++b, ++entry)
          curvature[entry] = fused(weighted, static_cast<double>(by[b]), curvature[entry]);
      }
    }
  }
};

// The terms of the pixels of a tile from `first` on, and the moments of the losses that need none before.
template <class Generator>
STN_FUNCTION void find_terms(const Descriptor& problem, const Place& place, const Generator& generator,
                             const Compared& item, int first, Terms& terms, double& weight, double& loss) {
#pragma unroll 1
  for (int slot = threadIdx.x; slot < kSlots && first + slot < pixels_of(problem.target); slot += kThreads) {
    Pixel pixel;
    if (!pixel_of(place, problem.target, first + slot, pixel)) continue;
    T x[D];
    generator.point(problem, place.n, pixel, x);
    PixelTerms found;
    const double w = static_cast<double>(weight_of(problem, place.n, pixel, x));
    if (w != 0.0) {
      weight += w;
      found.add(problem, item, place, pixel, x, w, loss);
    }
#pragma unroll
    for (int a = 0; a < D; ++a) terms.slope[a][slot] = found.slope[a];
    if (problem.curves == 0) continue;
#pragma unroll
    for (int k = 0; k < kCurvatures; ++k) terms.curvature[k][slot] = found.curvature[k];
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
          if (!divides) return terms.slope[r][slot];
          double by[2];
          by_ray(rays, pixel, r, by);
          return by[0] * terms.slope[0][slot] + by[1] * terms.slope[1][slot];
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
            if (!divides) return terms.curvature[pair][slot];
            double left[2], right[2];
            by_ray(rays, pixel, r, left);
            by_ray(rays, pixel, s, right);
            const double xx = terms.curvature[0][slot], xy = terms.curvature[1][slot], yy = terms.curvature[2][slot];
            return left[0] * (xx * right[0] + xy * right[1]) + left[1] * (xy * right[0] + yy * right[1]);
          },
          out);
}

// What the moments say of the gradients of an item, where these need it.
STN_FUNCTION Compared compared_of(const Descriptor& problem, int n) {
  if (problem.compared == nullptr) return Compared{};
  const Compared* from = problem.compared + n;
  return {fetched(&from->value), fetched(&from->moving_mean), fetched(&from->fixed_mean), fetched(&from->ratio),
          fetched(&from->factor)};
}

STN_FUNCTION void objective_matrix_tiles(const Launch& launch) {
  __shared__ Terms terms;
  __shared__ WarpSums warps;
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.target, loop.tile_of_problem());
    const Generator<true> generator(problem, place.n);
    const Compared item = compared_of(problem, place.n);
    double weight = 0.0, loss = 0.0;
    double* const own = warps[threadIdx.x / kWarp];
#pragma unroll 1
    for (int first = 0; first < pixels_of(problem.target); first += kSlots) {
      find_terms(problem, place, generator, item, first, terms, weight, loss);
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

// Adds what the control points of a spline receive of the pixels of a tile from `first` on: the transpose of its basis.
// Every thread must call it.
STN_FUNCTION void put_spline_sums(const Descriptor& problem, const Place& place, int first, const Terms& terms,
                                  double* out) {
  const int64 all = static_cast<int64>(problem.target.size[0]) * problem.target.size[1];
  for (int k = threadIdx.x / kWarp; k < problem.count / 2; k += kWarps) {
    double sums[2] = {};
    for (int slot = threadIdx.x % kWarp; slot < kSlots && first + slot < pixels_of(problem.target); slot += kWarp) {
      Pixel pixel;
      if (!pixel_of(place, problem.target, first + slot, pixel)) continue;
      const double basis = fetched(problem.basis + k * all + lattice_index(problem.target, pixel));
      for (int a = 0; a < 2; ++a) sums[a] = fused(terms.slope[a][slot], basis, sums[a]);
    }
    for (int a = 0; a < 2; ++a) put_warp_sum(sums[a], first == 0, in_device_memory(out)[2 * k + a]);
  }
}

STN_FUNCTION void objective_spline_tiles(const Launch& launch) {
  __shared__ Terms terms;
  __shared__ WarpSums warps;
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.target, loop.tile_of_problem());
    const Generator<false> generator(problem, place.n);
    const Compared item = compared_of(problem, place.n);
    const int64 tile = loop.tile_of_problem();
    double weight = 0.0, loss = 0.0;
#pragma unroll 1
    for (int first = 0; first < pixels_of(problem.target); first += kSlots) {
      if (first > 0) __syncthreads();  // before terms that others read are written over
      find_terms(problem, place, generator, item, first, terms, weight, loss);
      __syncthreads();  // before the terms of others are read
      put_spline_sums(problem, place, first, terms, problem.sums + tile * problem.terms + kMoments);
    }
    put_warp_sum(weight, true, warps[threadIdx.x / kWarp][kWeight]);
    put_warp_sum(loss, true, warps[threadIdx.x / kWarp][kLoss]);
    if (static_cast<Loss>(problem.loss) != Loss::ncc) put_terms(problem, tile, 0, kLoss + 1, warps);
  }
}

#endif

// Writes the gradients of grids and flows, a vector for each point of every item.
STN_FUNCTION void objective_field_tiles(const Launch& launch) {
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.target, loop.tile_of_problem());
    const Generator<false> generator(problem, place.n);
    const Compared item = compared_of(problem, place.n);
    const bool is_grid = static_cast<Kind>(problem.kind) == Kind::grid;
#pragma unroll 1
    for (int p = threadIdx.x; p < pixels_of(problem.target); p += kThreads) {
      Pixel pixel;
      if (!pixel_of(place, problem.target, p, pixel)) continue;
      T x[D];
      generator.point(problem, place.n, pixel, x);
      const double w = static_cast<double>(weight_of(problem, place.n, pixel, x));
      PixelTerms found;
      double loss = 0.0;
      if (w != 0.0 && item.factor != 0.0) found.add(problem, item, place, pixel, x, w, loss);
      const int64 index = offset_of<D>(problem.grad_points, place.n, pixel);
#pragma unroll
      for (int a = 0; a < D; ++a) {
        const double scale = fetched(problem.factors + (is_grid ? a : 3 * a + 2));
        put_number(problem.grad_points.data, problem.wide, index + a * problem.grad_points.channel_stride,
                   item.factor * found.slope[a] * scale);
      }
    }
  }
}

}  // namespace stn
