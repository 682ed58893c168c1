// Parameters before and after the kernels that know feature maps, and what objectives come to: float64 throughout, one
// thread block per theta or item.
#include "../shared/losses.h"
#include "problem.cuh"

namespace stn {

static_assert(kMoments == kMomentCount && sizeof(Compared) == kComparedBytes, "the host has it otherwise");

// What a similarity has of parameters for one item of the batch, which may share them.
struct OwnParameters {
  Kind kind;
  int count;
  double at[4];

  STN_MEMBER OwnParameters(const Descriptor& problem, int n)
      : kind(static_cast<Kind>(problem.own_kind)), count(parameter_count(kind, 2)), at{} {
    const int own = shared_index(n, problem.parameter_batch);
    for (int k = 0; k < count; ++k) at[k] = number_of(problem.own_parameters, own, k);
  }
};

// Leaves theta (2, 3) of a similarity, or any other parameters, in one piece and as float64.
STN_FUNCTION void prepare(const Descriptor& problem, int n) {
  double* to = reinterpret_cast<double*>(problem.parameters) + static_cast<int64>(n) * problem.count;
  if (problem.own_kind == problem.kind) {
    for (int k = threadIdx.x; k < problem.count; k += kThreads) to[k] = number_of(problem.own_parameters, n, k);
    return;
  }
  if (threadIdx.x != 0) return;
  const OwnParameters own(problem, n);
  double theta[6];
  similarity_theta(own.kind, own.at, theta);
  for (int k = 0; k < 6; ++k) to[k] = theta[k];
}

// Writes the gradient of a similarity's own parameters, from that of theta.
STN_FUNCTION void put_similarity(const Descriptor& problem, int n, const double (&grad_theta)[6]) {
  const OwnParameters own(problem, n);
  double grad_own[4] = {};
  similarity_theta_adjoint(own.kind, own.at, grad_theta, grad_own);
  for (int k = 0; k < own.count; ++k) put_number(problem.grad_parameters, n, k, grad_own[k]);
}

constexpr int kAtOnce = 12;  // entries of a matrix at most

// Sums some entries over tiles, of which each has `stride`. Every thread must call it, and sees the sums.
STN_FUNCTION void sum_tiles(const double* from, int64 tiles, int stride, int count, double* entries) {
  __shared__ double warps[kWarps][kAtOnce];
  double sums[kAtOnce] = {};
  for (int64 tile = threadIdx.x; tile < tiles; tile += kThreads)
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e)
      if (e < count) sums[e] += from[tile * stride + e];
#pragma unroll
  for (int e = 0; e < kAtOnce; ++e) {
    if (e >= count) break;
    const double sum = warp_sum(sums[e]);
    if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp][e] = sum;
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < count) {
    double sum = 0.0;
    for (int w = 0; w < kWarps; ++w) sum += warps[w][threadIdx.x];
    entries[threadIdx.x] = sum;
  }
  __syncthreads();
}

// Writes the gradient of a theta, or of a similarity's own parameters, a number each thread. Every thread must call it.
STN_FUNCTION void put_linear(const Descriptor& problem, int n, const double* grad_matrix) {
  __shared__ double grad_theta[kAtOnce];
  const int k = threadIdx.x;
  if (problem.own_kind == problem.kind) {
    if (k < problem.count) put_number(problem.grad_parameters, n, k, grad_theta_of(problem, k, grad_matrix));
    return;
  }
  if (k < problem.count) grad_theta[k] = grad_theta_of(problem, k, grad_matrix);
  __syncthreads();
  if (k != 0) return;
  double six[6];
  for (int i = 0; i < 6; ++i) six[i] = grad_theta[i];
  put_similarity(problem, n, six);
}

STN_FUNCTION void finish(const Descriptor& problem, int n) {
  __shared__ double entries[kAtOnce];
  const int64 tiles = static_cast<int64>(problem.target.count) * (problem.parameter_batch == 1 ? problem.batch : 1);
  const double* from = problem.sums + static_cast<int64>(n) * problem.target.count * problem.entries;
  if (static_cast<Kind>(problem.kind) != Kind::spline) {
    sum_tiles(from, tiles, problem.entries, problem.entries, entries);
    return put_linear(problem, n, entries);
  }
  for (int first = 0; first < problem.entries; first += kAtOnce) {
    const int count = smaller(problem.entries - first, kAtOnce), e = threadIdx.x;
    sum_tiles(from + first, tiles, problem.entries, count, entries);
    if (e < count) put_number(problem.grad_parameters, n, first + e, entries[e] * problem.factors[2 * (e % 2)]);
  }
}

// The sums of some terms over the tiles of item n of an objective. Every thread must call it, and sees them.
STN_FUNCTION void sum_terms(const Descriptor& problem, int n, int first, int count, double* terms) {
  const int64 tiles = problem.target.count;
  sum_tiles(problem.sums + n * tiles * problem.terms + first, tiles, problem.terms, count, terms);
}

// Writes value and count of an item of an objective, and returns what its gradient needs. Every thread must call it.
STN_FUNCTION Compared finish_moments(const Descriptor& problem, int n) {
  __shared__ double moments[kMoments];
  sum_terms(problem, n, 0, static_cast<Loss>(problem.loss) == Loss::ncc ? kMoments : kLoss + 1, moments);
  const Compared item = compared(static_cast<Loss>(problem.loss), static_cast<double>(problem.channels), moments);
  if (threadIdx.x == 0) {
    problem.value[n] = item.value;
    problem.weight[n] = moments[kWeight];
  }
  return item;
}

// A sum of products times the factor of an item; where nothing can be compared it counts for nothing, whatever it is.
STN_FUNCTION double scaled(double sum, double factor) { return factor == 0.0 ? 0.0 : factor * sum; }

// Writes the gradient of the parameters of an item of an objective.
STN_FUNCTION void put_gradient(const Descriptor& problem, int n, double factor) {
  __shared__ double entries[kAtOnce];
  const bool is_spline = static_cast<Kind>(problem.kind) == Kind::spline;
  for (int first = 0; first < problem.entries; first += kAtOnce) {
    const int count = smaller(problem.entries - first, kAtOnce), e = threadIdx.x;
    sum_terms(problem, n, kMoments + first, count, entries);
    if (e < count) entries[e] = scaled(entries[e], factor);
    __syncthreads();
    if (is_spline && e < count)
      put_number(problem.grad_parameters, n, first + e, entries[e] * problem.factors[2 * (e % 2)]);
  }
  if (!is_spline) put_linear(problem, n, entries);
}

// Which pair of `count` things that of a and b is.
STN_FUNCTION int pair_of(int a, int b, int count) {
  const int low = smaller(a, b), high = larger(a, b);
  return low * count - low * (low - 1) / 2 + high - low;
}

// The Gauss-Newton matrix of a similarity's own parameters, from that of theta: the adjoint on both sides.
STN_FUNCTION void put_similar_matrix(const Descriptor& problem, int n, const double* by_theta) {
  const OwnParameters own(problem, n);
  double half[4][6], six[6], column[4];
  for (int k = 0; k < 6; ++k) {
    for (int l = 0; l < 6; ++l) six[l] = by_theta[6 * k + l];
    similarity_theta_adjoint(own.kind, own.at, six, column);
    for (int l = 0; l < own.count; ++l) half[l][k] = column[l];
  }
  for (int k = 0; k < own.count; ++k) {
    similarity_theta_adjoint(own.kind, own.at, half[k], column);
    for (int l = 0; l < own.count; ++l) problem.gauss_newton[(n * own.count + k) * own.count + l] = column[l];
  }
}

// Writes the Gauss-Newton matrix of an item: what theta moves of the matrix, on both sides of that by its entries.
STN_FUNCTION void put_curvature(const Descriptor& problem, int n, double factor) {
  constexpr int kMost = 60;  // pairs of rows, times pairs of columns
  __shared__ double sums[kMost], half[kAtOnce][kAtOnce], by_theta[kAtOnce * kAtOnce];
  const int columns = problem.entries == 12 ? 4 : 3, rows = problem.entries / columns, count = problem.count;
  const int pairs = pairs_of(columns), first = kMoments + problem.entries, all = problem.terms - first;
  for (int k = 0; k < all; k += kAtOnce) sum_terms(problem, n, first + k, smaller(all - k, kAtOnce), sums + k);
  const double* factors = problem.factors;
  for (int at = threadIdx.x; at < problem.entries * count; at += kThreads) {
    const int e = at / count, l = at % count;
    double sum = 0.0;
    for (int f = 0; f < problem.entries; ++f) {
      const int rays = pair_of(e / columns, f / columns, rows), axes = pair_of(e % columns, f % columns, columns);
      sum = fused(scaled(sums[rays * pairs + axes], factor), factors[f * (count + 1) + l], sum);
    }
    half[e][l] = sum;
  }
  __syncthreads();
  const bool is_own = problem.own_kind == problem.kind;
  double* out = is_own ? problem.gauss_newton + static_cast<int64>(n) * count * count : by_theta;
  for (int at = threadIdx.x; at < count * count; at += kThreads) {
    const int k = at / count, l = at % count;
    if (k > l) continue;
    double sum = 0.0;
    for (int e = 0; e < problem.entries; ++e) sum = fused(factors[e * (count + 1) + k], half[e][l], sum);
    out[k * count + l] = out[l * count + k] = sum;
  }
  if (is_own) return;
  __syncthreads();
  if (threadIdx.x == 0) put_similar_matrix(problem, n, by_theta);
}

// Everything of an item whose sums are there.
STN_FUNCTION void finish_objective(const Descriptor& problem, int n) {
  double factor;
  if (problem.compared == nullptr) factor = finish_moments(problem, n).factor;
  else factor = problem.compared[n].factor;
  if (problem.grad_parameters.data != nullptr) put_gradient(problem, n, factor);
  if (problem.curves == 0) return;
  __syncthreads();
  put_curvature(problem, n, factor);
}

template <class F>
STN_FUNCTION void for_items(const Launch& launch, F f) {
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    f(problem, static_cast<int>(loop.tile_of_problem()));
  }
}

}  // namespace stn

extern "C" __global__ void stn_prepare(STN_ARGUMENTS) {
  stn::for_items(launch, [](const stn::Descriptor& problem, int n) { stn::prepare(problem, n); });
}

extern "C" __global__ void stn_finish_moments(STN_ARGUMENTS) {
  stn::for_items(launch, [](const stn::Descriptor& problem, int n) {
    const stn::Compared item = stn::finish_moments(problem, n);
    if (threadIdx.x == 0 && problem.compared != nullptr) problem.compared[n] = item;
  });
}

extern "C" __global__ void stn_finish_objective(STN_ARGUMENTS) {
  stn::for_items(launch, [](const stn::Descriptor& problem, int n) { stn::finish_objective(problem, n); });
}

extern "C" __global__ void stn_finish(STN_ARGUMENTS) {
  stn::for_items(launch, [](const stn::Descriptor& problem, int n) { stn::finish(problem, n); });
}
