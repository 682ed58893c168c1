#include "instruction_sets.h"

namespace stn {

#define STN_DECLARE(isa)                     \
  namespace isa {                            \
  const Kernels& kernels_float32(int axes);  \
  const Kernels& kernels_float64(int axes);  \
  const Kernels& kernels_float16(int axes);  \
  const Kernels& kernels_bfloat16(int axes); \
  const Kernels& kernels_uint8(int axes);    \
  const Kernels& kernels_uint16(int axes);   \
  const Kernels& kernels_int16(int axes);    \
  const Kernels& kernels_int32(int axes);    \
  const Kernels& kernels_int64(int axes);    \
  ObjectiveRun objective_float32(int axes);  \
  ObjectiveRun objective_float64(int axes);  \
  ObjectiveRun objective_float16(int axes);  \
  ObjectiveRun objective_bfloat16(int axes); \
  }
#define STN_KERNELS(isa)                                                                                        \
  {isa::kernels_float32, isa::kernels_float64, isa::kernels_float16, isa::kernels_bfloat16, isa::kernels_uint8, \
   isa::kernels_uint16,  isa::kernels_int16,   isa::kernels_int32,   isa::kernels_int64},                       \
  {                                                                                                             \
    isa::objective_float32, isa::objective_float64, isa::objective_float16, isa::objective_bfloat16             \
  }

STN_DECLARE(baseline)
#if defined(STN_HAS_X86_64_LEVELS)
STN_DECLARE(avx2)
STN_DECLARE(avx512)
#endif

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = {
#if defined(STN_HAS_X86_64_LEVELS)
      {"avx512", [] { return __builtin_cpu_supports("x86-64-v4") != 0; }, STN_KERNELS(avx512)},
      {"avx2", [] { return __builtin_cpu_supports("x86-64-v3") != 0; }, STN_KERNELS(avx2)},
#endif
      {"baseline", [] { return true; }, STN_KERNELS(baseline)},
  };
  return sets;
}

const InstructionSet& best_instruction_set() {
  for (const InstructionSet& set : instruction_sets())
    if (set.runs_here()) return set;
  return instruction_sets().back();
}

}  // namespace stn
