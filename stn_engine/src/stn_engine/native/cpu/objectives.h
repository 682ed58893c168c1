// Objectives of a call: their passes, cut into tasks and run on threads.
#pragma once

#include <vector>

#include "instruction_sets.h"
#include "objective.h"
#include "pool.h"

namespace stn {

// The results of every objective.
void objectives(const std::vector<Objective>& objectives, const InstructionSet& isa, Threads threads);

}  // namespace stn
