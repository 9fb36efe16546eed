// kernels.cu as plain C++: the threads of a launch, one after the other, say here who they are.
#include <math.h>

#ifndef __FLT16_MANT_DIG__
#error "needs a compiler with _Float16: GCC 12, Clang 15"
#endif

struct dim3 { unsigned int x, y, z; };
struct uint4 { unsigned int x, y, z, w; };
static dim3 threadIdx, blockIdx, blockDim;

template <class T> static T atomicAdd(T* at, T more) {
    const T before = *at;
    *at = before + more;
    return before;
}

#define __device__
#define __global__
#define __launch_bounds__(...)

#include "../../src/cuda/kernels.cu"

extern "C" void this_thread(unsigned int block, unsigned int x, unsigned int y, unsigned int blocks_x, unsigned int blocks_y) {
    blockIdx = {block, 0, 0};
    threadIdx = {x, y, 0};
    blockDim = {blocks_x, blocks_y, 1};
}
