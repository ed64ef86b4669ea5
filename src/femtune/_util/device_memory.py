"""Bytes of memory that a device or this machine has."""

from __future__ import annotations

import os
from pathlib import Path


def training_device_memory(device: str | None = None, use_cpu: bool = False) -> float:
    """Return the bytes of the device that trains: a GPU's where there is one, else this machine's."""
    import torch  # slow import; not needed to refuse bad settings

    if use_cpu or not torch.cuda.is_available():
        return _machine_memory()
    number = int((device or "").partition(":")[2] or 0)
    return float(torch.cuda.get_device_properties(number).total_memory)


def _machine_memory() -> float:
    """Bytes of this machine, or of the container that we are in."""
    found = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (said := limit.read_text().strip()).isdigit():
        found.append(float(said))
    return min(found)
