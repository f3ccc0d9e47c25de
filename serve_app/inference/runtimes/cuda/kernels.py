"""Two kernels for NVIDIA GPUs that PyTorch does not have, compiled when they are first wanted (NVRTC, in a second).

PyTorch's max-pool also writes where each maximum was, and cuDNN copies three channels to four
before it convolves: both pass over the network's largest activations for nothing.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

CHANNELS = 4  # of the first layer's input: cuDNN's kernels take no fewer, the last one is zero
VECTOR = 8  # channels that a thread of the max-pool moves at once, 16 bytes
PIXELS = 256  # that a block of the normalization converts
WIDEST = 512  # threads of a block of the max-pool
Size = tuple[int, int, int]
CONVERSION = {torch.float16: "cvt.rn.f16.f32", torch.bfloat16: "cvt.rn.bf16.f32"}

SOURCE = r"""
extern "C" __global__ void normalize(const unsigned char *pixels, const float *scale, const float *shift,
                                     unsigned long long *planes, int count) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    unsigned long long packed = 0;
    #pragma unroll
    for (int channel = 0; channel < 3; ++channel) {
        float value = fmaf((float)pixels[3ll * at + channel], scale[channel], shift[channel]);
        unsigned short half;
        asm(CONVERSION " %0, %1;" : "=h"(half) : "f"(value));
        packed |= (unsigned long long)half << (16 * channel);
    }
    planes[at] = packed;
}

// 3 x 3, every second place. What a ReLU gave is not negative: as such, 16-bit floats are ordered as
// whole numbers are, NaN last, and what lies outside may count as zero.
extern "C" __global__ void max_pool(const uint4 *given, uint4 *pooled, int height, int width) {
    int column = blockIdx.x * blockDim.y + threadIdx.y, row = blockIdx.y, columns = (width + 1) / 2;
    if (column >= columns) return;
    const uint4 *image = given + (size_t)blockIdx.z * height * width * blockDim.x + threadIdx.x;
    uint4 most = make_uint4(0, 0, 0, 0);
    #pragma unroll
    for (int y = 2 * row - 1; y <= 2 * row + 1; ++y) {
        #pragma unroll
        for (int x = 2 * column - 1; x <= 2 * column + 1; ++x) {
            if (y < 0 || y >= height || x < 0 || x >= width) continue;
            uint4 here = image[(size_t)(y * width + x) * blockDim.x];
            most.x = __vmaxs2(most.x, here.x);
            most.y = __vmaxs2(most.y, here.y);
            most.z = __vmaxs2(most.z, here.z);
            most.w = __vmaxs2(most.w, here.w);
        }
    }
    pooled[(((size_t)blockIdx.z * gridDim.y + row) * columns + column) * blockDim.x + threadIdx.x] = most;
}
"""


class Kernels:
    """The kernels for one GPU and one 16-bit type; they run in PyTorch's current stream."""

    def __init__(self, dtype: torch.dtype) -> None:
        """Compile them for the current GPU.

        Args:
            dtype: Of activations: float16 or bfloat16.

        Raises:
            RuntimeError, ImportError: They cannot be had here.
        """
        from cuda.bindings import driver  # PyTorch's own dependency, on Linux

        self._dtype, self._driver = dtype, driver
        torch.cuda.synchronize()  # this thread has no CUDA context before PyTorch wants one
        major, minor = torch.cuda.get_device_capability()
        module = _checked(driver.cuModuleLoadData(compiled(dtype, f"sm_{major}{minor}")))
        names = (b"normalize", b"max_pool")
        self._normalize, self._max_pool = (_checked(driver.cuModuleGetFunction(module, each)) for each in names)

    def normalize(self, pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Scale and shift pixels.

        Args:
            pixels: uint8, (N, H, W, 3), contiguous.
            scale: float32, three numbers.
            shift: Likewise, added afterwards.

        Returns:
            (N, 4, H, W) in channels-last memory; the fourth channel is zero.
        """
        n, height, width, _ = pixels.shape
        planes = _channels_last((n, CHANNELS, height, width), self._dtype, pixels.device)
        count = n * height * width
        grid = (-(-count // PIXELS), 1, 1)
        self._launch(self._normalize, grid, (PIXELS, 1, 1), (pixels, scale, shift, planes, count))
        return planes

    def max_pool(self, x: Tensor) -> Tensor:
        """ResNet's max-pool, 3 x 3 with stride 2 and a border of 1, of what a ReLU gave.

        Args:
            x: (N, C, H, W) in channels-last memory, no number negative; C is a multiple of 8.
        """
        n, channels, height, width = x.shape
        rows, columns, vectors = (height + 1) // 2, (width + 1) // 2, channels // VECTOR
        pooled = _channels_last((n, channels, rows, columns), self._dtype, x.device)
        side = min(columns, WIDEST // vectors)
        grid = (-(-columns // side), rows, n)
        self._launch(self._max_pool, grid, (vectors, side, 1), (x, pooled, height, width))
        return pooled

    def _launch(self, kernel: Any, grid: Size, block: Size, given: tuple[Any, ...]) -> None:
        values = tuple(each.data_ptr() if isinstance(each, Tensor) else each for each in given)
        types = tuple(ctypes.c_void_p if isinstance(each, Tensor) else ctypes.c_int for each in given)
        stream = torch.cuda.current_stream().cuda_stream
        _checked(self._driver.cuLaunchKernel(kernel, *grid, *block, 0, stream, (values, types), 0))


def compiled(dtype: torch.dtype, architecture: str) -> bytes:
    """Compile the kernels; needs no GPU.

    Args:
        dtype: Of activations: float16 or bfloat16.
        architecture: As NVIDIA names it: ``sm_90``.

    Raises:
        RuntimeError: With the compiler's words.
        ImportError: There is no compiler here.
    """
    from cuda.bindings import nvrtc

    options = [f"--gpu-architecture={architecture}".encode(), f'-DCONVERSION="{CONVERSION[dtype]}"'.encode()]
    program = _checked(nvrtc.nvrtcCreateProgram(SOURCE.encode(), b"kernels.cu", 0, [], []))
    try:
        _checked(nvrtc.nvrtcCompileProgram(program, len(options), options))
    except RuntimeError as error:
        words = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, words)
        raise RuntimeError(f"{error}: {words.decode(errors='replace')}") from error
    binary: bytes = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, binary))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return binary


def _channels_last(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call gave besides its status."""
    status, *found = result
    if status.value:
        raise RuntimeError(f"CUDA: {status.name}")
    return found[0] if found else None
