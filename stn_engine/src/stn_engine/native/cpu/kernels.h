// What one instruction set offers: the same functions for every storage type and number of axes.
#pragma once

#include "objective.h"

namespace stn {

struct Kernels {
  // V of the pixels [first, last) of item n, in raster order.
  void (*warp_run)(const Problem&, int64_t n, int64_t first, int64_t last);
  // Adds what such pixels have for the gradient of the matrix (rows of axes + 1 entries) or of a spline's points.
  void (*parameter_run)(const Problem&, int64_t n, int64_t first, int64_t last, double* sums);
  // The gradient of a grid or a flow at such points of its item n.
  void (*field_run)(const Problem&, int64_t n, int64_t first, int64_t last);
  // The gradient of item n of the map: one of tiles() tiles, or a band of its outermost axis.
  int64_t (*tiles)(const Problem&);  // 0 if tiles do not fit
  void (*tile)(const Problem&, int64_t n, int64_t tile);
  void (*band)(const Problem&, int64_t n, int64_t first, int64_t last);
};

struct InstructionSet {
  const char* name;
  bool (*runs_here)();
  const Kernels& (*kernels[kStorageCount])(int axes);  // by storage type
  ObjectiveRun (*objective[kStorageCount])(int axes);  // null for integers
};

}  // namespace stn
