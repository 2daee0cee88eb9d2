"""Ray itself: a cluster joined or begun, and what of it each worker gets.

A cluster of our own listens on this machine alone, keeps its files in a folder that goes with it (`ray_leftovers`), has
no dashboard, and is not told what the workers print. Nothing is put into Ray's runtime environment: on this machine
workers inherit the environment, on others they have that of their machine, keys included.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ojak.engines.ray_leftovers import RayFolder, sweep
from ojak.engines.ray_worker import Share
from ojak.errors import EngineUnavailable, OjakError, UsageError

OBJECT_STORE_BYTES = 128 << 20  # texts on their way; Ray would take a third of the memory
LOCAL_WORKERS = 2  # on one machine without GPUs, where no number is given


@dataclass(frozen=True, slots=True)
class Room:
    """A cluster's machines that compute: CPU cores of each, and GPUs in all."""

    cores: tuple[float, ...]
    gpus: float

    def default_workers(self) -> int:
        """One for each GPU, else one for each machine, and two where there is one machine."""
        if self.gpus >= 1:
            return int(self.gpus)
        return len(self.cores) if len(self.cores) > 1 else LOCAL_WORKERS

    def share(self, workers: int, wants_gpu: bool) -> Share:
        """What each of so many workers gets of its machine."""
        return Share(
            workers=math.ceil(workers / len(self.cores)), whole_device=wants_gpu and self.gpus >= workers
        )

    def claim(self, share: Share) -> dict[str, Any]:
        """The resources to ask Ray for: whole cores, or a part of one where there are more workers than cores."""
        cores = min(self.cores) / share.workers
        whole = float(int(cores)) if cores >= 1 else max(0.01, int(cores * 100) / 100)
        return {"num_cpus": whole, "num_gpus": 1 if share.whole_device else 0}


class Cluster:
    """A joined cluster. Left by `close`: one that was begun here ends, one that was there stays."""

    def __init__(self, address: str | None = None) -> None:
        """address: of a running cluster ("auto": the one of this machine); None begins one here.

        Where this process has joined Ray already, that is used. Raises UsageError where Ray is not installed or does
        not start, EngineUnavailable where no cluster answers.
        """
        self.ray = import_ray()
        self._folder: RayFolder | None = None
        self._joined_here = not self.ray.is_initialized()
        if self._joined_here:
            with _sigterm_kept(), _tamed(alone=address is None):
                self._join(address)

    def room(self) -> Room:
        """What there is now, of all that lives."""
        found = [node.get("Resources", {}) for node in self.ray.nodes() if node.get("Alive")]
        cores = tuple(float(each["CPU"]) for each in found if each.get("CPU", 0) > 0)
        if not cores:
            raise UsageError("Ray has no machine with CPU cores", fix="start nodes with --num-cpus")
        return Room(cores, sum(float(each.get("GPU", 0)) for each in found))

    def close(self) -> None:
        """Leaves Ray if it was joined here, and removes its files if it was begun here. Again: nothing."""
        if self._joined_here and self.ray.is_initialized():
            self.ray.shutdown()
        self._joined_here = False
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def _join(self, address: str | None) -> None:
        quiet: dict[str, Any] = {
            "logging_level": logging.ERROR,
            "log_to_driver": False,  # what workers print is their models' text, too
            "_skip_env_hook": True,  # under `uv run` it would send the working folder to the cluster
        }
        try:
            if address:
                self.ray.init(address=address, **quiet)
            else:
                sweep()
                self._folder = RayFolder()
                self.ray.init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(self._folder.path),
                    **quiet,
                )
        except (OSError, RuntimeError, ValueError, self.ray.exceptions.RayError) as error:
            self.close()
            raise _not_joined(address, error) from error


def import_ray() -> Any:
    """The library. Raises UsageError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "the engine ray needs Ray, which is not installed here",
            why=str(error),
            fix='pip install "ojak[ray]" on every machine, or use --engine native',
        ) from error
    return ray


@contextmanager
def _tamed(*, alone: bool) -> Iterator[None]:
    """What Ray has no setting for: its notes on dead workers do not go to our stdout, where a program reads JSON; and a
    cluster for this machine alone listens on the loopback address only."""
    from ray._private import ray_constants, worker

    wanted: list[tuple[Any, str, Any]] = [(worker, "listen_error_messages", _silent)]
    if alone:
        wanted.append((ray_constants, "ENABLE_RAY_CLUSTER", False))
    before = [(place, name, getattr(place, name)) for place, name, _ in wanted if hasattr(place, name)]
    for place, name, value in wanted:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def _silent(*_arguments: object) -> None:
    """Takes the place of the thread that would print."""


def _not_joined(address: str | None, error: Exception) -> OjakError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if address:
        return EngineUnavailable(
            f"no Ray cluster answers at {address[:200]}",
            why=why,
            fix="start it (`ray start --head`) and check the address; without --ray-address one is begun here",
        )
    return UsageError(
        "Ray did not start on this machine", why=why, fix="use --engine native, or see Ray's logs"
    )


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray sets a handler of its own for SIGTERM; ours stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(TypeError):  # a handler that was not set from Python cannot be put back
            signal.signal(signal.SIGTERM, before)
