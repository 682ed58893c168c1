// Source points of target pixels: the grid generator, of which no grid is ever in memory.
#pragma once

#include "item.cuh"

namespace stn {

// What a program is compiled for.
using S = STN_STORAGE;
using T = Compute<S>;
constexpr int D = STN_AXES;
constexpr int K = taps_of(static_cast<Interpolation>(STN_INTERPOLATION));  // taps per axis

constexpr int kMaxEntries = 12;

// Entry e of the pixel matrix of a theta, float64: linear in theta, by factors that the host composed.
STN_FUNCTION double entry_of(const Item& item, int n, int e) {
  const double* factors = item.factors + e * (item.count + 1);
  const int64 first = static_cast<int64>(shared_index(n, item.parameter_batch)) * item.count;
  double sum = 0.0;
#pragma unroll 3
  for (int k = 0; k < item.count; ++k) sum += number_at(item.parameters, item.wide, first + k) * fetched(factors + k);
  return sum + fetched(factors + item.count);
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

  STN_MEMBER T divisor(const Pixel& pixel) const { return projective ? ray(D, pixel) : T(1); }

  STN_MEMBER void point(const Pixel& pixel, T (&x)[D]) const {
#pragma unroll
    for (int a = 0; a < D; ++a) x[a] = ray(a, pixel);
    if (D == 3 || !projective) return;
    const T w = divisor(pixel);
#pragma unroll
    for (int a = 0; a < D; ++a) x[a] /= w;
  }
};

// The rays of item n, until the next call; every thread must call it.
STN_FUNCTION Rays load_rays(const Item& item, int n) {
  __shared__ T entries[kMaxEntries];
  if (held().n != n) {
    __syncthreads();
    if (threadIdx.x == 0) held().n = n;
#pragma unroll 1
    for (int e = threadIdx.x; e < item.entries; e += kThreads) entries[e] = static_cast<T>(entry_of(item, n, e));
    __syncthreads();
  }
  return {entries, static_cast<Kind>(item.kind) == Kind::homography};
}

// PyTorch's own order of operations, so that ties of nearest fall on the same side.
template <class P>
STN_FUNCTION P in_pixels(P x, int size, int unit) {
  const P extent = static_cast<P>(size);
  if (static_cast<Unit>(unit) == Unit::normalized) return ((x + 1) * extent - 1) / 2;
  if (static_cast<Unit>(unit) == Unit::normalized_corners) return (x + 1) / 2 * (extent - 1);
  return x;
}

STN_FUNCTION T grid_coordinate(const Item& item, int a, int64 index) {
  const int size = item.from.size[a];
  if (item.wide)
    return static_cast<T>(
        in_pixels(fetched(reinterpret_cast<const double*>(item.points.data) + index), size, item.unit));
  return in_pixels(static_cast<T>(fetched(reinterpret_cast<const float*>(item.points.data) + index)), size, item.unit);
}

// Of a flow in factors: per axis slope and offset of the lattice in pixels, and the scale of the flow.
STN_FUNCTION T flow_coordinate(const Item& item, int a, int place, int64 index) {
  const double* change = item.factors + 3 * a;
  const double displacement = number_at(item.points.data, item.wide, index);
  return static_cast<T>(fused(static_cast<double>(place), change[0], change[1]) + displacement * change[2]);
}

// Of a spline in factors: per axis slope and offset from source points to pixels.
STN_FUNCTION void spline_point(const Item& item, int n, const Pixel& pixel, T (&x)[D]) {
  const int64 pixels = static_cast<int64>(item.to.size[0]) * item.to.size[1];
  const int64 first = static_cast<int64>(shared_index(n, item.parameter_batch)) * item.count;
  const double* basis = item.basis + lattice_index(item.to, pixel);
  double sum[2] = {};
  for (int k = 0; k < item.count / 2; ++k, basis += pixels)
    for (int a = 0; a < 2; ++a)
      sum[a] = fused(number_at(item.parameters, item.wide, first + 2 * k + a), fetched(basis), sum[a]);
  for (int a = 0; a < 2; ++a) x[a] = static_cast<T>(sum[a] * item.factors[2 * a] + item.factors[2 * a + 1]);
}

// Flow, grid and spline.
STN_FUNCTION void field_point(const Item& item, int n, const Pixel& pixel, T (&x)[D]) {
  if (D == 2 && static_cast<Kind>(item.kind) == Kind::spline) return spline_point(item, n, pixel, x);
  const int64 index = offset_of<D>(item.points, shared_index(n, item.points.batch), pixel);
#pragma unroll
  for (int a = 0; a < D; ++a) {
    const int64 component = index + a * item.points.channel_stride;
    x[a] = static_cast<Kind>(item.kind) == Kind::grid ? grid_coordinate(item, a, component)
                                                      : flow_coordinate(item, a, pixel.at[a], component);
  }
}

// The generator of one item of a batch: a matrix, or points one by one.
template <bool Matrix>
struct Generator;

template <>
struct Generator<true> {
  Rays rays;

  STN_MEMBER Generator(const Item& item, int n) : rays(load_rays(item, n)) {}
  STN_MEMBER void point(const Item&, int, const Pixel& pixel, T (&x)[D]) const { rays.point(pixel, x); }
};

template <>
struct Generator<false> {
  STN_MEMBER Generator(const Item&, int) {}
  STN_MEMBER void point(const Item& item, int n, const Pixel& pixel, T (&x)[D]) const {
    field_point(item, n, pixel, x);
  }
};

// Either, as the item says.
struct AnyGenerator {
  Rays rays;
  bool is_matrix;

  STN_MEMBER AnyGenerator(const Item& item, int n)
      : rays{nullptr, false}, is_matrix(static_cast<Kind>(item.kind) < Kind::spline) {
    if (is_matrix) rays = load_rays(item, n);
  }

  STN_MEMBER void point(const Item& item, int n, const Pixel& pixel, T (&x)[D]) const {
    if (is_matrix) rays.point(pixel, x);
    else field_point(item, n, pixel, x);
  }
};

STN_FUNCTION bool all_finite(const T (&x)[D]) {
  bool finite = true;
#pragma unroll
  for (int a = 0; a < D; ++a) finite = finite & is_finite(x[a]);
  return finite;
}

}  // namespace stn
