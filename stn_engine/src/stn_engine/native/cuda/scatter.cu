// The backward kernels for maps under any other transform.
#include "scatter.cuh"

STN_KERNEL(stn_peaks, stn::find_peaks)
STN_KERNEL(stn_scatter_matrix_planes, stn::scatter_tiles<true, false>)
STN_KERNEL(stn_scatter_matrix_interleaved, stn::scatter_tiles<true, true>)
STN_KERNEL(stn_scatter_field_planes, stn::scatter_tiles<false, false>)
STN_KERNEL(stn_scatter_field_interleaved, stn::scatter_tiles<false, true>)
STN_KERNEL(stn_collect_planes, stn::collect_tiles<false>)
STN_KERNEL(stn_collect_interleaved, stn::collect_tiles<true>)
