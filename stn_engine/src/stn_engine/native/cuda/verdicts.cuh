// From the moments of an objective to its value, and to what gradients need of them.
#pragma once

#include "problem.cuh"

namespace stn {

// Sums over the target points, and channels, of an item.
enum Moment : int {
  kWeight,          // of w, over points alone
  kLoss,            // of w·e² or w·h(e)
  kMoving = kLoss,  // of w·V, w·F and their products: of ncc
  kFixed,
  kMovingMoving,
  kFixedFixed,
  kMovingFixed,
};
static_assert(kMovingFixed + 1 == kMoments, "the host has it otherwise");

// A variance below this part of the mean square is 0: what is left of it is rounding.
constexpr double kConstant = 0x1p-38;

// Pairs of `count` things without order, a thing with itself included.
STN_FUNCTION constexpr int pairs_of(int count) { return count * (count + 1) / 2; }

// Which of these pairs is that of a and b.
STN_FUNCTION int pair_of(int a, int b, int count) {
  const int low = smaller(a, b), high = larger(a, b);
  return low * count - low * (low - 1) / 2 + high - low;
}

// e², or what huber has in its place: what lies within delta, e² / 2, and what lies beyond, as a line.
STN_FUNCTION double loss_of(const Descriptor& problem, double e) {
  if (static_cast<Loss>(problem.loss) == Loss::ssd) return e * e;
  const double near = clamp_to(e, -problem.delta, problem.delta);
  return near * (e - near * 0.5);
}

// The verdict on an item, and its value.
STN_FUNCTION Verdict judged(const Descriptor& problem, const double* moments, double& value) {
  const Verdict none{0.0, 0.0, 0.0, 0.0};
  const double size = static_cast<double>(problem.channels) * moments[kWeight];
  const Loss loss = static_cast<Loss>(problem.loss);
  value = loss == Loss::ncc ? 1.0 : 0.0;
  if (size == 0.0) return none;
  if (loss != Loss::ncc) {
    value = moments[kLoss] / size;
    return {0.0, 0.0, 0.0, (loss == Loss::ssd ? 2.0 : 1.0) / size};
  }
  const double moving = moments[kMoving] / size, fixed = moments[kFixed] / size;
  const double A = moments[kMovingMoving] - moving * moments[kMoving];
  const double B = moments[kFixedFixed] - fixed * moments[kFixed];
  const double product = moments[kMovingFixed] - moving * moments[kFixed];
  if (A <= kConstant * moments[kMovingMoving] || B <= kConstant * moments[kFixedFixed]) return none;
  const double root = ::sqrt(A * B);
  value = 1.0 - product / root;
  return {moving, fixed, product / A, 1.0 / root};
}

}  // namespace stn
