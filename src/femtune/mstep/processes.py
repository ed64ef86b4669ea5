"""The M-step of weights, in this process or in those that a launcher starts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


def m_step_function(launch: str | None) -> Callable[..., Any]:
    """Return the M-step of this process, or of the processes that a launcher's command starts."""
    # torch is slow to import, and not needed to refuse bad input
    if launch:
        from femtune.mstep.launch import launch_m_step

        return partial(launch_m_step, launch)
    from femtune.mstep.fit import m_step

    return m_step
