"""The graph: Ingress -> Preprocessor -> Classifier. One application, or one per variant behind a common ingress.

Beside it stands the Teacher, which fits heads for the ingress.
"""

# No `from __future__ import annotations` here: Ray reads the builder's annotation as a class.

from typing import Any

from ray.serve import Application, Deployment
from ray.serve.config import RequestRouterConfig

from serve_app.config import AppConfig
from serve_app.deployments.classifier import Classifier
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.one_process import OneProcess
from serve_app.deployments.preprocessor import Preprocessor
from serve_app.deployments.ray_internals import sticky_routing
from serve_app.deployments.teacher import Teacher
from serve_app.inference.card import load_card
from serve_app.scheduling import idle_start_options
from serve_app.settings import FrozenModel


def build_app(config: AppConfig) -> Application:
    """Build all three stages and the Teacher; ``import_path: serve_app.app:build_app`` names this function.

    Args:
        config: ``args:`` of the Serve config file.

    Raises:
        WeightsError: The weights are unknown.
    """
    return _stage(Ingress).bind(_bind_model(config, sticky_routing()), _stage(Teacher).bind())


def build_model(config: AppConfig) -> Application:
    """Build stages 2 and 3 as one variant of the model; another application's ingress sends it images.

    Raises:
        WeightsError: The weights are unknown.
    """
    return _bind_model(config, None)  # Ray refuses a routing of our own to the first deployment of an application


def build_ingress(_no_arguments: FrozenModel) -> Application:
    """Build stage 1 and the Teacher only; its setting ``traffic`` names the variants."""
    return _stage(Ingress).bind(None, _stage(Teacher).bind())


def _bind_model(config: AppConfig, routing: RequestRouterConfig | None) -> Application:
    transform = load_card(config.weights).transform
    if config.one_process:
        stage = OneProcess.options(request_router_config=routing) if routing else OneProcess
        return _stage(stage).bind(config.weights, config.engine, transform)
    return _stage(Preprocessor).bind(_stage(Classifier).bind(config.weights, config.engine), transform)


def _stage(deployment: Any) -> Deployment:
    """Set the default of ``ray_actor_options``: no reserved core, and a start with idle scheduling."""
    return deployment.options(ray_actor_options={"num_cpus": 0, **idle_start_options()})
