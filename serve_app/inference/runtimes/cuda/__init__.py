"""Run the network on an NVIDIA GPU, in half precision by default.

A list of crops goes in and classification results come out (graphs.py); or one uint8 batch goes in, (N, H, W, 3), and
the last feature map comes out (runtime.py).

- graphs.py: copies a batch to the GPU and replays the CUDA graphs recorded for its size
- runtime.py: the network with cuDNN's convolutions, and the comparison with the CPU at the start
- kernels.py: two kernels of this project, which cuDNN and PyTorch do not have
"""
