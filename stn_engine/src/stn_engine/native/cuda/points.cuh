// Source points of target pixels: the grid generator, of which no grid is ever in memory.
#pragma once

#include "problem.cuh"
#include "tuning.cuh"

namespace stn {

constexpr int kMaxEntries = 12;

// Entry e of the pixel matrix of a theta, float64: linear in theta, by factors that the host composed.
STN_FUNCTION double entry_of(const Descriptor& problem, int n, int e) {
  const double* factors = problem.factors + e * (problem.count + 1);
  const int64 first = static_cast<int64>(shared_index(n, problem.parameter_batch)) * problem.count;
  double sum = 0.0;
#pragma unroll 3
  for (int k = 0; k < problem.count; ++k)
    sum += number_at(problem.parameters, problem.wide, first + k) * fetched(factors + k);
  return sum + fetched(factors + problem.count);
}

// Rows of the matrix, rounded once: x = constant + step·(j, i, k), and for a homography W below. They stay in
// shared memory, where all threads read them at once and no registers are held.
struct Rays {
  const T* at;
  bool projective;

  STN_MEMBER T ray(int a, const Pixel& pixel) const {
    const T* row = at + a * (D + 1);
    T sum = row[D];
#pragma unroll
    for (int b = D - 1; b >= 0; --b) sum = fused(row[b], static_cast<T>(pixel.at[b]), sum);
    return sum;
  }

  // Whether rows of the target lead through more rows of the source than columns.
  STN_MEMBER bool is_steep() const { return magnitude(at[D + 1]) > T(kSteep) * magnitude(at[0]); }

  STN_MEMBER T divisor(const Pixel& pixel) const { return projective ? ray(D, pixel) : T(1); }

  STN_MEMBER void point(const Pixel& pixel, T (&x)[D]) const {
#pragma unroll
    for (int a = 0; a < D; ++a) x[a] = ray(a, pixel);
    if (D == 3 || !projective) return;
    const T w = divisor(pixel);
#pragma unroll
    for (int a = 0; a < D; ++a) x[a] = x[a] / w + T(0);
  }
};

// The rays of item n of the batch, which stay until the next call. Every thread must call it.
STN_FUNCTION Rays load_rays(const Descriptor& problem, int n) {
  __shared__ T entries[kMaxEntries];
  if (held().n != n) {
    __syncthreads();
    if (threadIdx.x == 0) held().n = n;
#pragma unroll 1
    for (int e = threadIdx.x; e < problem.entries; e += kThreads)
      entries[e] = static_cast<T>(entry_of(problem, n, e)) + T(0);  // no coordinate is -0 then
    __syncthreads();
  }
  return {entries, static_cast<Kind>(problem.kind) == Kind::homography};
}

STN_FUNCTION T grid_coordinate(const Descriptor& problem, int a, int64 index) {
  const int size = problem.source.size[a];
  const Unit unit = static_cast<Unit>(problem.unit);
  const char* points = problem.points.data;
  if (problem.wide)
    return static_cast<T>(
        in_pixels(fetched(reinterpret_cast<const double*>(points) + index), static_cast<double>(size), unit));
  const T x = static_cast<T>(fetched(reinterpret_cast<const float*>(points) + index));
  return in_pixels(x, static_cast<T>(size), unit);
}

// The factors of a flow are, per axis, slope and offset of the lattice in pixels, and the scale of the flow.
STN_FUNCTION T flow_coordinate(const Descriptor& problem, int a, int place, int64 index) {
  const double slope = fetched(problem.factors + 3 * a), offset = fetched(problem.factors + 3 * a + 1);
  const double displacement = number_at(problem.points.data, problem.wide, index);
  return static_cast<T>(fused(static_cast<double>(place), slope, offset) +
                        displacement * fetched(problem.factors + 3 * a + 2));
}

// The factors of a spline are, per axis, slope and offset from source points to pixels.
STN_FUNCTION void spline_point(const Descriptor& problem, int n, const Pixel& pixel, T (&x)[D]) {
  const int64 pixels = static_cast<int64>(problem.target.size[0]) * problem.target.size[1];
  const int64 first = static_cast<int64>(shared_index(n, problem.parameter_batch)) * problem.count;
  const double* basis = problem.basis + lattice_index(problem.target, pixel);
  double sum[2] = {};
  for (int k = 0; k < problem.count / 2; ++k, basis += pixels)
    for (int a = 0; a < 2; ++a)
      sum[a] = fused(number_at(problem.parameters, problem.wide, first + 2 * k + a), fetched(basis), sum[a]);
  for (int a = 0; a < 2; ++a)
    x[a] = static_cast<T>(sum[a] * fetched(problem.factors + 2 * a) + fetched(problem.factors + 2 * a + 1));
}

// The point of a flow, a grid or a spline.
STN_FUNCTION void field_point(const Descriptor& problem, int n, const Pixel& pixel, T (&x)[D]) {
  if (D == 2 && static_cast<Kind>(problem.kind) == Kind::spline) return spline_point(problem, n, pixel, x);
  const int64 index = offset_of<D>(problem.points, shared_index(n, problem.points.batch), pixel);
#pragma unroll
  for (int a = 0; a < D; ++a) {
    const int64 component = index + a * problem.points.channel_stride;
    x[a] = static_cast<Kind>(problem.kind) == Kind::grid ? grid_coordinate(problem, a, component)
                                                         : flow_coordinate(problem, a, pixel.at[a], component);
  }
}

// The grid generator of one item of a batch: a matrix, or points one by one.
template <bool Matrix>
struct Generator;

template <>
struct Generator<true> {
  Rays rays;

  STN_MEMBER Generator(const Descriptor& problem, int n) : rays(load_rays(problem, n)) {}
  STN_MEMBER void point(const Descriptor&, int, const Pixel& pixel, T (&x)[D]) const { rays.point(pixel, x); }
  // Where it does not divide, which is known of a tile.
  STN_MEMBER void simple_point(const Descriptor&, int, const Pixel& pixel, T (&x)[D]) const {
#pragma unroll
    for (int a = 0; a < D; ++a) x[a] = rays.ray(a, pixel);
  }
  STN_MEMBER bool divides() const { return rays.projective; }
  STN_MEMBER bool is_steep() const { return rays.is_steep(); }
};

template <>
struct Generator<false> {
  STN_MEMBER Generator(const Descriptor&, int) {}
  STN_MEMBER void point(const Descriptor& problem, int n, const Pixel& pixel, T (&x)[D]) const {
    field_point(problem, n, pixel, x);
#pragma unroll
    for (int a = 0; a < D; ++a) x[a] += T(0);  // no coordinate is -0 then
  }
  STN_MEMBER void simple_point(const Descriptor& problem, int n, const Pixel& pixel, T (&x)[D]) const {
    point(problem, n, pixel, x);
  }
  STN_MEMBER bool divides() const { return false; }
  STN_MEMBER bool is_steep() const { return false; }
};

// Either of them, as the descriptor says.
struct AnyGenerator {
  Rays rays;
  bool is_matrix;

  STN_MEMBER AnyGenerator(const Descriptor& problem, int n)
      : rays{nullptr, false}, is_matrix(family_of(static_cast<Kind>(problem.kind)) == Family::matrix) {
    if (is_matrix) rays = load_rays(problem, n);
  }

  STN_MEMBER void point(const Descriptor& problem, int n, const Pixel& pixel, T (&x)[D]) const {
    if (is_matrix) rays.point(pixel, x);
    else field_point(problem, n, pixel, x);
  }
};

STN_FUNCTION bool all_finite(const T (&x)[D]) {
  bool finite = true;
#pragma unroll
  for (int a = 0; a < D; ++a) finite = finite & is_finite(x[a]);
  return finite;
}

}  // namespace stn
