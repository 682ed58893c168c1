// Kernels that do what no device forgives, or need not notice; one that does not.
constexpr int kThreads = STN_THREADS;

#define ARGUMENTS const __grid_constant__ emulation::Parameters parameters

// Where a kernel writes.
int* memory_of(const emulation::Parameters& parameters) { return reinterpret_cast<int*>(parameters.words[0]); }

extern "C" __global__ void turned(ARGUMENTS) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  memory_of(parameters)[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

extern "C" __global__ void turned_too_early(ARGUMENTS) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  memory_of(parameters)[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

extern "C" __global__ void one_leaves(ARGUMENTS) {
  if (threadIdx.x != 7) __syncthreads();
}

extern "C" __global__ void half_a_warp_exchanges(ARGUMENTS) {
  if (threadIdx.x % 32 < 16) __shfl_xor_sync(0xffffffffu, 1, 1);
}

extern "C" __global__ void one_votes(ARGUMENTS) {
  if (threadIdx.x % 32 == 0) __ballot_sync(0xffffffffu, true);
  else __shfl_sync(0xffffffffu, 1, 0);
}

extern "C" __global__ void some_are_asked_for(ARGUMENTS) { __shfl_sync(0xffffu, 1, 0); }

extern "C" __global__ void beyond_the_warp(ARGUMENTS) { __shfl_sync(0xffffffffu, 1, 32); }
