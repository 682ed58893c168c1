// One objective as the kernels see it: a warp that is never in memory, what it is compared with, and how.
#pragma once

#include "../shared/losses.h"
#include "problem.h"

namespace stn {

struct Objective {
  Problem problem;  // of the warp; its target has no data, its gradients belong to every item of the batch
  Loss loss;
  double delta;
  Domain domain;
  Map fixed, weights;    // with a batch stride of 0 where one item is shared; no data of weights: all are 1
  double* value;         // (batch)
  double* count;         // (batch)
  double* gradient;      // (batch, count of the generator), or null; of fields problem.grad_field instead
  double* gauss_newton;  // (batch, count, count), or null

  STN_MEMBER bool has_slopes() const { return problem.sampling.interpolation != Interpolation::nearest; }
  STN_MEMBER bool needs_field() const { return has_slopes() && problem.grad_field.data != nullptr; }
  STN_MEMBER bool needs_sums() const { return has_slopes() && gradient != nullptr; }
  STN_MEMBER bool needs_curvature() const { return has_slopes() && gauss_newton != nullptr; }

  // How many gradients are summed side by side. The G of ncc is a sum of V, F and 1 times factors that only the moments
  // tell. Where all that is kept of a gradient are the few sums of a matrix, one pass sums it for each of the three;
  // otherwise a second pass knows the factors.
  STN_MEMBER int terms() const { return loss == Loss::ncc && needs_sums() && problem.generator.is_linear() ? 3 : 1; }
};

// What slopes are multiplied by in the terms of a gradient of ncc.
enum Term : int { kOfMoving, kOfFixed, kOfOne, kMaxTerms };

// What is done with the points of an item, and what the gradient by V needs for it, as far as that is known.
struct Pass {
  bool moments, sums, curvature, field;
  Compared item;  // its factor is that of the gradient of a field
};

// Rows of the matrix that the gradient of a transform's parameters goes through.
STN_FUNCTION int matrix_rows(const Problem& problem) {
  return problem.generator.kind == Kind::homography ? 3 : problem.axes;
}

// How sums of a run lie side by side.
struct SumsLayout {
  int64_t sums, curvature, count;  // where each part begins behind the moments, and where all ends

  STN_MEMBER explicit SumsLayout(const Objective& objective) : sums(kMoments) {
    const Problem& problem = objective.problem;
    const int64_t rows = matrix_rows(problem), columns = problem.axes + 1;
    const int64_t entries = problem.generator.is_linear() ? rows * columns : problem.generator.count;
    curvature = sums + (objective.needs_sums() ? objective.terms() * entries : 0);
    count = curvature + (objective.needs_curvature() ? pairs_of(rows) * pairs_of(columns) : 0);
  }
};

// Adds to sums what the pixels [first, last) of item n contribute, in raster order; or writes their gradient of a
// field.
using ObjectiveRun = void (*)(const Objective&, const Pass&, int64_t n, int64_t first, int64_t last, double* sums);

}  // namespace stn
