// Which instruction sets this build holds, and which of them this machine runs.
#pragma once

#include <vector>

#include "kernels.h"

namespace stn {

// Best first; the last runs on any machine of the architecture.
const std::vector<InstructionSet>& instruction_sets();

// The first that runs here.
const InstructionSet& best_instruction_set();

}  // namespace stn
