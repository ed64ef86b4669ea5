"""Baselines with a prompt that another library has searched for: DSPy's examples, GEPA's instruction.

    dspy-examples       sets of the base's own right answers, by DSPy's BootstrapFewShotWithRandomSearch:
                        see `dspy_search`
    gepa-instruction    an instruction that the base itself has rewritten, by GEPA: see `gepa_search`

Both search over femtune's own prompt, and see what its answer format and its reward say of an answer.
Each has the budget of an M-step that chooses examples, `selection_requests` and `selection_tokens`, and
no E-step beside it. No answer is forced in the search.

    iteration-001/selection/      the search's answers; a resumed search pays for none of them again
    iteration-001/prompt.json     what was chosen, and what it cost
    iteration-001/answers/, eval/ held-out answers, as for other examples
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace

from femtune._util.extras import check_extra
from femtune.comparison.baseline_draws import Baseline
from femtune.comparison.dspy_search import search_examples
from femtune.comparison.example_baselines import (
    EXAMPLE_BASELINES,
    answer_held_out,
    check_examples,
    greedy,
    run_examples,
)
from femtune.comparison.gepa_search import search_instruction
from femtune.comparison.prompt_search import PromptSearch
from femtune.config import Train
from femtune.errors import ConfigError
from femtune.loop import Steps
from femtune.metric_types import IterationMetrics, MStepMetrics
from femtune.selection.answers import Selection
from femtune.types import Demo, Demos

PACKAGES = {"dspy-examples": "dspy", "gepa-instruction": "gepa"}
PROMPT_BASELINES = (*EXAMPLE_BASELINES, *PACKAGES)  # all that change the prompt by what the base wrote


def check_prompt(name: str, settings: Train) -> None:
    """Refuse a baseline whose library is missing, or that does not go with the settings.

    Raises ConfigError.
    """
    if name in EXAMPLE_BASELINES:
        return check_examples(name)
    check_extra(f"baseline {name}", PACKAGES[name])
    if name == "gepa-instruction" and settings.ray_workers:
        raise ConfigError(
            "baseline gepa-instruction is not supported with ray_workers, whose prompts are fixed: drop "
            "one of them."
        )


def run_prompt(steps: Steps, settings: Baseline) -> IterationMetrics:
    """Make a prompt of what the base wrote, and answer the held-out problems under it."""
    if settings.scheme in EXAMPLE_BASELINES:
        return run_examples(steps, settings)
    return run_prompt_search(steps, settings)


def run_prompt_search(steps: Steps, settings: Baseline) -> IterationMetrics:
    """Let a library search for a prompt, and answer the held-out problems with what it has found."""
    stored = steps.run.iteration(1) / "prompt.json"
    if not stored.exists():
        steps.run.write_json(stored, _search(steps, settings))
    found = json.loads(stored.read_text())
    demos = tuple(Demo(**each) for each in found["examples"])
    sampler = greedy(steps, demos)
    if found["instruction"] is not None:
        sampler = replace(sampler, prompts=replace(sampler.prompts, instruction=found["instruction"]))
    evaluation = answer_held_out(steps, sampler, [(demos, steps.eval_problems)])
    return {"m_step": found["m_step"], "evaluation": evaluation}


def _search(steps: Steps, settings: Baseline) -> dict[str, object]:
    """Return the chosen examples or instruction, and what the search has cost."""
    begun = time.perf_counter()
    limits = Selection(settings.num_examples, settings.selection_requests, settings.selection_tokens)
    search = PromptSearch(steps=steps, limits=limits)
    steps.progress.phase("M-step", 1, limits.requests)
    demos: Demos = ()
    instruction = None
    try:
        if settings.scheme == "dspy-examples":
            demos, num = search_examples(search, limits.num_examples)
        else:
            instruction, num = search_instruction(search, steps.sampler.prompts, settings.seed)
    except Exception as error:
        raise (search.error or error) from None
    if search.error:
        raise search.error
    spent = search.answers.spent
    m_step: MStepMetrics = {
        "num_examples": len(demos),
        "num_candidates": num,
        "num_requests": spent.requests,
        "prompt_tokens": spent.prompt_tokens,
        "generated_tokens": spent.generated_tokens,
        "seconds": round(max(time.perf_counter() - begun, search.answers.seconds), 3),
    }
    return {"examples": [asdict(demo) for demo in demos], "instruction": instruction, "m_step": m_step}
