"""What our CPU runtimes share. Each of them runs a batch with convolutions of its own, compiled for the CPU at hand.

A batch of uint8 pixels goes in, (N, H, W, 3). The last feature map comes out, float32 (N, 512, h, w).

- llvm.py: vectors in LLVM IR, and how numba calls them
- stem.py: rows of the stem, and their normalization
- plan.py: the layers, the order in which they run, threads, aligned memory
"""
