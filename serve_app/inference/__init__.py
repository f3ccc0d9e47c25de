"""Stage 3: batches of uint8 crops come in, classes, scores and activation maps go out. Knows no Ray.

torch is imported where a runtime, an export or a download needs it, so a CPU replica with our kernels runs without.

card.py      reads the card beside the weights
storage.py   opens addresses: paths, buckets, URLs
weights.py   finds, verifies and reads weights
network.py   which weights a ResNet-18 has, as arrays, and its convolutions
engine.py    one model on one runtime
runtimes/    what executes the network: our CPU kernels, ONNX Runtime, torch, CUDA
head.py      last layers, results
hot_swap.py  replaces the weights of a running model
health.py    whether the model still gives results
quantize.py  calibrates weights for int8
torch_model.py  weights as a PyTorch model, and models as published weights
export_head.py  a backbone and a taught head as one model
imagenet_download.py  a process that fetches torchvision's weights and converts them
child.py     runs a module as a short-lived process
"""
