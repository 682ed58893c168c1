// Parameters before and after the kernels that know feature maps: float64 throughout, one thread block per theta.
#include "problem.cuh"

namespace stn {

// What a similarity has of parameters for one item of the batch.
struct OwnParameters {
  Kind kind;
  int count;
  double at[4];

  STN_MEMBER OwnParameters(const Descriptor& problem, int n)
      : kind(static_cast<Kind>(problem.own_kind)), count(parameter_count(kind, 2)), at{} {
    for (int k = 0; k < count; ++k) at[k] = number_of(problem.own_parameters, n, k);
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

// Sums some entries over all tiles that share parameters n. Every thread must call it, and sees the sums.
STN_FUNCTION void sum_tiles(const Descriptor& problem, int n, int first, int count, double (&entries)[kAtOnce]) {
  __shared__ double warps[kWarps][kAtOnce];
  const int64 tiles = static_cast<int64>(problem.target.count) * (problem.parameter_batch == 1 ? problem.batch : 1);
  const double* from = problem.sums + static_cast<int64>(n) * problem.target.count * problem.entries + first;
  double sums[kAtOnce] = {};
  for (int64 tile = threadIdx.x; tile < tiles; tile += kThreads)
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e)
      if (e < count) sums[e] += from[tile * problem.entries + e];
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
  if (static_cast<Kind>(problem.kind) != Kind::spline) {
    sum_tiles(problem, n, 0, problem.entries, entries);
    return put_linear(problem, n, entries);
  }
  for (int first = 0; first < problem.entries; first += kAtOnce) {
    const int count = smaller(problem.entries - first, kAtOnce), e = threadIdx.x;
    sum_tiles(problem, n, first, count, entries);
    if (e < count) put_number(problem.grad_parameters, n, first + e, entries[e] * problem.factors[2 * (e % 2)]);
  }
}

template <class F>
STN_FUNCTION void for_thetas(const Launch& launch, F f) {
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    f(problem, static_cast<int>(loop.tile_of_problem()));
  }
}

}  // namespace stn

extern "C" __global__ void stn_prepare(STN_ARGUMENTS) {
  stn::for_thetas(launch, [](const stn::Descriptor& problem, int n) { stn::prepare(problem, n); });
}

extern "C" __global__ void stn_finish(STN_ARGUMENTS) {
  stn::for_thetas(launch, [](const stn::Descriptor& problem, int n) { stn::finish(problem, n); });
}
