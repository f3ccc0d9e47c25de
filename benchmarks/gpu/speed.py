"""Part 2: the forward pass, compared with eager torchvision and with the machine's limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import inside, roofline
from benchmarks.gpu.common import (
    Journal,
    Scale,
    gpu_engine,
    images,
    interleaved,
    items,
    milliseconds,
    normalized,
    random_model,
)
from serve_app.inference.runtimes.cuda.graphs import CudaGraphRunner

BENCHMARK_S = 60.0  # after that, cuDNN no longer times its kernels for the remaining batch sizes
EAGER = {"eager fp32": (torch.float32, False), "eager fp32, TF32": (torch.float32, True)}
HALF = "eager fp16, channels last"


def run(journal: Journal, scale: Scale) -> None:
    """Run all sections."""
    torch.backends.cudnn.benchmark = True
    state: dict[str, CudaGraphRunner] = {}
    rates: dict[str, float] = {}
    journal.section("speed/machine", lambda: _rates(scale, rates))
    journal.section("speed/warm-up", lambda: _engines(scale, state))
    journal.section("speed/forward", lambda: _forward(scale, state, journal))
    journal.section("speed/limits", lambda: _limits(scale, state, rates))
    if "fp16" in state:
        inside.run(journal, scale, state["fp16"])


def _rates(scale: Scale, rates: dict[str, float]) -> dict[str, Any]:
    """Measure the machine: matrix products of random numbers, copies on the device, to it and from it."""
    n = scale.pick(8192, 64)
    found: dict[str, Any] = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        a, b = (torch.randn(n, n, device=scale.device).to(dtype) for _ in range(2))
        ms = interleaved({name: lambda a=a, b=b: a @ b}, scale.rounds, scale.device)[name]["median"]
        rates[name] = 2 * n**3 / ms * 1000
        found[f"matrix_{name}_tflops"] = round(rates[name] / 1e12, 1)
    size = scale.pick(2**32, 2**20)
    source, target = (torch.empty(size, dtype=torch.uint8, device=scale.device) for _ in range(2))
    ms = interleaved({"copy": lambda: target.copy_(source)}, scale.rounds, scale.device)["copy"]["median"]
    rates["bytes_s"] = 2 * size / ms * 1000
    found["device_copy_read_and_written_gb_s"] = round(rates["bytes_s"] / 1e9, 1)
    part = scale.pick(2**28, 2**20)
    host = torch.empty(part, dtype=torch.uint8, pin_memory=not scale.smoke)
    for name, copy in (
        ("host_to_device_gb_s", lambda: target[:part].copy_(host, non_blocking=True)),
        ("device_to_host_gb_s", lambda: host.copy_(target[:part], non_blocking=True)),
    ):
        ms = interleaved({name: copy}, scale.rounds, scale.device)[name]["median"]
        found[name] = round(part / ms / 1e6, 2)
    return found


def _engines(scale: Scale, state: dict[str, CudaGraphRunner]) -> dict[str, Any]:
    """Time benchmarking and recording of each batch size, which a deployment does before its first request."""
    found: dict[str, Any] = {}
    for precision in ("fp16", "bf16"):
        started = time.monotonic()
        model, card = random_model(scale)
        engine = gpu_engine(model, card, precision, scale, benchmark=not scale.smoke)
        seconds = {"load, and size 1": round(time.monotonic() - started, 2)}
        for size in scale.sizes:
            begun = time.monotonic()
            engine.benchmark = engine.benchmark and begun - started < BENCHMARK_S / (1 if precision == "fp16" else 2)
            engine.warm_up(size)
            seconds[f"{size}{', benchmarked' if engine.benchmark else ''}"] = round(time.monotonic() - begun, 2)
        state[precision] = engine
        found[precision] = {"seconds_by_size": seconds, "fused": engine.runtime.fused}
    return found


@torch.inference_mode()
def _forward(scale: Scale, state: dict[str, CudaGraphRunner], journal: Journal) -> dict[str, Any]:
    """Time from pixels on the GPU to scores on the GPU; eager gets pixels that are normalized and converted."""
    model, card = random_model(scale)
    eager = model.to(scale.device)
    half = random_model(scale)[0].to(scale.device, torch.float16, memory_format=torch.channels_last)
    found: dict[str, Any] = {}
    for size in sorted(scale.sizes, key=lambda n: (n not in (1, 64, 256), n)):  # the most important sizes first
        if journal.left_s() < 40 and not scale.smoke:
            found["cut"] = "no time was left for the other sizes"
            break
        pixels = images(size, scale.crop_px)
        given = normalized(pixels, card.transform.mean, card.transform.std, scale.device)
        variants: dict[str, Callable[[], object]] = {
            name: lambda given=given, tf32=tf32: _eager(eager, given, tf32) for name, (_, tf32) in EAGER.items()
        }
        halved = given.to(torch.float16, memory_format=torch.channels_last)
        variants[HALF] = lambda halved=halved: half(halved)
        for precision, engine in state.items():
            engine(items(pixels))  # leaves these pixels in the buffers of both slots
            engine(items(pixels))
            with engine.slot() as slot:
                variants[f"ours {precision}"] = slot.graphs[size].run
        times = interleaved(variants, scale.rounds, scale.device)
        found[str(size)] = {
            name: {**ms, "images_s": round(size / ms["median"] * 1000), "ratio": round(base / ms["median"], 2)}
            for base in [times["eager fp32"]["median"]]
            for name, ms in times.items()
        }
    return found


def _eager(model: torch.nn.Module, given: Tensor, tf32: bool) -> object:
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
        return model(given)


@torch.inference_mode()
def _limits(scale: Scale, state: dict[str, CudaGraphRunner], rates: dict[str, float]) -> dict[str, Any]:
    """Compare the forward pass with the machine's measured rates."""
    found: dict[str, Any] = {"image": roofline.summary()}
    for precision, engine in state.items():
        for size in (scale.sizes[0], scale.sizes[len(scale.sizes) // 2], scale.sizes[-1]):
            with engine.slot() as slot:
                ms = min(milliseconds(slot.graphs[size].run, scale.device) for _ in range(scale.rounds))
            least = roofline.limits(size, rates[precision], rates["bytes_s"], scale.crop_px, scale.classes)
            found[f"{precision}, batch {size}"] = {
                "ms": round(ms, 4),
                **{name: round(value, 4) for name, value in least.items()},
                "share_of_matrix_rate": round(least["arithmetic_ms"] / ms, 3),
                "share_of_copy_rate": round(least["memory_ms"] / ms, 3),
                "share_of_layer_by_layer": round(least["layer_by_layer_ms"] / ms, 3),
            }
    return found
