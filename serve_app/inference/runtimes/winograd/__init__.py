"""Run the network with convolutions of this project, compiled for the vector units of the CPU at hand.

A batch of uint8 pixels goes in, (N, H, W, 3). The last feature map comes out, float32 (N, 512, h, w).

- runtime.py: packs the weights, plans the order of the convolutions and runs a batch
- kernels.py: the convolutions, in LLVM IR and numba
- README.md: layouts, methods, the least possible time, and how to test and time a change
"""
