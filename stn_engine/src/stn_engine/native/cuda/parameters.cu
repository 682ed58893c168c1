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

constexpr int kMaxLinear = 12;

// Writes the gradient of theta: the transpose of the factors, times the gradient of the matrix. One thread calls it.
STN_FUNCTION void put_linear(const Descriptor& problem, int n, const double* grad_matrix) {
  double grad_theta[kMaxLinear] = {};
  for (int k = 0; k < problem.count; ++k)
    for (int e = 0; e < problem.entries; ++e)
      grad_theta[k] = fused(problem.factors[e * (problem.count + 1) + k], grad_matrix[e], grad_theta[k]);
  if (problem.own_kind != problem.kind) {
    double six[6];
    for (int k = 0; k < 6; ++k) six[k] = grad_theta[k];
    return put_similarity(problem, n, six);
  }
  for (int k = 0; k < problem.count; ++k) put_number(problem.grad_parameters, n, k, grad_theta[k]);
}

// Entry e of the sum over all tiles that share parameters n. Every thread must call it.
STN_FUNCTION double sum_of_tiles(const Descriptor& problem, int n, int e) {
  const int64 tiles = static_cast<int64>(problem.target.count) * (problem.parameter_batch == 1 ? problem.batch : 1);
  const double* sums = problem.sums + static_cast<int64>(n) * problem.target.count * problem.entries + e;
  double sum = 0.0;
  for (int64 tile = threadIdx.x; tile < tiles; tile += kThreads) sum += sums[tile * problem.entries];
  return block_sum(sum);
}

STN_FUNCTION void finish(const Descriptor& problem, int n) {
  __shared__ double grad_matrix[kMaxLinear];
  const bool spline = static_cast<Kind>(problem.kind) == Kind::spline;
  for (int e = 0; e < problem.entries; ++e) {
    const double sum = sum_of_tiles(problem, n, e);
    if (threadIdx.x != 0) continue;
    if (spline) put_number(problem.grad_parameters, n, e, sum * problem.factors[2 * (e % 2)]);
    else grad_matrix[e] = sum;
  }
  if (threadIdx.x == 0 && !spline) put_linear(problem, n, grad_matrix);
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
