// The backward kernels for maps under any other transform.
#include "scatter.cuh"

STN_KERNEL(stn_peaks, stn::kBlocks, stn::find_peaks)
STN_KERNEL(stn_scatter_matrix_planes, stn::kBlocks, stn::scatter_tiles<true, false>)
STN_KERNEL(stn_scatter_matrix_interleaved, stn::kBlocks, stn::scatter_tiles<true, true>)
STN_KERNEL(stn_scatter_field_planes, stn::kBlocks, stn::scatter_tiles<false, false>)
STN_KERNEL(stn_scatter_field_interleaved, stn::kBlocks, stn::scatter_tiles<false, true>)
STN_KERNEL(stn_collect_planes, stn::kBlocks, stn::collect_tiles<false>)
STN_KERNEL(stn_collect_interleaved, stn::kBlocks, stn::collect_tiles<true>)
