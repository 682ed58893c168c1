// From parameters to the matrix that takes target pixels (j, i, k, 1) to source pixels, and back with
// gradients (sections 2 and 4). Everything is float64 and runs once per item.
#pragma once

#include "units.h"

namespace stn {

// Rows of the matrix: one per axis of an affine map, three of a homography.
constexpr int kMaxRows = 3;

struct Matrix {
  double at[kMaxRows][kMaxAxes + 1];
};

// Sizes that the unit change depends on, in the order x, y, z.
struct Lattice {
  int axes;
  Unit unit;
  long long target[kMaxAxes];
  long long source[kMaxAxes];
};

// Which of s, phi, t_x and t_y a kind has as parameters; -1 where it has the identity's.
struct SimilarityParts {
  int s, phi, t_x, t_y;
};

STN_FUNCTION SimilarityParts similarity_parts(Kind kind) {
  switch (kind) {
    case Kind::attention: return {0, -1, 1, 2};
    case Kind::translation: return {-1, -1, 0, 1};
    case Kind::rotation: return {-1, 0, -1, -1};
    default: return {0, 1, 2, 3};
  }
}

// theta = [[s·cos phi, -s·sin phi, t_x], [s·sin phi, s·cos phi, t_y]]
STN_FUNCTION void similarity_theta(Kind kind, const double* parameters, double theta[6]) {
  const SimilarityParts part = similarity_parts(kind);
  const double s = part.s < 0 ? 1.0 : parameters[part.s];
  const double phi = part.phi < 0 ? 0.0 : parameters[part.phi];
  const double a = s * ::cos(phi), b = s * ::sin(phi);
  theta[0] = theta[4] = a;
  theta[1] = -b;
  theta[3] = b;
  theta[2] = part.t_x < 0 ? 0.0 : parameters[part.t_x];
  theta[5] = part.t_y < 0 ? 0.0 : parameters[part.t_y];
}

STN_FUNCTION void similarity_theta_adjoint(Kind kind, const double* parameters, const double grad_theta[6],
                                           double* grad_parameters) {
  const SimilarityParts part = similarity_parts(kind);
  const double s = part.s < 0 ? 1.0 : parameters[part.s];
  const double phi = part.phi < 0 ? 0.0 : parameters[part.phi];
  const double grad_a = grad_theta[0] + grad_theta[4], grad_b = grad_theta[3] - grad_theta[1];
  if (part.s >= 0) grad_parameters[part.s] = grad_a * ::cos(phi) + grad_b * ::sin(phi);
  if (part.phi >= 0) grad_parameters[part.phi] = s * (grad_b * ::cos(phi) - grad_a * ::sin(phi));
  if (part.t_x >= 0) grad_parameters[part.t_x] = grad_theta[2];
  if (part.t_y >= 0) grad_parameters[part.t_y] = grad_theta[5];
}

// theta is (axes, axes + 1), row by row.
STN_FUNCTION Matrix affine_matrix(const Lattice& lattice, const double* theta) {
  Matrix m{};
  const int columns = lattice.axes + 1;
  for (int a = 0; a < lattice.axes; ++a) {
    const SourceAxis to = source_axis(lattice.source[a], lattice.unit);
    const double* row = theta + a * columns;
    double constant = 0.0;
    for (int b = 0; b < lattice.axes; ++b) {
      const TargetAxis from = target_axis(lattice.target[b], lattice.unit);
      m.at[a][b] = row[b] * ratio(to.u * from.p, to.w * from.r);
      constant += row[b] * ratio(to.u * from.q, to.w * from.r);
    }
    m.at[a][lattice.axes] = constant + (row[lattice.axes] * ratio(to.u, to.w) + ratio(to.v, to.w));
  }
  return m;
}

STN_FUNCTION void affine_matrix_adjoint(const Lattice& lattice, const Matrix& grad_matrix, double* grad_theta) {
  const int columns = lattice.axes + 1;
  for (int a = 0; a < lattice.axes; ++a) {
    const SourceAxis to = source_axis(lattice.source[a], lattice.unit);
    const double grad_constant = grad_matrix.at[a][lattice.axes];
    for (int b = 0; b < lattice.axes; ++b) {
      const TargetAxis from = target_axis(lattice.target[b], lattice.unit);
      grad_theta[a * columns + b] = grad_matrix.at[a][b] * ratio(to.u * from.p, to.w * from.r) +
                                    grad_constant * ratio(to.u * from.q, to.w * from.r);
    }
    grad_theta[a * columns + lattice.axes] = grad_constant * ratio(to.u, to.w);
  }
}

// How entry (c, d) of a homography enters entry (a, b) of its pixel matrix T·theta·S: T[a, c]·S[d, b].
STN_FUNCTION double homography_factor(const Lattice& lattice, int a, int b, int c, int d) {
  long long numerator = 1, denominator = 1;
  if (a < 2) {
    const SourceAxis to = source_axis(lattice.source[a], lattice.unit);
    numerator *= c == a ? to.u : c == 2 ? to.v : 0;
    denominator *= to.w;
  } else if (c != 2) {
    return 0.0;
  }
  if (d < 2) {
    const TargetAxis from = target_axis(lattice.target[d], lattice.unit);
    numerator *= b == d ? from.p : b == 2 ? from.q : 0;
    denominator *= from.r;
  } else if (b != 2) {
    return 0.0;
  }
  return ratio(numerator, denominator);
}

// A sum over all nine entries: one that is not finite spoils the whole matrix.
STN_FUNCTION Matrix homography_matrix(const Lattice& lattice, const double* theta) {
  Matrix m{};
  for (int a = 0; a < 3; ++a)
    for (int b = 0; b < 3; ++b)
      for (int e = 0; e < 9; ++e) m.at[a][b] += homography_factor(lattice, a, b, e / 3, e % 3) * theta[e];
  return m;
}

STN_FUNCTION void homography_matrix_adjoint(const Lattice& lattice, const Matrix& grad_matrix, double* grad_theta) {
  for (int e = 0; e < 9; ++e) {
    grad_theta[e] = 0.0;
    for (int a = 0; a < 3; ++a)
      for (int b = 0; b < 3; ++b)
        grad_theta[e] += homography_factor(lattice, a, b, e / 3, e % 3) * grad_matrix.at[a][b];
  }
}

STN_FUNCTION Matrix pixel_matrix(Kind kind, const Lattice& lattice, const double* parameters) {
  if (kind == Kind::homography) return homography_matrix(lattice, parameters);
  if (kind == Kind::affine) return affine_matrix(lattice, parameters);
  double theta[6];
  similarity_theta(kind, parameters, theta);
  return affine_matrix(lattice, theta);
}

STN_FUNCTION void pixel_matrix_adjoint(Kind kind, const Lattice& lattice, const double* parameters,
                                       const Matrix& grad_matrix, double* grad_parameters) {
  if (kind == Kind::homography) return homography_matrix_adjoint(lattice, grad_matrix, grad_parameters);
  if (kind == Kind::affine) return affine_matrix_adjoint(lattice, grad_matrix, grad_parameters);
  double grad_theta[6];
  affine_matrix_adjoint(lattice, grad_matrix, grad_theta);
  similarity_theta_adjoint(kind, parameters, grad_theta, grad_parameters);
}

}  // namespace stn
