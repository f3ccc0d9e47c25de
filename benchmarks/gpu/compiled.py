"""Part 3: compare with torch.compile, which takes a minute for each batch size."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.common import Journal, Scale, gpu_engine, images, interleaved, items, normalized, random_model


def run(journal: Journal, scale: Scale) -> None:
    """Measure the largest batch first, because a part that takes too long is killed."""
    for size in (scale.sizes[-1], scale.sizes[0]):
        journal.section(f"compile/batch {size}", lambda size=size: _compiled(scale, size), least_s=scale.pick(20, 0))


@torch.no_grad()
def _compiled(scale: Scale, size: int) -> dict[str, Any]:
    model, card = random_model(scale)
    pixels = images(size, scale.crop_px)
    given = normalized(pixels, card.transform.mean, card.transform.std, scale.device)
    kind = scale.pick(torch.float16, torch.float32)
    given = given.to(kind, memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True
    eager = model.to(scale.device, kind, memory_format=torch.channels_last)
    # A smoke test only traces: compiling C++ would take longer than everything else.
    fast = (
        torch.compile(eager, mode="max-autotune", dynamic=False)
        if not scale.smoke
        else torch.compile(eager, backend="eager", dynamic=False)
    )
    expected = eager(given).float().softmax(1)
    found = fast(given).float().softmax(1)
    for _ in range(scale.pick(3, 0)):  # torch.compile records CUDA graphs here
        fast(given)
    ours_model, card = random_model(scale)
    engine = gpu_engine(ours_model, card, "fp16", scale, benchmark=not scale.smoke)
    engine.record([size])
    engine(items(pixels))
    with engine.slot() as slot:
        variants = {
            "eager fp16, channels last": lambda: eager(given),
            "torch.compile max-autotune fp16": lambda: fast(given),
            "ours fp16": slot.graphs[size].run,
        }
        times = interleaved(variants, scale.rounds, scale.device)
    return {
        "largest_difference_from_eager": float((expected - found).abs().max()),
        "ms": times,
        "images_s": {name: round(size / ms["median"] * 1000) for name, ms in times.items()},
    }
