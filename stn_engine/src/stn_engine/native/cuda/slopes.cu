// The kernels of the gradients of parameters, grids and flows. Volumes are read plane by plane, whatever their layout.
#include "parameters.cuh"

STN_KERNEL(stn_slopes_matrix_planes, stn::kSlopeBlocks, stn::matrix_tiles<false>)
STN_KERNEL(stn_slopes_field_planes, stn::kVectorSlopeBlocks, stn::field_tiles<false>)
#if STN_AXES == 2
STN_KERNEL(stn_slopes_spline_planes, stn::kSlopeBlocks, stn::spline_tiles<false>)
STN_KERNEL(stn_slopes_matrix_interleaved, stn::kVectorSlopeBlocks, stn::matrix_tiles<true>)
STN_KERNEL(stn_slopes_field_interleaved, stn::kVectorSlopeBlocks, stn::field_tiles<true>)
STN_KERNEL(stn_slopes_spline_interleaved, stn::kVectorSlopeBlocks, stn::spline_tiles<true>)
#endif
