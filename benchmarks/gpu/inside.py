"""Part 2: single images, two workers, the stages of a batch, kernels, and alternatives to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.common import (
    Journal,
    Scale,
    gpu_engine,
    images,
    interleaved,
    items,
    milliseconds,
    random_model,
    wait,
)
from serve_app.inference.head import Head
from serve_app.inference.runtimes.cuda.graphs import CudaGraphRunner
from serve_app.inference.runtimes.cuda.head import CudaHead, pool
from serve_app.inference.runtimes.cuda.runtime import FUSION_LEVELS, Convolution, CudaRuntime, convolve
from serve_app.inference.runtimes.folding import fold
from serve_app.inference.torch_model import to_arrays


def run(journal: Journal, scale: Scale, engine: CudaGraphRunner) -> None:
    """Run all sections with an engine that is warm."""
    journal.section("inside/lone-image", lambda: _lone(scale, engine))
    journal.section("inside/workers", lambda: _workers(scale, engine))
    journal.section("inside/stages-of-a-batch", lambda: _parts(scale, engine))
    journal.section("inside/kernels", lambda: _kernels(scale, engine))
    journal.section("inside/choices", lambda: _choices(scale))
    journal.section("inside/memory", lambda: _memory(scale))


def _lone(scale: Scale, engine: CudaGraphRunner) -> dict[str, Any]:
    """Time one image from host to host, with a thread that sleeps while it waits (the default) and one that spins."""
    (pixels,) = images(1, scale.crop_px)
    found = {"asleep": _latency(scale, engine, pixels)}
    if not scale.smoke:
        with engine.slot() as first, engine.slot() as second:
            for slot in (first, second):
                slot.stream._done = torch.cuda.Event(blocking=False)
        found["awake"] = _latency(scale, engine, pixels)
        with engine.slot() as first, engine.slot() as second:
            for slot in (first, second):
                slot.stream._done = torch.cuda.Event(blocking=True)
    return found


def _latency(scale: Scale, engine: CudaGraphRunner, pixels: np.ndarray) -> dict[str, float]:
    (item,) = items(pixels[None])
    times = []
    for _ in range(scale.pick(1000, 5)):
        start = time.perf_counter()
        engine([item])
        times.append((time.perf_counter() - start) * 1000)
    return {f"p{q}_ms": round(float(np.percentile(times, q)), 4) for q in (50, 90, 99)}


def _workers(scale: Scale, engine: CudaGraphRunner) -> dict[str, Any]:
    """Measure images per second from host to host, by batch size, with one thread and with two."""
    pixels = images(scale.sizes[-1], scale.crop_px)
    given = items(pixels)
    found: dict[str, Any] = {}
    for size in scale.pick((1, 16, 64, 128, 256), (1, 2)):
        rates: dict[int, list[float]] = {1: [], 2: []}
        for number in range(scale.pick(3, 1)):
            for threads in (1, 2) if number % 2 else (2, 1):
                rates[threads].append(_rate(engine, given[:size], threads, scale.pick(0.7, 0.05)))
        found[str(size)] = {f"{n} threads": round(float(np.median(values))) for n, values in rates.items()}
    return found


def _rate(engine: CudaGraphRunner, batch: list[Any], threads: int, seconds: float) -> float:
    ends = time.perf_counter() + seconds

    def work(_: int) -> int:
        done = 0
        while time.perf_counter() < ends:
            engine(batch)
            done += len(batch)
        return done

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(threads)))
    return done / (time.perf_counter() - start)


@torch.inference_mode()
def _parts(scale: Scale, engine: CudaGraphRunner) -> dict[str, Any]:
    """Time the stages of a batch: copy to pinned memory, copy to the GPU, compute, build the results."""
    found: dict[str, Any] = {}
    for size in scale.pick((1, 16, 64, 256), (1, 2)):
        given = items(images(size, scale.crop_px))
        with engine.slot() as slot:
            batch = slot.graphs[size]
            staged, pixels = batch._pinned_pixels, batch._pixels
            best = np.array(batch._pinned_best[:21].numpy())
            parts: dict[str, float] = {
                "staged": _wall(lambda s=staged, g=given: np.stack([i.image for i in g], out=s.numpy())),
                "to_gpu": milliseconds(lambda s=staged, p=pixels: p.copy_(s, non_blocking=True), scale.device),
                "computed": milliseconds(batch.run, scale.device),
                "results": _wall(lambda g=given, b=best, head=batch._head.host: head.results(g, b)),
            }
        parts["all"] = _wall(lambda g=given: engine(g))
        found[str(size)] = {f"{name}_ms": round(ms, 4) for name, ms in parts.items()}
    return found


def _wall(run: Callable[[], object]) -> float:
    times = []
    for _ in range(12):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1000)
    return float(np.median(times))


@torch.inference_mode()
def _kernels(scale: Scale, engine: CudaGraphRunner) -> dict[str, Any]:
    """Profile a batch by kernel."""
    from torch.profiler import ProfilerActivity, profile

    kind = ProfilerActivity.CPU if scale.smoke else ProfilerActivity.CUDA
    model, card = random_model(scale)
    head = CudaHead(Head(to_arrays(model), card), scale.device)
    found: dict[str, Any] = {}
    for size in scale.pick((1, 256), (1,)):
        pixels = torch.from_numpy(images(size, scale.crop_px)).to(scale.device)
        with torch.backends.cudnn.flags(enabled=True, benchmark=not scale.smoke, allow_tf32=False):
            head.best(pool(engine.runtime.forward(pixels)), head.host.classes)
            wait(scale.device)
            with profile(activities=[kind]) as seen:
                for _ in range(3):
                    head.best(pool(engine.runtime.forward(pixels)), head.host.classes)
                wait(scale.device)
        spent = [(e.self_device_time_total or e.self_cpu_time_total, e.count, e.key) for e in seen.key_averages()]
        found[str(size)] = [
            {"us": round(us / 3, 1), "times": count // 3, "kernel": key[:90]}
            for us, count, key in sorted(spent, reverse=True)[:14]
        ]
    return found


@torch.inference_mode()
def _choices(scale: Scale) -> dict[str, Any]:
    """Time alternatives: levels of fusion, and the number of channels of the first layer."""
    model, card = random_model(scale)
    fold(model)
    size = scale.pick(64, 2)
    pixels = torch.from_numpy(images(size, scale.crop_px)).to(scale.device)
    dtype = scale.pick(torch.float16, torch.float32)
    found: dict[str, Any] = {}
    for fused in FUSION_LEVELS[scale.pick(0, -1) :]:
        runtime = CudaRuntime(model, card.transform, dtype, scale.device, fused)
        name = f"runtime, fused {'+'.join(fused) or 'nothing'}"
        found[name] = _tried(lambda runtime=runtime: runtime.forward(pixels), scale)
    for channels in (3, 4, 8):
        shape = (size, channels, scale.crop_px, scale.crop_px)
        x = torch.randn(shape, device=scale.device).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(64, channels, 7, 7, device=scale.device).to(dtype, memory_format=torch.channels_last)
        conv = Convolution(weight, torch.zeros(64, device=scale.device, dtype=dtype), (2, 2), (3, 3))
        for fused in scale.pick((False, True), (False,)):
            name = f"first layer, {channels} channels, {'fused' if fused else 'not fused'}"
            found[name] = _tried(lambda conv=conv, x=x, fused=fused: convolve(conv, x, fused=fused), scale)
    return {"batch": size, "ms": found}


def _tried(work: Callable[[], object], scale: Scale) -> dict[str, float] | str:
    try:
        return interleaved({"": work}, scale.rounds, scale.device)[""]
    except RuntimeError as error:  # cuDNN has no kernel for this number of channels
        return str(error)[:200]


def _memory(scale: Scale) -> dict[str, Any]:
    """Measure the GPU memory of the weights and of each slot, by the largest batch."""
    if scale.smoke:
        return {}
    found = {}
    for largest in (16, 64, 256):
        model, card = random_model(scale)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        engine = gpu_engine(model, card, "fp16", scale, benchmark=False)
        weights = torch.cuda.memory_reserved() - before
        engine.warm_up(largest)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        grown = torch.cuda.memory_reserved() - before - weights
        found[str(largest)] = {
            "weights_and_size_1_mib": weights // 2**20,
            "each_slot_mib": grown // 2**20 // engine.runtime.workers,
        }
        del engine
    return found
