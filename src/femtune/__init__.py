"""femtune: learn to reason from questions and correct answers alone, by filtered EM.

    from femtune import train, pps
    result = train("judge.jsonl", model="Qwen/Qwen3-1.7B", scheme=pps(), reward="ordinal(1,5)")

The files, in the order of the data; each imports only from those above it:

    types       the nouns: problem, request, completion, score, draw, example
    errors      the error tree
    prompts     plain and hinted prompts, their tokens, parsing of completions
    reading     files and rows                    problems   load, check, split
    user_rewards  a user's own function           rewards    the built-in ones, and grading
    engines/    who writes completions: transformers, fake
    weigh       what a draw counts for            schemes    rejection, star, pps
    estep       the driver                        run        the run directory
    examples    draws as the M-step reads them
    training    the M-step's settings             mstep      examples -> weights
    worlds/     rubric, sums, and the seedling
    evaluate    what is measured                  loop       E, M, evaluate, K times
    config      settings                          commands   each verb as a function
    progress     how a run is shown               compare, watch, doctor, demo, cli
"""

from femtune.commands import Result, train
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
from femtune.problems import load_problems
from femtune.rewards import choice, exact, number, ordinal
from femtune.schemes import pps, rejection, star
from femtune.types import Draw, Example, Problem, Scheme, Stage

__all__ = [
    "ConfigError",
    "DataError",
    "Draw",
    "EngineError",
    "Example",
    "FemtuneError",
    "ModelError",
    "NothingKept",
    "Problem",
    "Result",
    "RewardError",
    "RunError",
    "Scheme",
    "Stage",
    "choice",
    "exact",
    "load_problems",
    "number",
    "ordinal",
    "pps",
    "rejection",
    "star",
    "train",
]
