"""Check that an engine serves the weights it was given, by the log-probabilities of a few completions.

An M-step leaves a probe in the folder of its weights: some examples, their log-probabilities under the
new weights, and under those that it started from. An engine that has loaded the folder must give the
former. Engines were seen to report success and serve something else: the old weights, or new ones with
an old embedding. So every load is followed by this check, and a run stops where it fails.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from femtune.errors import EngineError
from femtune.types import EngineBase, Generates

PROBE = "weight_probe.json"  # in a model's folder

log = logging.getLogger("femtune")

NUM_PAIRS = 4  # examples in a probe: enough to tell, and one pass of a model

# Nats a token by which rounding alone may part two implementations, by the engine's dtype. Short
# completions of SmolLM2-135M-Instruct in bfloat16 are .0115 from float32 on average, and .0182 at most.
ROUNDING = {"float32": 0.001, "bfloat16": 0.025, "float16": 0.01}
MOST = 0.04  # nats a token: beyond this, engine and M-step are not one model, whatever was learnt


@dataclass(frozen=True)
class Probe:
    """Completions with their log-probabilities; the four sequences have one item a completion."""

    prompts: Sequence[Sequence[int]]
    completions: Sequence[Sequence[int]]
    nats: Sequence[float]  # of the weights that lie beside it
    nats_before: Sequence[float]  # of the weights that training started from; of a base, the same

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all completions together."""
        return sum(map(len, self.completions))


def write_probe(folder: Path, probe: Probe) -> None:
    """Store a probe beside its weights."""
    (folder / PROBE).write_text(json.dumps(asdict(probe)) + "\n")


def read_probe(folder: Path) -> Probe | None:
    """Return the probe beside some weights, or None."""
    path = folder / PROBE
    return Probe(**json.loads(path.read_text())) if path.exists() else None


def serve(engine: EngineBase, weights: Path, rounding: float, base_probe: Probe | None = None) -> None:
    """Load weights and check that they are served, by the probe beside them or, of a base, the given.

    A server that can't score is trusted, with a warning, for a base, but not for what was learnt. Raises
    EngineError where weights are not served, and what `load` raises.
    """
    engine.load(weights)
    learnt = read_probe(weights)
    probe = learnt or base_probe
    if probe is None or not isinstance(engine, Generates):  # a pool's workers check themselves
        return
    if learnt is None and not engine.capabilities.scores:
        log.warning("the server can't score completions: that it serves %s is not checked.", weights)
        return
    check_served(engine, probe, rounding)


def check_served(engine: EngineBase, probe: Probe, rounding: float) -> None:
    """Raise EngineError unless the engine gives the probe's completions their log-probabilities.

    The sum of deviations may be `rounding` nats a token, or half of what training moved them by, if that
    is more, so that old weights never pass for new ones that differ by more than rounding; and no more
    than MOST nats a token.
    """
    pairs = list(zip(probe.prompts, probe.completions, strict=True))
    found = engine.logprob(pairs)
    off = _apart(found, probe.nats)
    moved = _apart(probe.nats_before, probe.nats)
    allowed = max(rounding * probe.num_tokens, min(MOST * probe.num_tokens, moved / 2))
    if off <= allowed:  # a NaN is no pass
        return
    stale = _apart(found, probe.nats_before) < off
    shown = ", ".join(f"{a:.2f} for {b:.2f}" for a, b in zip(found, probe.nats, strict=True))
    raise EngineError(
        f"the engine does not serve the weights that it was given: log-probabilities of {len(pairs)} "
        f"completions ({probe.num_tokens} tokens) are {shown}, apart by {off:.2f} nats of which "
        f"{allowed:.2f} may be. "
        + ("It still serves the weights from before. " if stale else "")
        + "Restart it, or use --engine transformers."
    )


def _apart(some: Sequence[float], others: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(some, others, strict=True))
