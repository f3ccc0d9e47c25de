"""Keep the prediction log and the votes within their bounds while the service runs."""

from __future__ import annotations

import datetime
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from serve_app.config import IngressConfig, PredictionLogConfig
from serve_app.observability.feedback_store import delete_older
from serve_app.paths import data_path, python_path
from serve_app.prediction_log_format import RAW
from serve_app.scheduling import idle_python

TICK_S = 60.0
ETL_S = 600.0
"""Age of the oldest raw file at which the ETL runs: until then the Analytics page reads about 120 small files."""
ETL_TIMEOUT_S = 3600
ETL_MEMORY_MB = 512
DAY_S = 86400
log = logging.getLogger("serve_app")


class Upkeep:
    """Runs the ETL every ``ETL_S`` if there is something to do, and deletes what is too old once a day.

    Each ingress replica has one, because a folder may belong to one node or to all of them. Of several replicas with
    one folder the ETL's lock lets one run at a time, and the others then find nothing to do.

    Args:
        config: Returns the current settings.
        run_etl: Runs the ETL once.
        now_s: Returns seconds since 1970.
    """

    def __init__(
        self,
        config: Callable[[], IngressConfig],
        run_etl: Callable[[PredictionLogConfig], None] | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._run_etl, self._now_s = config, run_etl or run_etl_command, now_s
        self._etl_day, self._vote_day, self._last_etl_s = "", "", 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the background thread, unless it runs; it ends with the process."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run_forever, name="upkeep", daemon=True)
            self._thread.start()

    def tick(self) -> None:
        """Do what is due now."""
        config = self._config()
        today = datetime.datetime.fromtimestamp(self._now_s(), datetime.UTC).date().isoformat()
        rows = config.prediction_log
        if rows and "://" not in rows.folder and (today != self._etl_day or self._is_etl_due(rows.folder)):
            self._etl_day, self._last_etl_s = today, self._now_s()
            self._run_etl(rows)
        if (votes := config.feedback) and votes.keep_days is not None and today != self._vote_day:
            self._vote_day = today
            delete_older(Path(data_path(votes.folder)), self._now_s() - votes.keep_days * DAY_S)

    def _is_etl_due(self, folder: str) -> bool:
        """Return whether a raw file is older than ``ETL_S``, and so is the last attempt, which may have failed."""
        oldest_s = self._now_s() - ETL_S
        for path in Path(data_path(folder), RAW).glob("[!.]*.parquet"):
            with suppress(FileNotFoundError):  # another replica's ETL has deleted it
                if path.stat().st_mtime < oldest_s:
                    return self._last_etl_s < oldest_s
        return False

    def _run_forever(self) -> None:
        while True:
            time.sleep(TICK_S)
            try:
                self.tick()
            except Exception:  # such as a network folder that is gone for a while; the thread must survive it
                log.exception("upkeep of the prediction log and the votes: trying again within %.0f s", ETL_S)


def run_etl_command(config: PredictionLogConfig) -> None:
    """Run `serve-app etl` in a process of its own, in SCHED_IDLE: requests keep the cores, and its memory returns."""
    folder = Path(data_path(config.folder))
    if not (folder / RAW).is_dir():  # it could not be created yet
        return
    command = [*idle_python(), "-m", "serve_app", "etl", str(folder), "--keep-days", str(config.keep_days)]
    command += ["--max-bytes", str(config.max_bytes), "--memory-mb", str(ETL_MEMORY_MB)]
    environment = os.environ | {"PYTHONPATH": python_path()}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ETL_TIMEOUT_S
    )
    if done.returncode:
        log.warning("prediction log: %s", done.stderr.strip().rpartition("\n")[2])
