"""The errors that femtune raises on purpose; everything else is a bug.

    FemtuneError
    ├── DataError      (ValueError)    a problem, an example or a file of them is invalid
    ├── ConfigError    (ValueError)    a setting is unknown, impossible, or conflicts with another
    ├── ModelError     (ValueError)    a model folder, its tokenizer or its template can't be used
    ├── RewardError    (RuntimeError)  a reward function failed, timed out, or gave no number
    ├── EngineError    (RuntimeError)  an engine could not generate or score
    │   └── BudgetReached              a cap on requests, tokens or money ends the command
    ├── RunError       (RuntimeError)  a run directory can't be written, or holds something else
    └── NothingKept    (RuntimeError)  an E-step kept no draw: there is nothing to learn from

Each is also the standard library's class in brackets. A message says what was found, where (file,
row, column), and what to do, in this order. A completion that fails (truncated, unparsable, wrong) is
data, not an error: see `Score.reason` in types.py.
"""


class FemtuneError(Exception):
    """The base of all errors that femtune reports; the CLI prints them without a traceback."""


class DataError(FemtuneError, ValueError):
    """A problem, an example, or a file of them is invalid."""


class ConfigError(FemtuneError, ValueError):
    """A setting is unknown, impossible, or conflicts with another."""


class ModelError(FemtuneError, ValueError):
    """A model folder, its tokenizer or its chat template can't be used."""


class RewardError(FemtuneError, RuntimeError):
    """A reward function failed, timed out, or returned no number."""


class EngineError(FemtuneError, RuntimeError):
    """An engine could not generate or score."""


class BudgetReached(EngineError):
    """A cap on requests, tokens or money is reached; what was paid for is stored."""


class RunError(FemtuneError, RuntimeError):
    """A run directory can't be written, or holds something else."""


class NothingKept(FemtuneError, RuntimeError):
    """An E-step kept no draw: there is nothing to learn from."""
