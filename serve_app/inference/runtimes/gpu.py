"""Whether this machine has an NVIDIA GPU, asked without torch if the answer is no."""

from __future__ import annotations

import ctypes
import sys


def gpu_available() -> bool:
    """Report whether PyTorch is built for NVIDIA GPUs and finds one; imports torch only where the driver finds one."""
    if not driver_finds_gpu():
        return False
    import torch

    return torch.version.cuda is not None and torch.cuda.is_available()


def driver_finds_gpu() -> bool:
    """Ask NVIDIA's driver for the number of GPUs; like torch, it counts those in CUDA_VISIBLE_DEVICES."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):  # no driver is installed
        return False
