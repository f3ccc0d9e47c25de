"""What builds each CPU runtime. A runtime's library is imported when the runtime is built, and may be missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from serve_app.inference.network import Arrays, Network, fold
from serve_app.inference.runtimes.base import Runtime, RuntimeFactory
from serve_app.model_card import ImageTransform


def runtime_factories(arrays: Arrays, transform: ImageTransform) -> dict[str, RuntimeFactory]:
    """Return a factory for each CPU runtime; graphs and packed weights are made once, at the first use.

    On every CPU measured, the first one that runs there is the fastest.
    """

    def build_torch(threads: int) -> Runtime:
        from serve_app.inference.runtimes.folding import fold as fold_model
        from serve_app.inference.runtimes.torch import TorchRuntime
        from serve_app.inference.torch_model import to_model

        return TorchRuntime(fold_model(to_model(arrays)), transform, threads)

    @cache  # any number of threads may call one OnnxRuntime, so the workers share it and its weights
    def onnxruntime(threads: int) -> Runtime:
        from serve_app.inference.runtimes.onnx_graph import to_onnx
        from serve_app.inference.runtimes.onnxruntime import OnnxRuntime

        return OnnxRuntime(to_onnx(network(), transform).SerializeToString(), threads)

    network = cache(lambda: fold(arrays))
    return {
        "amx": amx_factory(network, transform, bfloat16=False),
        "winograd": winograd_factory(network, transform, int16=False),
        "onnxruntime": onnxruntime,
        "torch": build_torch,
    }


def amx_factory(network: Callable[[], Network], transform: ImageTransform, bfloat16: bool) -> RuntimeFactory:
    """Return a factory for the runtime on the CPU's matrix unit, in float32 or bfloat16."""

    def pack() -> RuntimeFactory:
        from serve_app.inference.runtimes.amx.runtime import AmxRuntime, PackedNetwork

        return partial(AmxRuntime, PackedNetwork(network(), transform, bfloat16))

    return _packed_once(pack)


def winograd_factory(network: Callable[[], Network], transform: ImageTransform, int16: bool) -> RuntimeFactory:
    """Return a factory for the runtime on vector units, in float32 or int16."""

    def pack() -> RuntimeFactory:
        from serve_app.inference.runtimes.winograd.runtime import PackedNetwork, WinogradRuntime

        return partial(WinogradRuntime, PackedNetwork(network(), transform, int16))

    return _packed_once(pack)


def _packed_once(pack: Callable[[], RuntimeFactory]) -> RuntimeFactory:
    """Return a factory whose runtimes share weights that the first of them packs."""
    factory = cache(pack)
    return lambda threads: factory()(threads)
