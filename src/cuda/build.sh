#!/bin/sh
# kernels.cu → PTX, as it is checked in: run it after a change of kernels.cu. CI runs it, too, and compares.
#     src/cuda/build.sh [OUT]       with nvcc 13.0.88 in PATH (another version writes other text)
cd "$(dirname "$0")" && exec nvcc --ptx -arch=compute_80 -std=c++17 -fmad=false -o "${1:-kernels.ptx}" kernels.cu
