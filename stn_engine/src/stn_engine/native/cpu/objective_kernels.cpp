// Objectives, for the instruction set and the storage type that the build names: compiled once for each pair.
#include "objective_run.h"

namespace stn::STN_ISA {

using float32 = float;
using float64 = double;
using float16 = Float16;
using bfloat16 = BFloat16;

#define STN_JOINED(left, right) left##right
#define STN_NAME(storage) STN_JOINED(objective_, storage)

ObjectiveRun STN_NAME(STN_STORAGE)(int axes) {
  return axes == 3 ? objective_run<STN_STORAGE, 3> : objective_run<STN_STORAGE, 2>;
}

}  // namespace stn::STN_ISA
