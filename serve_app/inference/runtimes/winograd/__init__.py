"""Run the network with convolutions of this project on the vector units of the CPU.

- runtime.py: packs the weights, lays out the feature maps and runs a batch
- kernels.py: the convolutions, in LLVM IR and numba
- product.py: their innermost loop, in LLVM IR
- README.md: methods, layouts, the least possible time
"""
