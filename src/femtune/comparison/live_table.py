"""Progress of several runs at once: a live table in a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from rich.live import Live

from femtune.comparison.compare import Job, State
from femtune.reporting import terminal
from femtune.reporting.terminal import Show, literal, plain_table, sparkline


class Watch:
    """A display of several runs: a live table in a terminal, lines elsewhere."""

    def __init__(self, show: Show) -> None:
        self._live = Live(console=terminal.console(), transient=True, refresh_per_second=4)
        self._terminal = show == "auto" and terminal.console().is_terminal
        self._lines = show == "lines" or (show == "auto" and not terminal.console().is_terminal)
        self._told: set[tuple[str, int, int]] = set()

    def __enter__(self) -> Watch:
        if self._terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._terminal:
            self._live.stop()

    def __call__(self, states: Mapping[Job, State]) -> None:
        if self._terminal:
            cells = [_state_cells(job, state) for job, state in states.items()]
            columns = ["scheme", "seed", "iteration", "now", "accuracy so far", "last"]
            self._live.update(plain_table(columns, cells))
        elif self._lines:
            for job, state in states.items():
                for number, accuracy in enumerate(state.accuracy):
                    if (key := (job.scheme, job.seed, number)) not in self._told:
                        self._told.add(key)
                        when = f" evaluation {number}" if number else " base"
                        when = when if job.iterates else ""
                        said = f"{job.scheme} seed {job.seed}{when}: accuracy {accuracy:.3f}"
                        terminal.console().print(literal(said))


def _state_cells(job: Job, state: State) -> list[str]:
    of = "" if job.num_iterations is None else f"/{job.num_iterations}"
    at = f"{state.iteration}{of}" if job.iterates else ""
    last = f"{state.accuracy[-1]:.3f}" if state.accuracy else ""
    return [job.scheme, str(job.seed), at, state.doing, sparkline(state.accuracy), last]
