"""cuda/graphs.py: a CPU stands in for the GPU, except in the tests at the end, which need one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from serve_app.config import EngineConfig, WeightsConfig
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.head import Head
from serve_app.inference.runtimes.cuda.graphs import CudaGraphRunner, graph_batch_sizes
from serve_app.inference.runtimes.gpu import gpu_available
from serve_app.inference.weights import load_weights
from serve_app.messages import ClassifyRequest, ClassifyResult, Explain
from tests.support.cuda_on_cpu import CpuStream, cuda_runtime_on_cpu

needs_gpu = pytest.mark.skipif(not gpu_available(), reason="there is no NVIDIA GPU on this machine")


@pytest.fixture(scope="module")
def runner(weights: WeightsConfig) -> CudaGraphRunner:
    """A graph runner on the CPU with graphs for 1, 2, 4 and 6 images."""
    arrays, card = load_weights(weights)
    runner = CudaGraphRunner(cuda_runtime_on_cpu(weights), Head(arrays, card), card.transform.crop_px, CpuStream)
    runner.warm_up(6)
    return runner


@pytest.fixture(scope="module")
def reference(weights: WeightsConfig) -> ResNetEngine:
    return ResNetEngine(*load_weights(weights), EngineConfig(runtime="torch"))


def items(n: int, seed: int = 0) -> list[ClassifyRequest[np.ndarray]]:
    """Random images with different ``top_k`` and ``explain``."""
    random = np.random.default_rng(seed)
    explain: list[Explain] = [None, "top", 3, None, 0]
    return [
        ClassifyRequest(random.integers(0, 256, (96, 96, 3), np.uint8), int(random.integers(1, 8)), explain[i % 5])
        for i in range(n)
    ]


def assert_same(actual: Sequence[ClassifyResult], expected: Sequence[ClassifyResult]) -> None:
    """Compare classes, scores, entropy, and which images have a map and what it holds."""
    assert len(actual) == len(expected)
    for result, correct in zip(actual, expected, strict=True):
        assert result.class_ids[0] == correct.class_ids[0]
        np.testing.assert_allclose(result.scores, correct.scores, rtol=0, atol=1e-4)
        assert result.entropy == pytest.approx(correct.entropy, abs=0.01)
        assert (result.activation_map is None) == (correct.activation_map is None)
        if result.activation_map and correct.activation_map:
            assert result.activation_map.class_id == correct.activation_map.class_id
            assert result.activation_map.logit == pytest.approx(correct.activation_map.logit, abs=0.01)
            np.testing.assert_allclose(result.activation_map.values, correct.activation_map.values, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("max_batch_size", "sizes"),
    [
        (1, [1]),
        (2, [1, 2]),
        (24, [1, 2, 4, 8, 16, 24]),
        (256, [2**n for n in range(9)]),
        (1024, [2**n for n in range(9)]),
    ],
)
def test_recorded_sizes_are_powers_of_two_and_the_maximum(max_batch_size: int, sizes: list[int]) -> None:
    """No size above 256 is recorded."""
    assert graph_batch_sizes(max_batch_size) == sizes


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 12, 13])
def test_any_batch_gets_torchs_results(runner: CudaGraphRunner, reference: ResNetEngine, n: int) -> None:
    """A batch is filled up to the next recorded size, or split at the largest (6)."""
    batch = items(n, seed=n)
    assert runner.sizes == [1, 2, 4, 6]
    assert_same(runner(batch), reference.classify(batch))


def test_an_earlier_batch_has_no_influence(runner: CudaGraphRunner, reference: ResNetEngine) -> None:
    """A small batch that follows a large one in the same buffers gets its own results."""
    runner(items(6, seed=1))
    for seed in range(4):
        batch = items(5, seed=seed)
        assert_same(runner(batch), reference.classify(batch))


def test_results_do_not_change_later(runner: CudaGraphRunner) -> None:
    """No result is a view of a buffer that the next batch overwrites."""
    results = [result for _ in range(2) for result in runner(items(5))]
    before = [result.activation_map.values.copy() for result in results if result.activation_map]
    assert before
    for seed in range(4):
        runner(items(5, seed=seed + 9))
    after = [result.activation_map.values for result in results if result.activation_map]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_threads_do_not_mix_their_batches(runner: CudaGraphRunner, reference: ResNetEngine) -> None:
    """More threads than slots run batches of all sizes while another thread warms up."""
    batches = [items(1 + seed % 7, seed=seed) for seed in range(24)]
    expected = [reference.classify(batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        warm_up = threads.submit(runner.warm_up, 6)
        results = list(threads.map(runner, batches))
        warm_up.result()
    for actual, correct in zip(results, expected, strict=True):
        assert_same(actual, correct)


@pytest.mark.parametrize("class_id", [-1, 6, 1000])
def test_an_unknown_class_costs_one_batch(runner: CudaGraphRunner, class_id: int) -> None:
    """The index is refused before it reaches the GPU, where it would end the process's use of CUDA."""
    with pytest.raises(IndexError, match="is not one of 6"):
        runner([ClassifyRequest(items(1)[0].image, 1, class_id)])
    assert len(runner(items(3))) == 3


@needs_gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.01), ("bf16", 0.08)])
def test_the_gpu_gives_the_cpus_results(
    weights: WeightsConfig, reference: ResNetEngine, precision: str, tolerance: float
) -> None:
    """Batches of all sizes, with maps, from two threads at the same time."""
    config = EngineConfig.model_validate({"runtime": "cuda", "precision": precision})
    engine = ResNetEngine(*load_weights(weights), config)
    engine.warm_up(16)
    assert (engine.runtime, engine.workers) == ("cuda", 2)
    batches = [items(1 + seed % 20, seed=seed) for seed in range(60)]
    with ThreadPoolExecutor(engine.workers) as threads:
        results = list(threads.map(engine.classify, batches))
    for batch, actual in zip(batches, results, strict=True):
        for result, correct in zip(actual, reference.classify(batch), strict=True):
            scores = dict(zip(correct.class_ids, correct.scores, strict=True))
            pairs = zip(result.class_ids, result.scores, strict=True)
            assert max((abs(score - scores[c]) for c, score in pairs if c in scores), default=0.0) < tolerance
            if result.activation_map:
                activation_map = result.activation_map
                assert abs(activation_map.values.mean() + activation_map.bias - activation_map.logit) < 1e-3


@needs_gpu
def test_nothing_is_allocated_under_load(weights: WeightsConfig) -> None:
    """After the warm-up, batches of all sizes use the memory that is already reserved."""
    engine = ResNetEngine(*load_weights(weights), EngineConfig(runtime="cuda"))
    engine.warm_up(16)
    engine.classify(items(16))
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for seed in range(50):
        engine.classify(items(1 + seed % 16, seed=seed))
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before
