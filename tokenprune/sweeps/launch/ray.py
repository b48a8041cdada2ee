"""Tasks of a Ray cluster; Ray finds room for them, and runs those of a lost machine again."""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from tokenprune.core.errors import ConfigError, TokenPruneError
from tokenprune.sweeps.launch.base import LAUNCHERS, Event, Job, Launcher
from tokenprune.sweeps.launch.worker import Worker

log = logging.getLogger(__name__)


@LAUNCHERS.register("ray")
@dataclass(frozen=True, kw_only=True)
class Ray(Launcher):
    """Ray, on this machine or a cluster; needs ``pip install 'tokenprune-mllm[ray]'``.

    Every machine must have the same packages and see the same files. A process keeps its model between tasks.

    Attributes:
        address: of a running cluster: ``auto`` for the one that this machine is part of, ``host:port``, or
            ``ray://host:port``. None starts Ray here and ends it with the sweep.
        num_cpus: of a task, and threads of its process.
        num_gpus: of a task; may be a part of one. Needed for ``model.device: cuda``.
        batches: batches of questions in a task; its answers reach the disk together.
    """

    address: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    batches: int = 1

    def __post_init__(self) -> None:
        if self.batches < 1 or self.num_cpus < 0 or self.num_gpus < 0:
            raise ConfigError("launcher 'ray' needs at least 1 of batches and 0 of num_cpus and num_gpus")

    def check(self) -> None:
        """Refuse a missing package, and a cluster out of reach."""
        if find_spec("ray") is None:
            raise ConfigError("launcher 'ray' needs the package ray; pip install 'tokenprune-mllm[ray]'")
        if self.address:
            _check_address(self.address)
            with self._cluster():
                pass

    @contextmanager
    def _cluster(self) -> Iterator[None]:
        """Be connected to the cluster; one that was there before stays."""
        import ray

        if ray.is_initialized():
            yield
            return
        try:
            ray.init(address=self.address or "local", log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # of Ray, gRPC or sockets
            said = str(error).strip().partition("\n")[0]
            raise ConfigError(f"launcher 'ray' cannot reach {self.address or 'a Ray of its own'}: {said}") from None
        try:
            yield
        finally:
            ray.shutdown()

    def run(self, jobs: Sequence[Job]) -> Iterator[Event]:
        """Run jobs as tasks of Ray; a task that Ray gave up is left to the next start of the sweep."""
        import ray

        with self._cluster():
            task = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus)(_work)
            waiting = [task.remote(part) for job in jobs for part in job.split(self.batches)]
            while waiting:
                done, waiting = ray.wait(waiting)
                for each in done:
                    try:
                        events = ray.get(each)
                    except ray.exceptions.RayTaskError as error:
                        raise _error_of(error.cause) from None
                    except ray.exceptions.RayError as error:
                        log.error("Ray gave up a task: %s", str(error).strip().partition("\n")[0])
                    else:
                        yield from events


def _check_address(address: str) -> None:
    """Refuse an address where nothing listens, which Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    if not (host and colon and port.isdecimal()):
        raise ConfigError(f"launcher.address must be auto, host:port or ray://host:port, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"launcher 'ray' cannot reach {address}: {error}") from None


def _error_of(error: Exception) -> Exception:
    """The error of a task, to raise here; a user's mistake stays one sentence."""
    return error if isinstance(error, TokenPruneError) else RuntimeError(f"a task of Ray failed: {error!r}")


@functools.cache
def _worker() -> Worker:
    """The worker of this process, which Ray uses for many tasks."""
    return Worker()


def _work(job: Job) -> list[Event]:
    return list(_worker().run(job))
