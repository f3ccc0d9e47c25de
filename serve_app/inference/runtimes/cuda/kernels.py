"""Two CUDA kernels that PyTorch does not have, compiled by NVRTC at their first use, which takes a second.

PyTorch's max-pool also writes the index of each maximum, and cuDNN copies three channels to four before it convolves.
Each of them passes over the network's largest activations once more than necessary.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

STEM_CHANNELS = 4  # cuDNN's kernels take no fewer; the last channel is zero
VECTOR = 8  # 16-bit channels that one thread of the max-pool loads at once: 16 bytes
NORMALIZE_THREADS = 256  # of a block, one per pixel
MAX_POOL_THREADS = 512  # of a block, at most
Dim3 = tuple[int, int, int]
PTX_CONVERSION = {torch.float16: "cvt.rn.f16.f32", torch.bfloat16: "cvt.rn.bf16.f32"}

SOURCE = r"""
extern "C" __global__ void normalize(const unsigned char *pixels, const float *scale, const float *shift,
                                     unsigned long long *planes, int count) {
    int pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= count) return;
    unsigned long long packed = 0;
    #pragma unroll
    for (int channel = 0; channel < 3; ++channel) {
        float value = fmaf((float)pixels[3ll * pixel + channel], scale[channel], shift[channel]);
        unsigned short half;
        asm(CONVERSION " %0, %1;" : "=h"(half) : "f"(value));
        packed |= (unsigned long long)half << (16 * channel);
    }
    planes[pixel] = packed;
}

// Window 3 x 3, stride 2. The input comes from a ReLU, so no value is negative: 16-bit floats are then ordered
// like integers, NaN last, and the padding may be zero.
extern "C" __global__ void max_pool(const uint4 *input, uint4 *output, int height, int width) {
    int column = blockIdx.x * blockDim.y + threadIdx.y, row = blockIdx.y, columns = (width + 1) / 2;
    if (column >= columns) return;
    const uint4 *image = input + (size_t)blockIdx.z * height * width * blockDim.x + threadIdx.x;
    uint4 maximum = make_uint4(0, 0, 0, 0);
    #pragma unroll
    for (int y = 2 * row - 1; y <= 2 * row + 1; ++y) {
        #pragma unroll
        for (int x = 2 * column - 1; x <= 2 * column + 1; ++x) {
            if (y < 0 || y >= height || x < 0 || x >= width) continue;
            uint4 value = image[(size_t)(y * width + x) * blockDim.x];
            maximum.x = __vmaxs2(maximum.x, value.x);
            maximum.y = __vmaxs2(maximum.y, value.y);
            maximum.z = __vmaxs2(maximum.z, value.z);
            maximum.w = __vmaxs2(maximum.w, value.w);
        }
    }
    output[(((size_t)blockIdx.z * gridDim.y + row) * columns + column) * blockDim.x + threadIdx.x] = maximum;
}
"""


class Kernels:
    """The kernels for the current GPU and one 16-bit type of activations; they run in PyTorch's current stream.

    Raises:
        RuntimeError: The compiler or the driver failed.
        ImportError: NVIDIA's Python bindings are not installed.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        from cuda.bindings import driver  # on Linux, PyTorch depends on it

        self._dtype, self._driver = dtype, driver
        torch.cuda.synchronize()  # creates this thread's CUDA context, which the driver calls below need
        major, minor = torch.cuda.get_device_capability()
        module = _check(driver.cuModuleLoadData(compile_kernels(dtype, f"sm_{major}{minor}")))
        self._normalize, self._max_pool = (
            _check(driver.cuModuleGetFunction(module, name)) for name in (b"normalize", b"max_pool")
        )

    def normalize(self, pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Compute ``pixels * scale + shift``: uint8 (N, H, W, 3), contiguous; scale and shift are three floats each.

        Returns:
            (N, 4, H, W) in channels-last memory; the fourth channel is zero.
        """
        n, height, width, _ = pixels.shape
        planes = _channels_last((n, STEM_CHANNELS, height, width), self._dtype, pixels.device)
        count = n * height * width
        grid = (-(-count // NORMALIZE_THREADS), 1, 1)
        self._launch(self._normalize, grid, (NORMALIZE_THREADS, 1, 1), (pixels, scale, shift, planes, count))
        return planes

    def max_pool(self, x: Tensor) -> Tensor:
        """Take the maximum of windows of 3 x 3, stride 2, padding 1.

        ``x`` is (N, C, H, W) in channels-last memory, without negative values; C is a multiple of 8.
        """
        n, channels, height, width = x.shape
        rows, columns, vectors = (height + 1) // 2, (width + 1) // 2, channels // VECTOR
        pooled = _channels_last((n, channels, rows, columns), self._dtype, x.device)
        block_columns = min(columns, MAX_POOL_THREADS // vectors)
        grid = (-(-columns // block_columns), rows, n)
        self._launch(self._max_pool, grid, (vectors, block_columns, 1), (x, pooled, height, width))
        return pooled

    def _launch(self, kernel: Any, grid: Dim3, block: Dim3, arguments: tuple[Any, ...]) -> None:
        values = tuple(value.data_ptr() if isinstance(value, Tensor) else value for value in arguments)
        types = tuple(ctypes.c_void_p if isinstance(value, Tensor) else ctypes.c_int for value in arguments)
        stream = torch.cuda.current_stream().cuda_stream
        _check(self._driver.cuLaunchKernel(kernel, *grid, *block, 0, stream, (values, types), 0))


def compile_kernels(dtype: torch.dtype, architecture: str) -> bytes:
    """Compile the kernels to a CUBIN for an architecture such as ``sm_90``; needs no GPU.

    Raises:
        RuntimeError: The compiler failed; the message holds its log.
        ImportError: NVIDIA's Python bindings are not installed.
    """
    from cuda.bindings import nvrtc

    options = [f"--gpu-architecture={architecture}".encode(), f'-DCONVERSION="{PTX_CONVERSION[dtype]}"'.encode()]
    program = _check(nvrtc.nvrtcCreateProgram(SOURCE.encode(), b"kernels.cu", 0, [], []))
    try:
        _check(nvrtc.nvrtcCompileProgram(program, len(options), options))
    except RuntimeError as error:
        compiler_log = b" " * _check(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, compiler_log)
        raise RuntimeError(f"{error}: {compiler_log.decode(errors='replace')}") from error
    cubin: bytes = b" " * _check(nvrtc.nvrtcGetCUBINSize(program))
    _check(nvrtc.nvrtcGetCUBIN(program, cubin))
    _check(nvrtc.nvrtcDestroyProgram(program))
    return cubin


def _channels_last(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)


def _check(result: tuple[Any, ...]) -> Any:
    """Return the value of a call of NVIDIA's bindings, which begins with a status; raise RuntimeError for an error."""
    status, *values = result
    if status.value:
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if values else None
