"""Ray on this machine or a cluster: started, reached, and asked what it has."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from femtune.errors import ConfigError
from femtune.rewards.custom import MODULES


@dataclass(frozen=True)
class WorkerSpec:
    """Number of workers, and the CPUs and GPUs of each."""

    workers: int
    address: str | None = None  # of a Ray cluster; None: one is started here, and ended
    cpus: float = 1.0  # of each worker
    gpus: float | None = None  # None: one if the cluster has any


def start_ray(spec: WorkerSpec) -> Any:
    """Ray, with a cluster. Raises ConfigError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as it warns it will be
    is_own = spec.address in (None, "local")
    if is_own:
        _make_token()
    try:
        import ray
    except ImportError as error:
        raise ConfigError("ray_workers needs Ray: pip install 'femtune[ray]'.") from error
    quiet = {
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": False,
    }
    try:
        if not ray.is_initialized() and is_own:
            with _on_loopback():
                ray.init(address="local", num_cpus=_local_cpus(spec), **quiet)
        elif not ray.is_initialized():
            ray.init(address=spec.address, **quiet)
    except Exception as error:  # ConnectionError, ValueError, or Ray's own
        raise ConfigError(f"no Ray cluster at {spec.address or 'this machine'}: {error}") from error
    gpus = ray.cluster_resources().get("GPU", 0.0)
    if spec.address is None and spec.gpus and spec.gpus * spec.workers > gpus:
        raise ConfigError(
            f"ray_workers {spec.workers} with {spec.gpus:g} GPUs each: there are {gpus:g} here. "
            "Ask for fewer, or name a cluster by ray_address."
        )
    return ray


def _make_token() -> None:
    """Have a cluster that is started here ask for a token, as who reaches one can run code in it.

    It is this process's and its workers' alone, and stands in no file: Ray's own in ~/.ray may be read
    by all users of the machine. Who sets Ray's variables for it has it otherwise.
    """
    if {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if "ray" not in sys.modules:  # which reads it then; later, it takes this mode by itself
        os.environ["RAY_AUTH_MODE"] = "token"
    # and says so
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A cluster that is started meanwhile listens on loopback alone, as Ray's do on macOS."""
    from ray._private import ray_constants

    others_may = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = others_may


def _local_cpus(spec: WorkerSpec) -> int:
    """Return the number of CPUs to declare to Ray: workers share the cores if they are fewer."""
    return max(os.cpu_count() or 1, -int(-spec.cpus * spec.workers // 1))


def send_user_files(ray: Any) -> None:
    """Have functions of the user's own files travel whole: workers can't import them."""
    for name, module in list(sys.modules.items()):
        if name.startswith(MODULES):
            ray.cloudpickle.register_pickle_by_value(module)


def free_resources(ray: Any) -> str:
    free = ray.available_resources()
    return f"{free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs"
