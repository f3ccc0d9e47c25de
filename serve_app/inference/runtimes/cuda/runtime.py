"""The network on an NVIDIA GPU: half precision, channels-last memory, fused convolutions."""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from serve_app.errors import EngineError
from serve_app.inference.runtimes.cuda.kernels import PTX_CONVERSION, STEM_CHANNELS, Kernels
from serve_app.inference.runtimes.gpu import gpu_available
from serve_app.inference.runtimes.torch import TorchRuntime
from serve_app.model_card import ImageTransform

log = logging.getLogger("serve_app")
GPU = torch.device("cuda")
DTYPES = {"auto": torch.float16, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# Largest error of a feature, relative to the largest feature. A larger error is a broken kernel, not rounding.
TOLERANCE = {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float32: 1e-3}
COMPARED_IMAGES = 4
STEM, BLOCKS, CUSTOM_KERNELS = "stem", "blocks", "own kernels"
# What is fused, from the fastest to what every GPU has: not every GPU has all of cuDNN's fused kernels.
FUSION_LEVELS = ((STEM, BLOCKS, CUSTOM_KERNELS), (STEM, BLOCKS), (BLOCKS,), ())


class Convolution(NamedTuple):
    """A convolution's parameters on the GPU."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]


class CudaRuntime:
    """Runs cuDNN's convolutions, which add the bias and the shortcut and apply the ReLU before they write.

    Separate kernels would pass over every activation three or four times. The bias of a shortcut's convolution is added
    to the bias of the convolution that it joins.

    Args:
        model: Batch norms folded (``folding.fold``), float32; it is not changed.
        transform: Mean and std of the model.
        dtype: Of weights and activations; sums are float32 in any case.
        device: Device of the weights.
        fused: STEM and BLOCKS: those convolutions include bias, shortcut and ReLU. CUSTOM_KERNELS: kernels.py
            normalizes and pools, for 16-bit types only. Empty: every GPU can run it.

    Raises:
        ValueError: A batch norm is not folded.
        RuntimeError: The custom kernels do not compile for this GPU.
        ImportError: NVIDIA's Python bindings are not installed.
    """

    name, workers = "cuda", 2

    def __init__(
        self,
        model: ResNet,
        transform: ImageTransform,
        dtype: torch.dtype = torch.float16,
        device: torch.device = GPU,
        fused: Collection[str] = FUSION_LEVELS[1],
    ) -> None:
        self.device, self.dtype, self.fused = device, dtype, fused
        self._kernels = Kernels(dtype) if CUSTOM_KERNELS in fused else None
        # Pixels are 0-255; mean and std are defined for 0-1. One multiplication and one addition normalize them.
        mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (transform.mean, transform.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._pool = model.maxpool
        self._stem = self._copy(model.conv1)
        if self._kernels:  # its normalization writes four channels
            weight = functional.pad(self._stem.weight, (0, 0, 0, 0, 0, STEM_CHANNELS - 3))
            self._stem = self._stem._replace(weight=weight.contiguous(memory_format=torch.channels_last))
        self._blocks = [self._copy_block(block) for block in model.modules() if isinstance(block, BasicBlock)]

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """See Runtime."""
        features: np.ndarray = self.forward(torch.from_numpy(pixels).to(self.device)).float().cpu().numpy()
        return features

    def forward(self, pixels: Tensor) -> Tensor:
        """Run a batch that is on the device: uint8, (N, H, W, 3)."""
        x = convolve(self._stem, self._normalize(pixels), fused=STEM in self.fused)
        x = self._kernels.max_pool(x) if self._kernels else self._pool(x)
        fused = BLOCKS in self.fused
        for first, second, downsample in self._blocks:
            shortcut = x
            if downsample is not None:
                shortcut = functional.conv2d(x, downsample.weight, None, downsample.stride, downsample.padding)
            x = convolve(second, convolve(first, x, fused=fused), shortcut, fused)
        return x

    def _normalize(self, pixels: Tensor) -> Tensor:
        if self._kernels:
            return self._kernels.normalize(pixels, self._scale, self._shift)
        planes = pixels.permute(0, 3, 1, 2)
        x = torch.empty(planes.shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last)
        return torch.addcmul(self._shift, planes, self._scale, out=x)  # computes in float32 and rounds at the end

    def _copy(self, conv: nn.Conv2d, shortcut_bias: Tensor | None = None) -> Convolution:
        if conv.bias is None:
            raise ValueError("a convolution has no bias: fold the batch norms first (runtimes.folding.fold)")
        bias = conv.bias.detach() if shortcut_bias is None else (conv.bias + shortcut_bias).detach()
        weight = conv.weight.detach().to(self.device, self.dtype, memory_format=torch.channels_last)
        height, width = conv.stride
        above, left = (int(side) for side in conv.padding)
        return Convolution(weight, bias.to(self.device, self.dtype), (height, width), (above, left))

    def _copy_block(self, block: BasicBlock) -> tuple[Convolution, Convolution, Convolution | None]:
        first = self._copy(block.conv1)
        if block.downsample is None:
            return first, self._copy(block.conv2), None
        downsample = block.downsample[0]
        return first, self._copy(block.conv2, downsample.bias), self._copy(downsample)


def convolve(conv: Convolution, x: Tensor, shortcut: Tensor | None = None, fused: bool = True) -> Tensor:
    """Convolve, add the bias and the shortcut, apply ReLU: in one cuDNN kernel, or in one kernel each."""
    weight, bias, stride, padding = conv
    if not fused:
        y = functional.conv2d(x, weight, bias, stride, padding)
        return (y if shortcut is None else y.add_(shortcut)).relu_()
    if shortcut is None:
        return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, (1, 1), 1)
    return torch.cudnn_convolution_add_relu(x, weight, shortcut, 1.0, bias, stride, padding, (1, 1), 1)


def build_cuda_runtime(model: ResNet, transform: ImageTransform, precision: str) -> CudaRuntime:
    """Build the fastest runtime for a folded model whose features on this machine's GPU agree with the CPU's.

    Raises:
        EngineError: The precision is int8, PyTorch finds no GPU, or no variant agrees with the CPU.
    """
    if precision not in DTYPES:
        raise EngineError(f"engine cuda: precision {precision} runs on CPUs only")
    if not gpu_available():
        raise EngineError("engine cuda: PyTorch finds no NVIDIA GPU on this machine")
    dtype, reason = DTYPES[precision], ""
    for fused in FUSION_LEVELS[0 if dtype in PTX_CONVERSION else 1 :]:
        try:
            with torch.inference_mode(), cudnn_without_tf32():
                runtime = CudaRuntime(model, transform, dtype, fused=fused)
                error = largest_error(runtime, model, transform)
        except (RuntimeError, ImportError) as failure:  # this GPU lacks a kernel, or its memory is full
            reason = " ".join(str(failure).split())[:200]
        else:
            if error < TOLERANCE[dtype]:
                return runtime
            reason = f"its features differ from the CPU's by {error:.1e}"
        log.warning("engine cuda, fused %s: not used, %s", fused, reason)
    raise EngineError(f"engine cuda: this GPU cannot run the model in {dtype}: {reason}")


def largest_error(runtime: CudaRuntime, model: ResNet, transform: ImageTransform) -> float:
    """Return the largest difference between a feature and the CPU's, relative to the largest feature."""
    side = transform.crop_px
    pixels = np.random.default_rng(0).integers(0, 256, (COMPARED_IMAGES, side, side, 3), np.uint8)
    expected = TorchRuntime(model, transform, torch.get_num_threads())(pixels)
    return float(np.abs(runtime(pixels) - expected).max() / np.abs(expected).max())


def cudnn_without_tf32(benchmark: bool = False) -> AbstractContextManager[None]:
    """Keep float32 exact; with ``benchmark``, cuDNN times its kernels for each shape and keeps the fastest."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, allow_tf32=False)
