"""Check that an engine serves the weights it was given, by the log-probabilities of a few completions.

An M-step leaves a check in the folder of its weights: some examples, their log-probabilities under the
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

from femtune.errors import EngineError, ModelError
from femtune.types import EngineBase, Generates

WEIGHT_CHECK = "weight_check.json"  # in a model's folder
OLD_WEIGHT_CHECK = "weight_probe.json"  # its name in folders of earlier versions

log = logging.getLogger("femtune")

NUM_PAIRS = 4  # examples in a check: enough to tell, and one pass of a model

# Nats a token by which rounding alone may part two implementations, by the engine's dtype. Short
# completions of SmolLM2-135M-Instruct in bfloat16 are .0115 from float32 on average, and .0182 at most.
ROUNDING = {"float32": 0.001, "bfloat16": 0.025, "float16": 0.01}
MOST = 0.04  # nats a token: beyond this, engine and M-step are not one model, whatever was learnt


@dataclass(frozen=True)
class WeightCheck:
    """Completions with their log-probabilities; the four sequences have one item a completion."""

    prompts: Sequence[Sequence[int]]
    completions: Sequence[Sequence[int]]
    logprobs: Sequence[float]  # of the weights that lie beside it
    logprobs_before: Sequence[float]  # of the weights that training started from; of a base, the same

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all completions together."""
        return sum(map(len, self.completions))


def write_check(folder: Path, check: WeightCheck) -> None:
    """Store a check beside its weights."""
    (folder / WEIGHT_CHECK).write_text(json.dumps(asdict(check)) + "\n")


def check_file(folder: Path) -> Path | None:
    """Return the file of the check beside some weights, under its name of today or before, or None."""
    paths = (folder / name for name in (WEIGHT_CHECK, OLD_WEIGHT_CHECK))
    return next((path for path in paths if path.is_file()), None)


def read_check(folder: Path) -> WeightCheck | None:
    """Return the check beside some weights, or None. Raises ModelError for another file."""
    path = check_file(folder)
    if path is None:
        return None
    try:
        stored = json.loads(path.read_text())
        if path.name == OLD_WEIGHT_CHECK:
            stored["logprobs"], stored["logprobs_before"] = stored.pop("nats"), stored.pop("nats_before")
        return WeightCheck(**stored)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{path} holds no weight check that this version reads. Remove the file to use the weights "
            "unchecked, or copy the model's folder again."
        ) from error


def serve(
    engine: EngineBase, weights: Path, rounding: float, base_check: WeightCheck | None = None
) -> None:
    """Load weights and check that they are served, by the check beside them or, of a base, the given.

    A server that can't score is trusted, with a warning, for a base, but not for what was learnt. Raises
    EngineError where weights are not served, and what `load` raises.
    """
    engine.load(weights)
    learnt = read_check(weights)
    check = learnt or base_check
    if check is None or not isinstance(engine, Generates):  # a pool's workers check themselves
        return
    if learnt is None and not engine.capabilities.scores:
        log.warning("the server can't score completions: that it serves %s is not checked.", weights)
        return
    check_served(engine, check, rounding)


def check_served(engine: EngineBase, check: WeightCheck, rounding: float) -> None:
    """Raise EngineError unless the engine gives the check's completions their log-probabilities.

    The sum of deviations may be `rounding` nats a token, or half of what training moved them by, if that
    is more, so that old weights never pass for new ones that differ by more than rounding; and no more
    than MOST nats a token.
    """
    pairs = list(zip(check.prompts, check.completions, strict=True))
    found = engine.logprob(pairs)
    off = _apart(found, check.logprobs)
    moved = _apart(check.logprobs_before, check.logprobs)
    allowed = max(rounding * check.num_tokens, min(MOST * check.num_tokens, moved / 2))
    if off <= allowed:  # a NaN is no pass
        return
    stale = _apart(found, check.logprobs_before) < off
    shown = ", ".join(f"{a:.2f} for {b:.2f}" for a, b in zip(found, check.logprobs, strict=True))
    raise EngineError(
        f"the engine does not serve the weights that it was given: log-probabilities of {len(pairs)} "
        f"completions ({check.num_tokens} tokens) are {shown}, apart by {off:.2f} nats, of which "
        f"{allowed:.2f} may be. "
        + ("It still serves the weights from before. " if stale else "")
        + "Restart it, or use --engine transformers."
    )


def _apart(some: Sequence[float], others: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(some, others, strict=True))
