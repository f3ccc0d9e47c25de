"""The graph: Ingress -> Preprocessor -> Classifier. One application, or one per variant behind a common ingress.

Beside it stands the Teacher, which fits heads for the ingress.
"""

# No `from __future__ import annotations` here: Ray reads the builder's annotation as a class.

from functools import partial
from typing import Any

from ray.serve import Application, Deployment

from serve_app.config import AppConfig, EngineConfig, WeightsConfig
from serve_app.deployments.classifier import Classifier
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.one_process import OneProcess, start_model
from serve_app.deployments.preprocessor import Preprocessor
from serve_app.deployments.teacher import Teacher
from serve_app.inference.card import load_card
from serve_app.model_card import ImageTransform
from serve_app.scheduling import idle_start_options
from serve_app.settings import FrozenModel


def build_app(config: AppConfig) -> Application:
    """Build all three stages and the Teacher; ``import_path: serve_app.app:build_app`` names this function.

    Args:
        config: ``args:`` of the Serve config file.

    Raises:
        WeightsError: The weights are unknown.
    """
    teacher = _stage(Teacher).bind()
    if config.one_process:
        return _stage(Ingress).bind(None, teacher, partial(start_model, *_model_arguments(config)))
    return _stage(Ingress).bind(_bind_stages(config), teacher)


def build_model(config: AppConfig) -> Application:
    """Build stages 2 and 3 as one variant of the model; another application's ingress sends it images.

    Raises:
        WeightsError: The weights are unknown.
    """
    if config.one_process:
        return _stage(OneProcess).bind(*_model_arguments(config))
    return _bind_stages(config)


def build_ingress(_no_arguments: FrozenModel) -> Application:
    """Build stage 1 and the Teacher only; its setting ``traffic`` names the variants."""
    return _stage(Ingress).bind(None, _stage(Teacher).bind())


def _bind_stages(config: AppConfig) -> Application:
    weights, engine, transform = _model_arguments(config)
    return _stage(Preprocessor).bind(_stage(Classifier).bind(weights, engine), transform)


def _model_arguments(config: AppConfig) -> tuple[WeightsConfig, EngineConfig, ImageTransform]:
    return config.weights, config.engine, load_card(config.weights).transform


def _stage(deployment: Any) -> Deployment:
    """Set the default of ``ray_actor_options``: no reserved core, and a start with idle scheduling."""
    return deployment.options(ray_actor_options={"num_cpus": 0, **idle_start_options()})
