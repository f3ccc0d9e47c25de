"""Run the network with convolutions of this project on the matrix unit of the CPU, Intel's AMX.

- runtime.py: packs the weights, lays out the feature maps and runs a batch
- kernels.py: the convolutions, in numba
- tiles.py: their innermost loops, in LLVM IR
- README.md: method and layouts
"""
