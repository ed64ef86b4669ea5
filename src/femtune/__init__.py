"""femtune: learn to reason from questions and correct answers alone, by filtered EM.

    from femtune import train, pps
    result = train("judge.jsonl", model="Qwen/Qwen3-1.7B", scheme=pps(), task="judge", scale="1,5")

The files, in the order of the data; each imports only from those above it:

    types       the nouns: problem, request, completion, score, draw, example
    errors      the error tree                    words      what messages share
    formats     JSON, YAML and Parquet as others wrote them   markdown   text that can't break it
    keys        none in settings or messages      trust      what of a model's folder is read
    files       whole or not there                stopping   Ctrl-C once, and twice
    headers     of safetensors                    manifest   checksums of a run's files
    prompts     plain and hinted prompts, their tokens, parsing of completions
    reading     files and rows                    problems   load, check, split
    answers     text, numbers, scales             expressions   when two of mathematics are the same
    user_rewards  a user's own function           rewards    the built-in ones, and grading
    tasks/      judge, summarize, choice, math: from published rows to problems
    served      whether an engine serves the weights it was given
    engines/    who writes completions: transformers, vllm, openai, fake
    weigh, posterior, answer_rules   what a draw counts for
    schemes     rejection, star, pps, and what is added
    provenance  versions, hardware, git state     run        the run directory
    journal     draws of a chunk that is open
    chunks      which request comes next          estep, overlap   the driver
    answer_probs, answer_scoring   how likely answers are after a rationale
    tries       what rules are given: draws, remembered ones, log-probabilities
    examples    draws as the M-step reads them
    training    the M-step's settings             trainer, mstep   examples -> weights
    retention   which models are kept
    processes   of an M-step                      launch     what starts them
    worlds/     rubric, tldr, sums, quiz, and the seedling
    intervals   the bootstrap                     metrics    measures of judges
    calibration what a share of votes is worth
    evaluate    what is measured                  bias       what was kept, by group, and balance
    luck        what guesses would keep           advice     warnings, and what to do
    bound       how likely right answers are, and what hints give away
    loop        E, M, evaluate, K times           pool       E-steps on many workers
    trackers    one experiment a run
    config      settings                          prepare, builder   what they are made into
    cards       of models and rationales
    costs/      what a run will take
    predictions answers to new items, by vote     commands   each verb as a function
    push        to the Hub
    stored      a run, read back                  refilter   what another filter keeps
    checkup     what is damaged                   replay     a stored draw, drawn again
    probes      what a judge is biased by
    latro, policy_gradient, rl   reinforcement learning, through TRL
    regression, baselines   what schemes are held against
    progress    how a run is shown                report/    what a run learnt, on one page
    view/       a local page over stored draws    compare, watch, check, check_model, demo
    verbs, looking, cli
"""

from femtune.api import Result, train
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
from femtune.predictions import predict
from femtune.rewards.builtin import choice, exact, math, number, ordinal, regex
from femtune.schemes.contrib.answers import expected, reasons
from femtune.schemes.contrib.memory import every, gain, memo
from femtune.schemes.contrib.reweighting import doubt, hard, resample
from femtune.schemes.named import (
    base,
    chain,
    importance,
    mixture,
    parse_scheme,
    pps,
    rejection,
    restart,
    settle,
    star,
    trice,
    wake,
)
from femtune.schemes.serialization import scheme_from_data, scheme_to_data
from femtune.types import Draw, Example, Problem, Scheme, Stage

__all__ = [
    "ConfigError",
    "DataError",
    "Draw",
    "EngineError",
    "Example",
    "FemtuneError",
    "MStepSchedule",
    "ModelError",
    "NothingKept",
    "Problem",
    "Result",
    "RewardError",
    "RunError",
    "Scheme",
    "Stage",
    "base",
    "chain",
    "choice",
    "doubt",
    "every",
    "exact",
    "expected",
    "gain",
    "hard",
    "importance",
    "load_problems",
    "math",
    "memo",
    "mixture",
    "number",
    "ordinal",
    "parse_scheme",
    "pps",
    "predict",
    "reasons",
    "regex",
    "rejection",
    "resample",
    "restart",
    "scheme_from_data",
    "scheme_to_data",
    "settle",
    "star",
    "train",
    "trice",
    "wake",
]
