"""The whole graph: ingress -> preprocess -> classify. One application, or one per variant behind an ingress's own."""

# No `from __future__ import annotations` here: Ray reads the builder's annotation as a class.

from ray.serve import Application

from serve_app.cards import load_card
from serve_app.config import AppConfig, IngressConfig
from serve_app.deployments.classifier import Classifier
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.preprocessor import Preprocessor


def build_app(config: AppConfig) -> Application:
    """Build the application that ``import_path: serve_app.app:build_app`` names: all three stages.

    Args:
        config: ``args:`` of the Serve config file.

    Raises:
        WeightsError: No such weights.
    """
    return Ingress.bind(config.limits, build_model(config))


def build_model(config: AppConfig) -> Application:
    """Build a variant of the model by itself: stages 2 and 3, reached through an ingress elsewhere.

    Raises:
        WeightsError: No such weights.
    """
    classifier = Classifier.bind(config.weights, config.engine)
    return Preprocessor.bind(classifier, load_card(config.weights).transform, config.limits.max_pixels)


def build_ingress(config: IngressConfig) -> Application:
    """Build stage 1 by itself: its ``traffic`` says which variants answer."""
    return Ingress.bind(config.limits)
