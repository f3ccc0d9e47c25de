"""Run the training loop on several processes, of one machine or a cluster, with Ray Train."""

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
from serve_app.training.loop import TrainingRun, train_loop
from serve_app.training.worker_group import WorkerGroup

MAX_FAILURES = 2  # restarts of all workers from the checkpoint after one was lost


def train_distributed(run: TrainingRun, workers: int) -> None:
    """Train with several workers, each with its part of every batch; the result is the checkpoint.

    Ray is the cluster that RAY_ADDRESS names or the one that runs on this machine; else it is started here. The
    images travel through Ray's object store. Every node must see the checkpoint's folder. Each worker gets a GPU if
    there are enough.

    Raises:
        TrainingError: Workers failed more often than they are restarted.
    """
    ray.init(include_dashboard=False)
    try:
        resources = ray.cluster_resources()
        use_gpu = resources.get("GPU", 0) >= workers
        per_worker = {"CPU": max(1, int(resources["CPU"]) // workers), **({"GPU": 1} if use_gpu else {})}
        with tempfile.TemporaryDirectory() as folder:
            TorchTrainer(
                _train_worker,
                train_loop_config={"run": ray.put(replace(run, checkpoint=run.checkpoint.resolve()))},
                scaling_config=ray_train.ScalingConfig(
                    num_workers=workers, use_gpu=use_gpu, resources_per_worker=per_worker
                ),
                run_config=ray_train.RunConfig(
                    name="train",
                    storage_path=folder,  # for Ray's own state only; our checkpoint has its own path
                    failure_config=ray_train.FailureConfig(max_failures=MAX_FAILURES),
                ),
            ).fit()
    except ray_train.TrainingFailedError as error:
        raise TrainingError(f"{workers} workers: {' '.join(str(error).split())[-500:]}") from error
    finally:
        ray.shutdown()


def _train_worker(config: dict[str, Any]) -> None:
    context = ray_train.get_context()
    run: TrainingRun = ray.get(config["run"])
    device = ray_train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    group = WorkerGroup(context.get_world_rank(), context.get_world_size())
    train_loop(run, device, group, ray_train.report)
