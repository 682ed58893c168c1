// Gradients of parameters: the derivative by points, and at once the adjoint of the generator. What a theta or
// a spline receives from one tile is summed in a fixed tree and left in `sums`; another kernel sums the tiles. Where a
// theta has one tile only, that is its gradient already.
#pragma once

#include "slopes.cuh"

namespace stn {

// Adds one point to the gradient of a matrix: equations (6) and (7), or those of the rays of a homography.
STN_FUNCTION void add_point(const Rays& rays, const Pixel& pixel, const T (&by)[D], double (&sums)[kMaxEntries]) {
  T ray[3] = {by[0], by[1], D == 3 ? by[D - 1] : T(0)};
  if (D == 2 && rays.projective) {
    T x[D];
    rays.point(pixel, x);
    const T w = rays.divisor(pixel);
    ray[0] /= w;
    ray[1] /= w;
    ray[2] = all_finite(x) ? -(ray[0] * x[0] + ray[1] * x[1]) : T(0);
    if (!all_finite(x)) ray[0] = ray[1] = T(0);
  }
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    if (D == 2 && a == 2 && !rays.projective) break;
    const double g = static_cast<double>(ray[a]);
#pragma unroll
    for (int b = 0; b < D; ++b)
      sums[a * (D + 1) + b] = fused(g, static_cast<double>(pixel.at[b]), sums[a * (D + 1) + b]);
    sums[a * (D + 1) + D] += g;
  }
}

STN_FUNCTION void put_sums(const Descriptor& problem, int n, int64 tile, double (&sums)[kMaxEntries]) {
  __shared__ double warps[kWarps][kMaxEntries], grad_matrix[kMaxEntries];
#pragma unroll
  for (int e = 0; e < kMaxEntries; ++e) {
    if (e >= problem.entries) break;
    const double sum = warp_sum(sums[e]);
    if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp][e] = sum;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < problem.entries; e += kThreads) {
    double sum = 0.0;
    for (int w = 0; w < kWarps; ++w) sum += warps[w][e];
    if (problem.finishes) grad_matrix[e] = sum;
    else in_device_memory(problem.sums)[tile * problem.entries + e] = sum;
  }
  if (!problem.finishes) return;
  __syncthreads();
  const int k = threadIdx.x;
  if (k < problem.count) put_number(problem.grad_parameters, n, k, grad_theta_of(problem, k, grad_matrix));
}

// Adds the slopes of some units of a tile.
STN_FUNCTION void add_units(const Descriptor& problem, const Place& place, const Rays& rays, UnitWalk walk,
                            const T (&slopes)[kTilePixels][D], double (&sums)[kMaxEntries]) {
#pragma unroll 1
  for (int slot = threadIdx.x; slot < kTilePixels; slot += kThreads, walk.go_on()) {
    Pixel pixel;
    if (walk.pixel < pixels_of(problem.target) && pixel_of(place, problem.target, walk.pixel, pixel))
      add_point(rays, pixel, slopes[slot], sums);
  }
}

// First the slopes of as many units of a tile as there is room for, then their sums: neither takes registers from the
// other.
template <bool Interleaved>
STN_FUNCTION void matrix_tiles(const Launch& launch) {
  __shared__ T slopes[kTilePixels][D];
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.target, loop.tile_of_problem());
    const Generator<true> generator(problem, place.n);
    if constexpr (Interleaved) {
      const int groups = problem.channels / kGroup<true>, count = pixels_of(problem.target) * groups;
      double sums[kMaxEntries] = {};
#pragma unroll 1
      for (int base = 0; base < count; base += kTilePixels) {
        if (base > 0) __syncthreads();
        find_interleaved_slopes(problem, place, generator, base, slopes);
        __syncthreads();
        add_units(problem, place, generator.rays, UnitWalk(groups, base), slopes, sums);
      }
      put_sums(problem, place.n, loop.tile_of_problem(), sums);
    } else {
      if constexpr (kHasWhole) find_quad_slopes(problem, place, generator, slopes);
      else find_volume_slopes(problem, place, generator, slopes);
      __syncthreads();
      double sums[kMaxEntries] = {};
      add_units(problem, place, generator.rays, UnitWalk(1), slopes, sums);
      put_sums(problem, place.n, loop.tile_of_problem(), sums);
    }
  }
}

// Applies the transpose of the basis of a spline, tile by tile.
template <bool Interleaved>
STN_FUNCTION void spline_tiles(const Launch& launch) {
  constexpr int N = kGroup<Interleaved>;
  __shared__ T slopes[kTilePixels][D];
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.target, loop.tile_of_problem());
    const int pixels = pixels_of(problem.target);
    const Generator<false> generator(problem, place.n);
    if constexpr (!Interleaved) {
      find_quad_slopes(problem, place, generator, slopes);
    } else {
      for (int p = threadIdx.x; p < pixels; p += kThreads) {
        Pixel pixel;
        if (!pixel_of(place, problem.target, p, pixel)) continue;
        T x[D];
        generator.point(problem, place.n, pixel, x);
        slopes_of<N, true>(problem, place.n, pixel, x, 0, problem.channels, slopes[p]);
      }
    }
    __syncthreads();
    const int64 all = static_cast<int64>(problem.target.size[0]) * problem.target.size[1];
    for (int k = threadIdx.x / kWarp; k < problem.count / 2; k += kWarps) {
      double sums[2] = {};
      for (int p = threadIdx.x % kWarp; p < pixels; p += kWarp) {
        Pixel pixel;
        if (!pixel_of(place, problem.target, p, pixel)) continue;
        const double basis = fetched(problem.basis + k * all + lattice_index(problem.target, pixel));
        for (int a = 0; a < 2; ++a) sums[a] = fused(static_cast<double>(slopes[p][a]), basis, sums[a]);
      }
      for (int a = 0; a < 2; ++a) {
        const double sum = warp_sum(sums[a]);
        if (threadIdx.x % kWarp == 0)
          in_device_memory(problem.sums)[loop.tile_of_problem() * problem.count + 2 * k + a] = sum;
      }
    }
  }
}

// Gradients of fields: a grid or a flow receives one vector per point; one that is shared, the sum over all items of
// the batch that share it.
template <bool Interleaved>
STN_FUNCTION void field_tiles(const Launch& launch) {
  constexpr int N = kGroup<Interleaved>;
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.target, loop.tile_of_problem());
    const int last_n = problem.grad_points.batch == 1 ? problem.batch : place.n + 1;
    for (int p = threadIdx.x; p < pixels_of(problem.target); p += kThreads) {
      Pixel pixel;
      if (!pixel_of(place, problem.target, p, pixel)) continue;
      double sums[D] = {};
      for (int n = place.n; n < last_n; ++n) {
        T x[D], by[D];
        field_point(problem, n, pixel, x);
        slopes_of<N, Interleaved>(problem, n, pixel, x, 0, problem.channels, by);
        for (int a = 0; a < D; ++a) {
          const double scale = static_cast<Kind>(problem.kind) == Kind::grid ? fetched(problem.factors + a)
                                                                             : fetched(problem.factors + 3 * a + 2);
          if (by[a] != T(0)) sums[a] += static_cast<double>(by[a] * static_cast<T>(scale));
        }
      }
      const int64 index = offset_of<D>(problem.grad_points, place.n, pixel);
      for (int a = 0; a < D; ++a)
        put_number(problem.grad_points.data, problem.wide, index + a * problem.grad_points.channel_stride, sums[a]);
    }
  }
}

}  // namespace stn
