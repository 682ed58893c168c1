// Parameters before and after the kernels that know feature maps: float64 throughout, one block per theta.
#include "item.cuh"

namespace stn {

// theta (2, 3) of a similarity, from the parameters that it has.
STN_FUNCTION void expand(const Item& item, int n) {
  const int counts[] = {3, 4, 2, 1}, kind = item.own_kind - static_cast<int>(Kind::attention);
  double own[4] = {};
  for (int k = 0; k < counts[kind]; ++k)
    own[k] = number_at(item.own_parameters, item.own_wide, static_cast<int64>(n) * counts[kind] + k);
  double theta[6];
  similarity_theta(static_cast<Kind>(item.own_kind), own, theta);
  for (int k = 0; k < 6; ++k) reinterpret_cast<double*>(const_cast<char*>(item.parameters))[6 * n + k] = theta[k];
}

STN_FUNCTION bool is_similarity(int kind) {
  return kind >= static_cast<int>(Kind::attention) && kind <= static_cast<int>(Kind::rotation);
}

// From the gradient of theta to that of a similarity's own parameters.
STN_FUNCTION void put_similarity(const Item& item, int n, const double (&by_theta)[6]) {
  const int counts[] = {3, 4, 2, 1}, count = counts[item.own_kind - static_cast<int>(Kind::attention)];
  const int64 first = static_cast<int64>(n) * count;
  double own[4] = {}, by_own[4] = {};
  for (int k = 0; k < count; ++k) own[k] = number_at(item.own_parameters, item.own_wide, first + k);
  similarity_theta_adjoint(static_cast<Kind>(item.own_kind), own, by_theta, by_own);
  for (int k = 0; k < count; ++k) put_number(item.by_parameters, item.own_wide, first + k, by_own[k]);
}

constexpr int kMaxLinear = 12;

// The transpose of the factors, times the gradient of the matrix; one thread.
STN_FUNCTION void put_linear(const Item& item, int n, const double* by_matrix) {
  double by_theta[kMaxLinear] = {};
  for (int k = 0; k < item.count; ++k)
    for (int e = 0; e < item.entries; ++e)
      by_theta[k] = fused(item.factors[e * (item.count + 1) + k], by_matrix[e], by_theta[k]);
  if (is_similarity(item.own_kind)) {
    double six[6];
    for (int k = 0; k < 6; ++k) six[k] = by_theta[k];
    return put_similarity(item, n, six);
  }
  for (int k = 0; k < item.count; ++k)
    put_number(item.by_parameters, item.own_wide, static_cast<int64>(n) * item.count + k, by_theta[k]);
}

// Entry e of the sum over all tiles that share parameters n; every thread must call it.
STN_FUNCTION double sum_of_tiles(const Item& item, int n, int e) {
  const int64 tiles = static_cast<int64>(item.to.count) * (item.parameter_batch == 1 ? item.batch : 1);
  const double* sums = item.sums + static_cast<int64>(n) * item.to.count * item.entries + e;
  double sum = 0.0;
  for (int64 tile = threadIdx.x; tile < tiles; tile += kThreads) sum += sums[tile * item.entries];
  return block_sum(sum);
}

STN_FUNCTION void finish(const Item& item, int n) {
  __shared__ double by_matrix[kMaxLinear];
  const bool spline = static_cast<Kind>(item.kind) == Kind::spline;
  for (int e = 0; e < item.entries; ++e) {
    const double sum = sum_of_tiles(item, n, e);
    if (threadIdx.x != 0) continue;
    if (spline)
      put_number(item.by_parameters, item.own_wide, static_cast<int64>(n) * item.count + e,
                 sum * item.factors[2 * (e % 2)]);
    else by_matrix[e] = sum;
  }
  if (threadIdx.x == 0 && !spline) put_linear(item, n, by_matrix);
}

template <class F>
STN_FUNCTION void for_thetas(const Launch& launch, F f) {
  for (Run run(launch); run.goes_on(); ++run.tile) {
    const Item& item = item_of(launch, run);
    f(item, static_cast<int>(run.tile_of_item()));
  }
}

}  // namespace stn

extern "C" __global__ void stn_expand(STN_ARGUMENTS) {
  stn::for_thetas(STN_LAUNCH, [](const stn::Item& item, int n) {
    if (threadIdx.x == 0) stn::expand(item, n);
  });
}

extern "C" __global__ void stn_finish(STN_ARGUMENTS) {
  stn::for_thetas(STN_LAUNCH, [](const stn::Item& item, int n) { stn::finish(item, n); });
}
