#include "instruction_sets.h"

namespace stn {

#if defined(STN_HAS_X86_64_LEVELS)
namespace avx512 {
const Kernels& kernels(Storage storage, int axes);
}
namespace avx2 {
const Kernels& kernels(Storage storage, int axes);
}
#endif
namespace baseline {
const Kernels& kernels(Storage storage, int axes);
}

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = {
#if defined(STN_HAS_X86_64_LEVELS)
      {"avx512", [] { return __builtin_cpu_supports("x86-64-v4") != 0; }, avx512::kernels},
      {"avx2", [] { return __builtin_cpu_supports("x86-64-v3") != 0; }, avx2::kernels},
#endif
      {"baseline", [] { return true; }, baseline::kernels},
  };
  return sets;
}

const InstructionSet& best_instruction_set() {
  for (const InstructionSet& set : instruction_sets())
    if (set.runs_here()) return set;
  return instruction_sets().back();
}

}  // namespace stn
