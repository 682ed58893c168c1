// The backward kernels for maps under transforms that can be inverted.
#include "gather.cuh"

STN_KERNEL(stn_reach, stn::find_reaches)
STN_KERNEL(stn_gather_planes, stn::gather_tiles<false>)
STN_KERNEL(stn_gather_interleaved, stn::gather_tiles<true>)
