"""The backbone on an NVIDIA GPU: half precision, channels-last, a convolution and what follows it in one kernel."""

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
from serve_app.inference.runtimes.cuda.kernels import CHANNELS, CONVERSION, Kernels
from serve_app.inference.runtimes.torch import TorchRuntime
from serve_app.model_card import ImageTransform

log = logging.getLogger("serve_app")
GPU = torch.device("cuda")
TYPES = {"auto": torch.float16, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# Largest error of a feature, as a share of the largest feature: not rounding any more, but a broken kernel.
TOLERANCE = {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float32: 1e-3}
SAMPLES = 4
STEM, BLOCKS, OWN = "stem", "blocks", "own kernels"
FUSED = ((STEM, BLOCKS, OWN), (STEM, BLOCKS), (BLOCKS,), ())  # what is tried: not every GPU has all of these kernels


class Convolution(NamedTuple):
    """A convolution as a GPU takes it."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]


class CudaRuntime:
    """cuDNN convolutions that add their bias, the shortcut and the ReLU before they write.

    One by one they would pass over every activation three times or four. A shortcut's own
    bias is added to that of the convolution it joins.
    """

    name, workers = "cuda", 2

    def __init__(
        self,
        model: ResNet,
        transform: ImageTransform,
        dtype: torch.dtype = torch.float16,
        device: torch.device = GPU,
        fused: Collection[str] = FUSED[1],
    ) -> None:
        """Copy a folded model's weights to a device.

        Args:
            model: Batch norms folded (``backbones.fold``), in float32; left as it is.
            transform: Its mean and std.
            dtype: Of weights and activations; sums are float32 in any case.
            device: Where to.
            fused: The parts whose convolutions take bias, shortcut and ReLU with them, and
                whether pixels and max-pool have kernels of ours (``backbones.cuda_kernels``,
                16-bit types only); without any it runs on every GPU.

        Raises:
            RuntimeError, ImportError: There are no such kernels here.
        """
        self.device, self.dtype, self.fused = device, dtype, fused
        self._own = Kernels(dtype) if OWN in fused else None
        # Pixels arrive as 0-255, mean and std are meant for 0-1: scaled, then shifted, in one pass.
        mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (transform.mean, transform.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._pool = model.maxpool
        self._stem = self._copy(model.conv1)
        if self._own:  # it gives a fourth channel
            weight = functional.pad(self._stem.weight, (0, 0, 0, 0, 0, CHANNELS - 3))
            self._stem = self._stem._replace(weight=weight.contiguous(memory_format=torch.channels_last))
        blocks = [block for block in model.modules() if isinstance(block, BasicBlock)]
        self._blocks = [self._copy_block(block) for block in blocks]

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """See Runtime; the features are of the backbone's own precision."""
        return self.forward(torch.from_numpy(pixels).to(self.device))

    def forward(self, pixels: Tensor) -> Tensor:
        """Run a batch that is on the device: uint8, (N, H, W, 3)."""
        x = convolve(self._stem, self._normalize(pixels), fused=STEM in self.fused)
        x = self._own.max_pool(x) if self._own else self._pool(x)
        fused = BLOCKS in self.fused
        for first, second, shortcut in self._blocks:
            skipped = x
            if shortcut is not None:
                skipped = functional.conv2d(x, shortcut.weight, None, shortcut.stride, shortcut.padding)
            x = convolve(second, convolve(first, x, fused=fused), skipped, fused)
        return x

    def _normalize(self, pixels: Tensor) -> Tensor:
        if self._own:
            return self._own.normalize(pixels, self._scale, self._shift)
        planes = pixels.permute(0, 3, 1, 2)
        x = torch.empty(planes.shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last)
        return torch.addcmul(self._shift, planes, self._scale, out=x)  # float32 until it is written

    def _copy(self, conv: nn.Conv2d, more_bias: Tensor | None = None) -> Convolution:
        if conv.bias is None:
            raise ValueError("fold the batch norms first: a convolution has no bias")
        bias = conv.bias.detach() if more_bias is None else (conv.bias + more_bias).detach()
        weight = conv.weight.detach().to(self.device, self.dtype, memory_format=torch.channels_last)
        height, width = conv.stride
        above, left = (int(side) for side in conv.padding)
        return Convolution(weight, bias.to(self.device, self.dtype), (height, width), (above, left))

    def _copy_block(self, block: BasicBlock) -> tuple[Convolution, Convolution, Convolution | None]:
        first = self._copy(block.conv1)
        if block.downsample is None:
            return first, self._copy(block.conv2), None
        joined = block.downsample[0]
        return first, self._copy(block.conv2, joined.bias), self._copy(joined)


def convolve(conv: Convolution, x: Tensor, skipped: Tensor | None = None, fused: bool = True) -> Tensor:
    """Convolution, bias, what was skipped to here, ReLU: in one kernel, or in one each."""
    weight, bias, stride, padding = conv
    if not fused:
        y = functional.conv2d(x, weight, bias, stride, padding)
        return (y if skipped is None else y.add_(skipped)).relu_()
    if skipped is None:
        return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, (1, 1), 1)
    return torch.cudnn_convolution_add_relu(x, weight, skipped, 1.0, bias, stride, padding, (1, 1), 1)


def on_gpu(model: ResNet, transform: ImageTransform, precision: str) -> CudaRuntime:
    """Build the backbone on this machine's GPU, and see that it computes what the CPU does.

    Args:
        model: Batch norms folded, on the CPU.
        transform: Of the weights.
        precision: See EngineConfig.

    Raises:
        EngineError: There is no GPU, or it gives other features; the message is one sentence.
    """
    if precision not in TYPES:
        raise EngineError(f"engine cuda: precision {precision} runs on CPUs only")
    if not gpu_found():
        raise EngineError("engine cuda: PyTorch finds no NVIDIA GPU on this machine")
    dtype = TYPES[precision]
    wrong = ""
    for fused in FUSED[0 if dtype in CONVERSION else 1 :]:
        try:
            with torch.inference_mode(), exact():
                backbone = CudaRuntime(model, transform, dtype, fused=fused)
                worst = largest_error(backbone, model, transform)
        except (RuntimeError, ImportError) as error:  # no kernel for this GPU, or no memory left on it
            wrong = " ".join(str(error).split())[:200]
        else:
            if worst < TOLERANCE[dtype]:
                return backbone
            wrong = f"its features differ from the CPU's by {worst:.1e}"
        log.warning("engine cuda, fused %s: %s", fused, wrong)
    raise EngineError(f"engine cuda: this GPU cannot run the model in {dtype}: {wrong}")


def gpu_found() -> bool:
    """PyTorch is built for NVIDIA GPUs, and finds one."""
    return torch.version.cuda is not None and torch.cuda.is_available()


def largest_error(backbone: CudaRuntime, model: ResNet, transform: ImageTransform) -> float:
    """Largest difference of a feature from the CPU's, as a share of the largest feature."""
    side = transform.crop_px
    sample = np.random.default_rng(0).integers(0, 256, (SAMPLES, side, side, 3), np.uint8)
    expected = TorchRuntime(model, transform, torch.get_num_threads())(sample)
    return float((backbone(sample).float().cpu() - expected).abs().max() / expected.abs().max())


def exact(search: bool = False) -> AbstractContextManager[None]:
    """float32 stays float32 (no TF32); with ``search``, cuDNN times its kernels and keeps the fastest."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=search, allow_tf32=False)
