"""The whole graph: ingress -> preprocess -> classify."""

# No `from __future__ import annotations` here: Ray reads the builder's annotation as a class.

from ray.serve import Application

from serve_app.cards import load_card
from serve_app.config import AppConfig
from serve_app.deployments import Classifier, Ingress, Preprocessor


def build_app(config: AppConfig) -> Application:
    """Build the application that ``import_path: serve_app.app:build_app`` names.

    Args:
        config: ``args:`` of the Serve config file.

    Raises:
        WeightsError: No such weights.
    """
    card = load_card(config.weights)
    preprocessor = Preprocessor.bind(card.transform, config.limits.max_pixels)
    classifier = Classifier.bind(config.weights)
    return Ingress.bind(preprocessor, classifier, card, config.limits)
