"""Part 4: from encoded images to results in plain processes, without Ray, and which stage limits it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from queue import Empty
from typing import Any

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from benchmarks.gpu.common import MEAN, STD, Journal, Scale, gpu_engine, images, items, random_model, wait
from benchmarks.gpu.decoding import GROUP, MAX_PIXELS, SPAWN, decode_for, decode_into, photos
from serve_app.inference.runtimes.cuda.graphs import CudaGraphRunner
from serve_app.messages import ClassifyRequest
from serve_app.model_card import ImageTransform
from serve_app.preprocessing.transform import preprocess

JOIN_S = 10.0


def run(journal: Journal, scale: Scale) -> None:
    """Run all sections."""
    state: dict[str, Any] = {}
    cores = scale.pick(os.cpu_count() or 1, 1)
    journal.section("pipeline/engine", lambda: _prepare(scale, state, cores))
    journal.section("pipeline/decode", lambda: _decode(scale, state, cores))
    journal.section("pipeline/end-to-end", lambda: _end_to_end(scale, state, cores))
    journal.section("pipeline/nvjpeg", lambda: _nvjpeg(scale, state))
    state.pop("engine", None)
    journal.section("pipeline/two-processes", lambda: _shared_gpu(scale), least_s=45 if not scale.smoke else 0)


def _prepare(scale: Scale, state: dict[str, Any], cores: int) -> dict[str, Any]:
    """Generate photos, and record the batch sizes that are measured."""
    state["photos"] = photos(scale.pick(16, 1), cores)
    side = scale.crop_px
    state["transform"] = ImageTransform(resize_px=side * 8 // 7, crop_px=side, mean=MEAN, std=STD)
    model, card = random_model(scale)
    engine = gpu_engine(model, card, "fp16", scale, benchmark=False)
    engine.record(scale.pick([1, 8, 64, 256], [1, 2]))
    state["engine"] = engine
    given = items(images(scale.sizes[-1], side))
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < scale.pick(2.0, 0.1):
        engine(given)
        done += len(given)
    state["engine_images_s"] = done / (time.perf_counter() - start)
    return {"photos": len(state["photos"]), "engine_one_thread_images_s": round(state["engine_images_s"])}


def _decode(scale: Scale, state: dict[str, Any], cores: int) -> dict[str, Any]:
    """Decode with Pillow: in one process, and in one process per core."""
    found = {}
    for processes in sorted({1, cores}):
        ready, rates = SPAWN.Barrier(processes), SPAWN.Queue()
        seconds = scale.pick(4.0, 0.1)
        workers = _started(decode_for, processes, state["photos"], state["transform"], seconds, ready, rates)
        found[f"{processes} processes"] = round(sum(_gathered(workers, rates)), 1)
        _end(workers)
    state["decode_images_s"] = list(found.values())[-1]
    return {"pillow_images_s": found}


def _end_to_end(scale: Scale, state: dict[str, Any], cores: int) -> dict[str, Any]:
    """Decode in one process per core and classify in this one with two threads; crops are in shared memory."""
    largest, engine, side = scale.sizes[-1], state["engine"], scale.crop_px
    places = largest * 4 // GROUP * GROUP or GROUP
    shared = SharedMemory(create=True, size=places * side * side * 3)
    crops = np.ndarray((places, side, side, 3), np.uint8, shared.buf)
    free, filled, stop, ready = SPAWN.Queue(), SPAWN.Queue(), SPAWN.Event(), SPAWN.Barrier(cores + 1)
    for first in range(0, places, GROUP):
        free.put(list(range(first, first + GROUP)))
    pipes = (free, filled, stop, ready)
    workers = _started(decode_into, cores, state["photos"], state["transform"], shared.name, crops.shape, *pipes)
    try:
        ready.wait(60)
        found = _consume(engine, crops, free, filled, scale.pick(6.0, 0.3), largest)
    finally:
        stop.set()
        for _ in workers:
            free.put([])
        _end(workers)
        del crops
        shared.close()
        shared.unlink()
    slower = "decoding" if state.get("decode_images_s", 0) < state["engine_images_s"] else "the engine"
    return {**found, "decoding_processes": cores, "bound_by": slower}


def _consume(
    engine: CudaGraphRunner, crops: np.ndarray, free: Any, filled: Any, seconds: float, largest: int
) -> dict[str, float]:
    """Classify all decoded crops as soon as one of two threads is free, as the MicroBatcher does."""
    busy, sizes, workers = [], [], threading.Semaphore(2)

    def classify(taken: list[int]) -> None:
        start = time.perf_counter()
        try:
            engine([ClassifyRequest(crops[i], 10) for i in taken])
        finally:
            busy.append(time.perf_counter() - start)
            sizes.append(len(taken))
            for first in range(0, len(taken), GROUP):
                free.put(taken[first : first + GROUP])
            workers.release()

    start = time.perf_counter()
    with ThreadPoolExecutor(2) as threads:
        while time.perf_counter() - start < seconds:
            workers.acquire()
            taken: list[int] = filled.get(timeout=30)
            try:
                while len(taken) + GROUP <= largest:
                    taken += filled.get_nowait()
            except Empty:
                pass
            threads.submit(classify, taken)
    took = time.perf_counter() - start
    return {
        "images_s": round(sum(sizes) / took, 1),
        "mean_batch": round(sum(sizes) / max(1, len(sizes)), 1),
        "engine_busy_share_of_two_workers": round(sum(busy) / took / 2, 3),
    }


def _nvjpeg(scale: Scale, state: dict[str, Any]) -> dict[str, Any]:
    """Decode, resize and crop on the GPU, and compare speed and pixels with Pillow."""
    encoded, transform = state["photos"], state["transform"]
    expected = np.stack([preprocess(each, transform, MAX_PIXELS).pixels for each in encoded])
    found = on_device(encoded, transform, scale.device).cpu().numpy()
    difference = np.abs(found.astype(np.int16) - expected)
    engine: CudaGraphRunner = state["engine"]
    tops = [[answer.class_ids[0] for answer in engine(items(pixels))] for pixels in (found, expected)]
    rates: dict[str, Any] = {}
    for size in scale.pick((1, 16, 64, 256), (1,)):
        batch = [encoded[i % len(encoded)] for i in range(size)]
        rates[str(size)] = {
            "decode_images_s": _rate(lambda b=batch: _decoded(b, scale.device), size, scale),
            "with_resize_images_s": _rate(lambda b=batch: on_device(b, transform, scale.device), size, scale),
        }
    return {
        "by_batch": rates,
        "pillow_on_all_cores_images_s": state.get("decode_images_s"),
        "mean_difference_of_a_pixel": round(float(difference.mean()), 3),
        "largest_difference_of_a_pixel": int(difference.max()),
        "same_top1": float(np.mean([a == b for a, b in zip(*tops, strict=True)])),
    }


def _decoded(encoded: list[bytes], device: torch.device) -> list[torch.Tensor]:
    given = [torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in encoded]
    return list(decode_jpeg(given, mode=ImageReadMode.RGB, device=device))


@torch.inference_mode()
def on_device(encoded: list[bytes], transform: ImageTransform, device: torch.device) -> torch.Tensor:
    """Decode, resize (antialiased) and crop on a device: uint8, (N, side, side, 3). Upright baseline JPEGs only."""
    resized = [
        functional.resize(picture, [transform.resize_px], antialias=True) for picture in _decoded(encoded, device)
    ]
    crops = [functional.center_crop(picture, [transform.crop_px]) for picture in resized]
    return torch.stack(crops).permute(0, 2, 3, 1).contiguous()


def _rate(work: Callable[[], object], size: int, scale: Scale) -> float:
    work()
    wait(scale.device)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < scale.pick(1.0, 0.05):
        work()
        wait(scale.device)
        done += size
    return round(done / (time.perf_counter() - start), 1)


def _shared_gpu(scale: Scale) -> dict[str, Any]:
    """Measure one process, then two on the same GPU, like two replicas with half a GPU each."""
    found: dict[str, Any] = {}
    for processes in scale.pick((1, 2), (1,)):
        ready, rates = SPAWN.Barrier(processes), SPAWN.Queue()
        workers = _started(_classify_for, processes, scale, ready, rates)
        each = _gathered(workers, rates)
        _end(workers)
        found[f"{processes} processes"] = {size: round(sum(rate[size] for rate in each)) for size in each[0]}
    return {"images_s_by_batch": found}


def _classify_for(scale: Scale, ready: Any, rates: Any) -> None:
    model, card = random_model(scale)
    engine = gpu_engine(model, card, "fp16", scale, benchmark=False)
    sizes = scale.pick((8, 64, 256), (2,))
    engine.record(sizes)
    found = {}
    for size in sizes:
        given = items(images(size, scale.crop_px))
        ready.wait(90)
        ends = time.perf_counter() + scale.pick(2.0, 0.1)

        def work(_: int, given: list[ClassifyRequest[np.ndarray]] = given, ends: float = ends) -> int:
            done = 0
            while time.perf_counter() < ends:
                engine(given)
                done += len(given)
            return done

        start = time.perf_counter()
        with ThreadPoolExecutor(2) as threads:
            done = sum(threads.map(work, range(2)))
        found[size] = done / (time.perf_counter() - start)
    rates.put(found)


def _started(target: Callable[..., None], processes: int, *arguments: Any) -> list[BaseProcess]:
    workers = [SPAWN.Process(target=target, args=arguments, daemon=True) for _ in range(processes)]
    for worker in workers:
        worker.start()
    return list(workers)


def _gathered(workers: list[BaseProcess], results: Any) -> list[Any]:
    """One result of each; a worker that died ends the wait."""
    found: list[Any] = []
    while len(found) < len(workers):
        try:
            found.append(results.get(timeout=1))
        except Empty:
            if died := [worker.exitcode for worker in workers if worker.exitcode]:
                raise RuntimeError(f"worker processes ended with {died}") from None
    return found


def _end(workers: list[BaseProcess]) -> None:
    for worker in workers:
        worker.join(JOIN_S)
        if worker.is_alive():
            worker.kill()
