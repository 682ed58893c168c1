// Section 7 of the equations: losses, from moments of the maps that are compared to the value of an item and to what
// the gradient by V needs of it.
//
// V is a number, or a vector of them, as in `sampling.h`.
#pragma once

#include "sampling.h"

namespace stn {

// Sums over the target points, and channels, of an item, from which its results follow.
enum Moment : int {
  kWeight,          // of w, over points alone
  kLoss,            // of w·e² or w·h(e)
  kMoving = kLoss,  // of w·V, w·F and their products: of ncc
  kFixed,
  kMovingMoving,
  kFixedFixed,
  kMovingFixed,
  kMoments,
};

// A variance below this part of the mean square is 0: what is left of it is rounding.
constexpr double kConstantVariance = 0x1p-38;

// What the moments of an item come to.
struct Compared {
  double value;
  double moving_mean, fixed_mean;  // of ncc
  double ratio;                    // of ncc: S / A
  double factor;                   // of the gradient by V, which is 0 where nothing can be compared
};

STN_FUNCTION Compared compared(Loss loss, double channels, const double* moments) {
  const double size = channels * moments[kWeight];
  if (loss != Loss::ncc) {
    if (size == 0.0) return Compared{};
    return {moments[kLoss] / size, 0.0, 0.0, 0.0, (loss == Loss::ssd ? 2.0 : 1.0) / size};
  }
  const Compared uncorrelated{1.0, 0.0, 0.0, 0.0, 0.0};
  if (size == 0.0) return uncorrelated;
  const double moving = moments[kMoving] / size, fixed = moments[kFixed] / size;
  const double A = moments[kMovingMoving] - moving * moments[kMoving];
  const double B = moments[kFixedFixed] - fixed * moments[kFixed];
  const double S = moments[kMovingFixed] - moving * moments[kFixed];
  if (A <= kConstantVariance * moments[kMovingMoving] || B <= kConstantVariance * moments[kFixedFixed])
    return uncorrelated;
  // Each root by itself: A·B is beyond doubles sooner, and the quotient is 1 where the maps are equal.
  const double ratio = S / A, gain = ::sqrt(A) / ::sqrt(B);
  return {1.0 - ratio * gain, moving, fixed, ratio, gain / A};
}

// h(e): what lies within delta, e² / 2, and what lies beyond, as a line.
template <class V>
STN_FUNCTION V huber(V e, double delta) {
  const V near = clamp_to(e, -delta, delta);
  return near * (e - near * 0.5);
}

// The gradient by V, but for the factor. e is V - F in the precision of the maps, of which the loss is.
template <class V>
STN_FUNCTION V gradient_of(Loss loss, double delta, const Compared& item, V w, V moving, V fixed, V e) {
  if (loss == Loss::ssd) return w * e;
  if (loss == Loss::huber) return w * clamp_to(e, -delta, delta);
  return w * (item.ratio * (moving - item.moving_mean) - (fixed - item.fixed_mean));
}

// Pairs of `count` things without order, a thing with itself included.
template <class Index>
STN_FUNCTION constexpr Index pairs_of(Index count) {
  return count * (count + 1) / 2;
}

// The weight in the Gauss-Newton matrix, but for the factor.
template <class V>
STN_FUNCTION V curvature_of(Loss loss, double delta, V w, V e) {
  if (loss != Loss::huber) return w;
  // A residual that is NaN is as one beyond delta: it has no weight.
  return choose((e >= V{} - delta) & (e <= V{} + delta), w, V{});
}

}  // namespace stn
