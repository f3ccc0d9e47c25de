"""The decoding processes of part 4; this module does not import torch, so that they start fast."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np

from serve_app.model_card import ImageTransform
from serve_app.preprocessing.transform import preprocess

MAX_PIXELS = 50_000_000
GROUP = 8  # crops per message
SPAWN = get_context("spawn")  # a fork of a process that uses a GPU breaks


def photos(count: int, processes: int) -> list[bytes]:
    """Generate photo-like JPEGs, 500 x 375 and about 107 kB each."""
    with ProcessPoolExecutor(processes, mp_context=SPAWN) as pool:
        return list(pool.map(one_photo, range(count)))


def one_photo(seed: int) -> bytes:
    """Generate one of them."""
    from benchmarks.images import MEDIAN_BYTES, photo

    return photo(seed, 500, 375, MEDIAN_BYTES)


def decode_for(encoded: list[bytes], transform: ImageTransform, seconds: float, ready: Barrier, rates: Any) -> None:
    """Decode for so many seconds and put the images per second into a queue."""
    ready.wait()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        preprocess(encoded[done % len(encoded)], transform, MAX_PIXELS)
        done += 1
    rates.put(done / (time.perf_counter() - start))


def decode_into(
    encoded: list[bytes], transform: ImageTransform, memory: str, shape: tuple[int, ...], *pipes: Any
) -> None:
    """Fill free places of shared memory with crops until an event is set.

    Args:
        encoded: Files to decode, one after the other.
        transform: Resize and crop sizes.
        memory: Name of the shared memory.
        shape: Shape of the array of crops in it.
        *pipes: Queues of free and of filled places, an event that stops, a barrier at the start.
    """
    free, filled, stop, ready = pipes
    shared = SharedMemory(memory)
    crops = np.ndarray(shape, np.uint8, shared.buf)
    ready.wait()
    done = 0
    while not stop.is_set():
        places = free.get()
        for place in places:
            crops[place] = preprocess(encoded[done % len(encoded)], transform, MAX_PIXELS).pixels
            done += 1
        filled.put(places)
    del crops
    shared.close()
