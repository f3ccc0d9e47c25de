"""The whole graph: ingress -> preprocess -> classify."""

# No `from __future__ import annotations` here: Ray reads the builder's annotation as a class.

from ray.serve import Application

from serve_app.cards import load_card
from serve_app.config import AppConfig
from serve_app.deployments.classifier import Classifier
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.preprocessor import Preprocessor


def build_app(config: AppConfig) -> Application:
    """Build the application that ``import_path: serve_app.app:build_app`` names.

    Args:
        config: ``args:`` of the Serve config file.

    Raises:
        WeightsError: No such weights.
    """
    card = load_card(config.weights)
    classifier = Classifier.bind(config.weights, config.engine)
    preprocessor = Preprocessor.bind(classifier, card.transform)
    return Ingress.bind(preprocessor, card)
