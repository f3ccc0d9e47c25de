"""The training loop on several processes, of one machine or a cluster: Ray Train."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import Any

import ray
import torch
from ray import train as ray_train
from ray.train.torch import TorchTrainer

from serve_app.errors import TrainingError
from serve_app.training.loop import Job, train
from serve_app.training.team import Team

RESTARTS = 2  # of the whole team, when a worker is lost; it goes on from the checkpoint


def train_together(job: Job, workers: int) -> None:
    """Train with so many workers, each with its share of every batch; the result is the checkpoint.

    It joins the cluster that RAY_ADDRESS names or that runs on this machine, else it starts Ray here. The
    images travel through Ray; the checkpoint's folder has to be one that every node sees.

    Args:
        job: What to train.
        workers: How many; a GPU each where there are GPUs.

    Raises:
        TrainingError: They failed more often than they are started again.
    """
    ray.init(include_dashboard=False)
    try:
        resources = ray.cluster_resources()
        use_gpu = resources.get("GPU", 0) >= workers
        cpus = max(1, int(resources["CPU"]) // workers)
        with tempfile.TemporaryDirectory() as folder:
            TorchTrainer(
                _work,
                train_loop_config={"job": ray.put(replace(job, checkpoint=job.checkpoint.resolve()))},
                scaling_config=ray_train.ScalingConfig(
                    num_workers=workers,
                    use_gpu=use_gpu,
                    resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})},
                ),
                run_config=ray_train.RunConfig(
                    name="fit",
                    storage_path=folder,  # of Ray's own notes; ours are in the checkpoint
                    failure_config=ray_train.FailureConfig(max_failures=RESTARTS),
                ),
            ).fit()
    except ray_train.TrainingFailedError as error:
        raise TrainingError(f"{workers} workers: {' '.join(str(error).split())[-500:]}") from error
    finally:
        ray.shutdown()


def _work(config: dict[str, Any]) -> None:
    context = ray_train.get_context()
    job: Job = ray.get(config["job"])
    device = ray_train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    train(job, device, Team(context.get_world_rank(), context.get_world_size()), ray_train.report)
