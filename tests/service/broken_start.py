"""A new version of the application whose model stage raises as soon as it starts."""

# No `from __future__ import annotations` here: Ray reads the builder's annotation as a class.

from ray import serve
from ray.serve import Application

from serve_app.config import AppConfig
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.preprocessor import Preprocessor
from serve_app.deployments.teacher import Teacher
from serve_app.inference.card import load_card

NO_CORES = {"num_cpus": 0}


@serve.deployment(ray_actor_options=NO_CORES)
class Classifier:
    def __init__(self) -> None:
        raise RuntimeError("this version does not start")

    def reconfigure(self, user_config: object) -> None:
        pass


def build_app(config: AppConfig) -> Application:
    card = load_card(config.weights)
    preprocessor = Preprocessor.options(ray_actor_options=NO_CORES).bind(Classifier.bind(), card.transform)
    teacher = Teacher.options(ray_actor_options=NO_CORES).bind()
    return Ingress.options(ray_actor_options=NO_CORES).bind(preprocessor, teacher)
