"""Run the trunk of ResNet-18 with the fastest software that this machine has.

A batch of uint8 pixels goes in, (N, H, W, 3). The last feature map comes out, float32 (N, 512, h, w).

- select.py: builds the runtime that the config names, or the fastest
- factories.py: what builds each CPU runtime
- timing.py: times the CPU runtimes, in a process of its own
- remembered.py: keeps the choice on disk
- gpu.py: whether there is an NVIDIA GPU
- folding.py: merges each batch norm of a PyTorch model into the convolution before it
- onnx_graph.py: writes the model as the ONNX graph that ONNX Runtime reads
- int8.py: calibrates that graph and quantizes it
- reference.py: the network in plain NumPy
- parity.py: compares the runtime with the reference before it serves
- base.py: the interface of a runtime
- parallel.py: distributes batches over one runtime per core
- torch.py, onnxruntime.py: runtimes that call a library
- amx/: the runtime with convolutions of this project for CPUs with a matrix unit, Intel's AMX
- winograd/: the same for CPUs with AVX2 or AVX-512
- compiled/: what these two share
- cuda/: the runtime for NVIDIA GPUs
"""
