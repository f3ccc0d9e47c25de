"""Stage 3: batches of uint8 crops come in, classes, scores and activation maps go out. Knows torch, but not Ray.

card.py      reads the card beside the weights
storage.py   opens addresses: paths, buckets, URLs
weights.py   finds, verifies and reads weights
engine.py    one model on one runtime
runtimes/    what executes the network: torch, ONNX Runtime, our CPU kernels, CUDA
head.py      last layers, results
hot_swap.py  replaces the weights of a running model
health.py    whether the model still gives results
quantize.py  calibrates weights for int8
"""
