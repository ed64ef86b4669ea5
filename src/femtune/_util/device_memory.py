"""Memory of a device or of this machine, in bytes."""

from __future__ import annotations

import os
from pathlib import Path


def training_device_memory(device: str | None = None, use_cpu: bool = False) -> float:
    """Return the memory of the training device in bytes: the GPU's if there is one, else RAM."""
    import torch  # slow import; not needed to refuse bad settings

    if use_cpu or not torch.cuda.is_available():
        return machine_memory()
    number = int((device or "").partition(":")[2] or 0)
    return float(torch.cuda.get_device_properties(number).total_memory)


def machine_memory() -> float:
    """Return the memory in bytes of this machine, or the limit of its container."""
    found = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (said := limit.read_text().strip()).isdigit():
        found.append(float(said))
    return min(found)
