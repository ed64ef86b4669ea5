"""Rewards of the user's own: functions found in a module or a file, called by their signature.

A user's function is called in one of three ways, chosen by the names of its parameters:

    f(prompts, completions, completion_ids, **columns) -> list[float | None]     as TRL calls it
    f(completion, answer, predicted, rationale, prompt, **columns) -> float      one item at a time
    f(problems, completions, parsed) -> list[float | None]                       femtune's own types

A completion in which the format finds no answer is passed to functions that read the answer themselves:
the first form, and the second with `completion` and without `predicted`.

Each may take fewer parameters. `answer` is always y*, the correct answer in the data; `predicted` is
the model's. These names take precedence over columns of the same name. A column that a row lacks is
None. A reward of None abstains. `async def` works in all three forms.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import inspect
import math
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

from femtune._util.text import brief, near
from femtune.errors import ConfigError, RewardError
from femtune.rewards.trl import trl_function
from femtune.types import Completion, Parsed, Problem

MODULES = "femtune_user_"  # prefix of the names of modules that are loaded from users' files

Item = tuple[Problem, Completion, Parsed]
Outcome = float | RewardError | None  # of one item: its reward, the failure, or None if it abstained


@dataclass(frozen=True)
class UserReward:
    """A user's function, called with the parameters that it names. Use `as_reward` to make one.

    Called as a `Reward`, it raises the first RewardError; `outcomes` returns one outcome for each item.
    """

    name: str
    function: Callable[..., Any]
    form: Literal["batch", "item", "own"]
    takes: frozenset[str] | None  # names of parameters; None: any
    needs: tuple[str, ...]  # parameters without a default

    @property
    def reads_completions(self) -> bool:
        """True if the function reads the answer itself: it takes completions, and no parsed answer."""
        named = (self.takes or frozenset()) | {*self.needs}
        return self.form == "batch" or ("completion" in named and "predicted" not in named)

    def __call__(
        self,
        problems: Sequence[Problem],
        completions: Sequence[Completion],
        parsed: Sequence[Parsed],
    ) -> list[float | None]:
        self.check(problems)
        found: list[float | None] = []
        for start in range(0, len(problems), 256):  # in batches as a run calls it: see timeout_s
            part = slice(start, start + 256)
            for outcome in self.outcomes(problems[part], completions[part], parsed[part]):
                if isinstance(outcome, RewardError):
                    raise outcome
                found.append(outcome)
        return found

    def for_trl(
        self, *, answer_column: str = "answer", answer_format: str = "line"
    ) -> Callable[..., list[float | None]]:
        """Return the reward as TRL's trainers call it: see `rewards.trl`."""
        return trl_function(
            self,
            self.name,
            answer_column=answer_column,
            answer_format=answer_format,
            reads_completions=self.reads_completions,
        )

    def check(self, problems: Sequence[Problem]) -> None:
        """Check that femtune or a column fills each required parameter. Raises ConfigError."""
        columns = dict.fromkeys(name for problem in problems for name in problem.columns)
        filled = {**columns, **(_item(*_NOTHING) if self.form == "item" else self._batch([]))}
        missing = [name for name in self.needs if name not in filled]
        if missing:
            raise ConfigError(
                f"reward {self.name} takes `{missing[0]}`, which neither femtune nor a column provides."
                f"{near(missing[0], filled)} The data's further columns: "
                f"{', '.join(columns) or 'none'}. For femtune's names, see `femtune.rewards.custom`."
            )

    def outcomes(
        self,
        problems: Sequence[Problem],
        completions: Sequence[Completion],
        parsed: Sequence[Parsed],
        timeout_s: float = 60.0,
    ) -> list[Outcome]:
        """Return each item's reward, None where it abstains, or its error. `timeout_s` limits one call.

        A call that exceeds it is abandoned, not ended: Python can't end a thread.
        """
        if not problems:
            return []
        items = list(zip(problems, completions, parsed, strict=True))
        results = self._call(items, timeout_s)
        return [
            checked(self.name, problem, completion, value)
            for problem, completion, value in zip(problems, completions, results, strict=True)
        ]

    def _call(self, items: list[Item], timeout_s: float) -> list[Any]:
        """Return the function's result for each item, or the exception that it raised."""
        if self.form == "item":
            calls = [functools.partial(self.function, **self._only(_item(*item))) for item in items]
            if inspect.iscoroutinefunction(self.function):
                return _gather(calls, timeout_s)
            return [_attempt(call, timeout_s) for call in calls]
        given = self._only(self._batch(items), missing=[None] * len(items))
        result = _attempt(functools.partial(self.function, **given), timeout_s)
        if isinstance(result, Exception):
            if len(items) == 1 or isinstance(result, _TooSlow):
                return [result] * len(items)
            return [value for item in items for value in self._call([item], timeout_s)]
        try:
            values = list(result)
        except TypeError:
            values = []
        if len(values) != len(items) or isinstance(result, str):
            got = f"{len(values)} rewards" if values else type(result).__name__
            wrong = TypeError(f"returned {got}, expected a list of {len(items)}")
            return [wrong] * len(items)
        return values

    def _batch(self, items: Sequence[Item]) -> dict[str, Any]:
        """Return the arguments that a batch function may take: femtune's types, or TRL's arguments."""
        problems = [problem for problem, _, _ in items]
        completions = [completion for _, completion, _ in items]
        if self.form == "own":
            parsed = [read for _, _, read in items]
            return {"problems": problems, "completions": completions, "parsed": parsed}
        columns = dict.fromkeys(name for problem in problems for name in problem.columns)
        return {
            **{name: [problem.columns.get(name) for problem in problems] for name in columns},
            "id": [problem.id for problem in problems],
            "answer": [problem.answer for problem in problems],
            "prompts": [problem.prompt for problem in problems],
            "completions": [
                c.text if isinstance(p.prompt, str) else [{"role": "assistant", "content": c.text}]
                for p, c in zip(problems, completions, strict=True)
            ],
            "completion_ids": [list(completion.tokens) for completion in completions],
            # a reward here is pure: it sees no training progress, and writes to no trainer's log
            "trainer_state": SimpleNamespace(global_step=0, max_steps=0, epoch=0.0),
            "log_extra": lambda column, values: None,
            "log_metric": lambda name, value: None,
        }

    def _only(self, given: dict[str, Any], missing: Any = None) -> dict[str, Any]:
        """Return the arguments that the function takes; `missing` fills columns that these rows lack."""
        if self.takes is not None:
            given = {name: value for name, value in given.items() if name in self.takes}
        return {**dict.fromkeys(self.needs, missing), **given}


_NOTHING: Item = (Problem("", "", ""), Completion((), "", "stop", 0.0), Parsed("", ""))


def user_reward(function: Callable[..., Any]) -> UserReward:
    name = getattr(function, "__name__", None) or type(function).__name__
    if not callable(function):
        raise ConfigError(f"reward {function!r} is of type {name}; give a function or a name.")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        message = f"the parameters of reward {name} can't be read: wrap it in a function of your own."
        raise ConfigError(message) from error
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = frozenset(p.name for p in named)
    form: Literal["batch", "item", "own"] = "item"
    if {"problems", "parsed"} <= names:
        form = "own"
    elif names & {"prompts", "completions", "completion_ids"} or (takes_all and not names):
        form = "batch"
    needs = tuple(p.name for p in named if p.default is p.empty)
    return UserReward(name, function, form, None if takes_all else names, needs)


def _item(problem: Problem, completion: Completion, parsed: Parsed) -> dict[str, Any]:
    """Return the arguments that a function of one item may take."""
    return {
        **problem.columns,
        "id": problem.id,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "completion": completion.text,
        "rationale": parsed.rationale,
        "predicted": parsed.answer,
    }


class _TooSlow(Exception):
    """A call that exceeded its time; distinct from a TimeoutError that the function itself raises."""


def _attempt(call: Callable[[], Any], timeout_s: float) -> Any:
    """Return the result of a call in a thread of its own, or the exception that it raised."""
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(_resolved(call()))
        except BaseException as error:  # also SystemExit: a reward must not end the run
            results.append(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    thread = threading.Thread(target=work, daemon=True, name="femtune-reward")
    thread.start()
    thread.join(timeout_s)
    return results[0] if results else _TooSlow(f"took over {timeout_s:g} s")


def _resolved(value: Any) -> Any:
    """Return a value, or the result of an awaitable."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())


def _gather(calls: Sequence[Callable[[], Any]], timeout_s: float) -> list[Any]:
    """Run async calls concurrently, each with its timeout; return their results or exceptions."""

    async def one(call: Callable[[], Any]) -> Any:
        try:
            return await asyncio.wait_for(call(), timeout_s)
        except asyncio.TimeoutError:
            return _TooSlow(f"took over {timeout_s:g} s")
        except Exception as error:
            return error

    async def every() -> list[Any]:
        return await asyncio.gather(*map(one, calls))

    # a call may block the event loop: give it one more second
    results = _attempt(lambda: asyncio.run(every()), timeout_s + 1)
    return results if isinstance(results, list) else [results] * len(calls)


def checked(name: str, problem: Problem, completion: Completion, value: Any) -> Outcome:
    """Return a reward in [0, 1], None, or a RewardError that names the problem and its completion."""
    if value is None:
        return None
    if isinstance(value, Exception):
        wrong = str(value) if isinstance(value, _TooSlow) else f"{type(value).__name__}: {value}"
    elif not hasattr(value, "__float__"):
        wrong = f"gave {value!r:.80}; it must give a number from 0 to 1"
    else:
        try:
            reward = float(value)
        except Exception as error:  # such as an array of several numbers
            reward, value = math.nan, f"{value!r:.80} ({error})"
        if 0 <= reward <= 1:
            return reward
        wrong = f"gave {value}; it must give a number from 0 to 1"
    item = f'problem "{problem.id}", completion {brief(completion.text)!r}'
    failed = RewardError(f"reward {name} on {item}: {wrong}.")
    failed.__cause__ = value if isinstance(value, Exception) else None
    return failed


# --- modules and files


def load_function(spec: str) -> Callable[..., Any]:
    """Return a user's function from "package.module:function" or "path/file.py:function".

    Raises ConfigError if the file, module or function does not exist, or its import fails.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        message = f"reward {spec!r}: give package.module:function or path/file.py:function."
        raise ConfigError(message)
    module = _module(spec, where)
    if not hasattr(module, name):
        own = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        hint = near(name, own) or (f" It has {', '.join(own)}." if own else "")
        raise ConfigError(f"reward {spec!r}: {where} has no {name!r}.{hint}")
    found: Callable[..., Any] = getattr(module, name)
    if not callable(found):
        kind = type(found).__name__
        raise ConfigError(f"reward {spec!r}: {name} is of type {kind}, not a function.")
    return found


def _module(spec: str, where: str) -> ModuleType:
    path = Path(where)
    try:
        if path.suffix != ".py" and len(path.parts) == 1:
            return importlib.import_module(where)
        if not path.is_file():
            beside = path.parent.glob("*.py") if path.parent.is_dir() else ()
            hint = near(path.name, [file.name for file in beside])
            raise ConfigError(f"reward {spec!r}: no file {where}.{hint}")
        name = f"{MODULES}{path.stem}"
        loader = importlib.util.spec_from_file_location(name, path)
        if loader is None or loader.loader is None:
            raise ConfigError(f"reward {spec!r}: {where} is not a Python file (.py).")
        module = sys.modules[name] = importlib.util.module_from_spec(loader)
        loader.loader.exec_module(module)
        return module
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        hint = " Give the path of its file: path/file.py:function." if error.name == where else ""
        raise ConfigError(f"reward {spec!r}: {error}.{hint}") from error
    except Exception as error:  # anything that the user's module raises at import
        message = f"reward {spec!r}: importing {where} failed with {type(error).__name__}: {error}"
        raise ConfigError(message) from error
