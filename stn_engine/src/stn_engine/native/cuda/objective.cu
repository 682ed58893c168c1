// The kernels of gradients of objectives. Maps are read plane by plane, whatever their layout.
#include "objective.cuh"

STN_KERNEL(stn_objective_matrix, stn::kObjectiveBlocks, stn::objective_matrix_tiles)
STN_KERNEL(stn_objective_field, stn::kObjectiveBlocks, stn::objective_field_tiles)
#if STN_AXES == 2
STN_KERNEL(stn_objective_spline, stn::kObjectiveBlocks, stn::objective_spline_tiles)
#endif
