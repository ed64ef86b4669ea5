"""Learn to reason from questions and correct answers alone, by filtered expectation maximization.

    from femtune import train

    result = train("judge.jsonl", "Qwen/Qwen3-1.7B", task="judge", scale="1,5")
    result.best  # an ordinary Hugging Face folder

Public is what `__all__` lists, and the command line. Everything else may change in any version.
The rooms below import one way, each from those after it:

    cli, api         commands, and the same as functions
    comparison       schemes beside each other and beside baselines; a ladder of ways to answer
    workflows        the functions behind each command, from settings to files
    tools            check, verify, estimate, refilter, replay: look at data, models and runs
    reporting        terminal, report, browser, model cards, trackers, Hub
    loop             E-step, M-step, evaluation, K times; reads as the paper
    estep, mstep     draw and grade; fine-tune          evaluation   measure, calibrate
    engines          transformers, vLLM, servers        rewards      grade answers
    data, schemes    problems, prompts, answers, tasks; ways to draw and weigh rationales
    runs, types      files of a run; the data types
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from femtune.api import (
        AskSettings,
        CalibrateResult,
        CalibrateSettings,
        CheckResult,
        CompareResult,
        CompareSettings,
        EvaluateResult,
        EvaluateSettings,
        FitResult,
        LadderResult,
        LadderSettings,
        PredictResult,
        PredictSettings,
        SampleResult,
        SampleSettings,
        TrainedModel,
        TrainingSettings,
        TrainResult,
        TrainSettings,
        calibrate,
        check,
        compare,
        evaluate,
        fit,
        ladder,
        predict,
        sample,
        train,
    )
    from femtune.data.problems import load_problems
    from femtune.errors import (
        ConfigError,
        DataError,
        EngineError,
        FemtuneError,
        ModelError,
        NothingKept,
        RewardError,
        RunError,
    )
    from femtune.mstep_schedule import MStepSchedule
    from femtune.rewards.builtin import as_reward, choice, exact, math, number, ordinal, regex
    from femtune.schemes.named import (
        chain,
        every,
        expected,
        hard,
        importance,
        parse_scheme,
        pps,
        reasons,
        rejection,
        restart,
        settle,
        star,
    )
    from femtune.schemes.serialization import scheme_from_data, scheme_to_data
    from femtune.types import Draw, Example, Problem, Scheme, Stage

    __version__: str
else:
    # names are imported as they are used, so that `import femtune` takes no second
    _HOMES = {
        "femtune.api": (
            "calibrate check compare evaluate fit ladder predict sample train "
            "CalibrateResult CheckResult CompareResult EvaluateResult FitResult LadderResult "
            "PredictResult SampleResult TrainResult TrainedModel AskSettings CalibrateSettings "
            "CompareSettings "
            "EvaluateSettings LadderSettings PredictSettings SampleSettings TrainSettings "
            "TrainingSettings"
        ),
        "femtune.data.problems": "load_problems",
        "femtune.errors": (
            "ConfigError DataError EngineError FemtuneError ModelError NothingKept RewardError RunError"
        ),
        "femtune.rewards.builtin": "as_reward choice exact math number ordinal regex",
        "femtune.schemes.named": (
            "chain every expected hard importance parse_scheme pps reasons rejection restart settle star"
        ),
        "femtune.schemes.serialization": "scheme_from_data scheme_to_data",
        "femtune.mstep_schedule": "MStepSchedule",
        "femtune.types": "Draw Example Problem Scheme Stage",
    }

    def __getattr__(name: str):
        """Import a public name, or find the installed version."""
        if name == "__version__":
            from importlib.metadata import version

            return version("femtune")
        for home, names in _HOMES.items():
            if name in names.split():
                from importlib import import_module

                found = globals()[name] = getattr(import_module(home), name)
                return found
        raise AttributeError(f"module 'femtune' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]


__all__ = [
    "AskSettings",
    "CalibrateResult",
    "CalibrateSettings",
    "CheckResult",
    "CompareResult",
    "CompareSettings",
    "ConfigError",
    "DataError",
    "Draw",
    "EngineError",
    "EvaluateResult",
    "EvaluateSettings",
    "Example",
    "FemtuneError",
    "FitResult",
    "LadderResult",
    "LadderSettings",
    "MStepSchedule",
    "ModelError",
    "NothingKept",
    "PredictResult",
    "PredictSettings",
    "Problem",
    "RewardError",
    "RunError",
    "SampleResult",
    "SampleSettings",
    "Scheme",
    "Stage",
    "TrainResult",
    "TrainSettings",
    "TrainedModel",
    "TrainingSettings",
    "as_reward",
    "calibrate",
    "chain",
    "check",
    "choice",
    "compare",
    "evaluate",
    "every",
    "exact",
    "expected",
    "fit",
    "hard",
    "importance",
    "ladder",
    "load_problems",
    "math",
    "number",
    "ordinal",
    "parse_scheme",
    "pps",
    "predict",
    "reasons",
    "regex",
    "rejection",
    "restart",
    "sample",
    "scheme_from_data",
    "scheme_to_data",
    "settle",
    "star",
    "train",
]
