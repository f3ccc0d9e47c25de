"""The runtime for NVIDIA GPUs: cuDNN convolutions, two kernels of our own, CUDA graphs."""
