"""The whole graph: ingress -> preprocess -> classify. One application, or one per variant behind an ingress's own."""

# No `from __future__ import annotations` here: Ray reads the builder's annotation as a class.

from typing import Any

from ray.serve import Application, Deployment

from serve_app.config import AppConfig, FrozenModel
from serve_app.deployments.classifier import Classifier
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.preprocessor import Preprocessor
from serve_app.inference.card import load_card
from serve_app.scheduling import idle_start_options


def build_app(config: AppConfig) -> Application:
    """Build the application that ``import_path: serve_app.app:build_app`` names: all three stages.

    Args:
        config: ``args:`` of the Serve config file.

    Raises:
        WeightsError: No such weights.
    """
    return _stage(Ingress).bind(build_model(config))


def build_model(config: AppConfig) -> Application:
    """Build a variant of the model by itself: stages 2 and 3, reached through an ingress elsewhere.

    Raises:
        WeightsError: No such weights.
    """
    classifier = _stage(Classifier).bind(config.weights, config.engine)
    return _stage(Preprocessor).bind(classifier, load_card(config.weights).transform)


def build_ingress(_none: FrozenModel) -> Application:
    """Build stage 1 by itself: its ``traffic`` says which variants answer."""
    return _stage(Ingress).bind()


def _stage(deployment: Any) -> Deployment:
    """A stage as it is where the file has no ``ray_actor_options``: it reserves no core, and starts low."""
    return deployment.options(ray_actor_options={"num_cpus": 0, **idle_start_options()})
