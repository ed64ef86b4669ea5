"""The report's section on the E-steps: the outcomes of each scheme's draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from femtune.reporting.page.drawing import Axis
from femtune.reporting.page.figures import stacks
from femtune.reporting.page.parts import Figure, Key, Section, Table, of
from femtune.reporting.page.record import Found, Group
from femtune.reporting.page.tally import Pick, Tally
from femtune.reporting.page.texts import count, percent

REASONS = {  # in the order shown; "" means kept
    "": ("kept", "var(--kept)"),
    "wrong": ("wrong", "var(--wrong)"),
    "hint_leak": ("leaks the hint", "var(--leak)"),
    "parse_error": ("unparsable", "var(--unparsable)"),
    "truncated": ("truncated", "var(--cut)"),
    "reward_failed": ("reward failed", "var(--failed)"),
    "engine_failed": ("engine failed", "var(--failed)"),
}
MAX_ATTEMPTS = 5  # bars; later attempts are merged


@dataclass(frozen=True)
class EStepTallies:
    """Tallies of the E-step shards of a group's runs."""

    number: int  # of its colour and shape
    group: Group
    tallies: Mapping[Path, Mapping[int, Tally]]  # by directory
    picks: Sequence[Pick]  # of the first run

    def counts(self, iteration: int | None = None) -> Counter[tuple[int, int, str, str]]:
        """Count draws by stage, attempt, prompt and reason over runs, for one iteration or all."""
        total: Counter[tuple[int, int, str, str]] = Counter()
        for tallies in self.tallies.values():
            for number, tally in tallies.items():
                if iteration in (None, number):
                    total.update(tally.counts)
        return total

    @property
    def iterations(self) -> list[int]:
        return sorted({number for tallies in self.tallies.values() for number in tallies})


# --- where the draws went


def draws(found: Found, looked: Sequence[EStepTallies]) -> Section | None:
    """Build the section that follows draws from problems through attempts to outcomes."""
    known = [each for each in looked if each.counts()]
    if not known:
        return None
    alone = len(known) == 1
    figures = []
    for each in known:
        title = "What became of each attempt" if alone else each.group.label
        figures.append(Figure(title, _attempts(each)))
    bars = []
    for each in known:
        for prompt in sorted({key[2] for key in each.counts()}, key=lambda p: p != "plain"):
            under = "asked plainly" if prompt == "plain" else "with the answer as a hint"
            bars.append(Figure(f"{each.group.label}: {under}", _reasons(each, prompt)))
    reasons = [key for key in REASONS if any(k[3] == key for each in known for k in each.counts())]
    return Section(
        "draws",
        "Where the draws went",
        [_told(known[0])] if alone else [],
        [
            Key(REASONS[r][1].removeprefix("var(--").removesuffix(")"), "■", REASONS[r][0])
            for r in reasons
        ],
        figures=figures,
        below=bars,
        tables=[_reason_table(known)],
    )


def _told(looked: EStepTallies) -> str:
    """Return one sentence about a scheme's draws."""
    total = looked.counts()
    reasons = Counter[str]()
    for (_, _, _, reason), number in total.items():
        reasons[reason] += number
    drawn = total.total()
    refused = ", ".join(
        f"{count(number)} {REASONS.get(reason, (reason, ''))[0]}"
        for reason, number in reasons.most_common()
        if reason
    )
    kept = of(reasons[""], drawn)
    rest = f"; refused: {refused}" if refused else ""
    return f"{looked.group.label}: {kept} draws were accepted{rest}."


def _attempts(looked: EStepTallies) -> Markup:
    """Draw a bar for each attempt: the problems that it asked, by what became of them."""
    attempts: dict[tuple[int, int, str], Counter[str]] = {}
    for (stage, index, prompt, reason), number in sorted(looked.counts().items()):
        at = (stage, min(index, MAX_ATTEMPTS - 1), prompt)
        attempts.setdefault(at, Counter())[reason] += number
    values = []
    for at, ends in attempts.items():
        title = f"{_stage_name(at, [*attempts])}: {ends.total():,} asked, {ends['']:,} kept"
        for reason in sorted(ends, key=lambda reason: (reason != "", -ends[reason])):
            colour = REASONS.get(reason, (reason, "var(--failed)"))[1]
            values.append((title, reason, colour, float(ends[reason])))
    told = "; ".join(dict.fromkeys(title for title, *_ in values))
    axis = Axis("problems, over all iterations", ",d")
    return stacks(values, f"{looked.group.label}: {told}.", axis, across=True)


def _stage_name(at: tuple[int, int, str], stages: Sequence[tuple[int, int, str]]) -> str:
    stage, index, prompt = at
    attempts = sum(each[0] == stage for each in stages)
    word = "asked" if prompt == "plain" else "with a hint"
    if attempts > 1:
        later = " and later" if index == MAX_ATTEMPTS - 1 else ""
        word = f"attempt {index + 1}{later}" if prompt == "plain" else f"hinted {index + 1}{later}"
    return word


def _reasons(looked: EStepTallies, prompt: str) -> Markup:
    """Draw the shares of outcomes under a prompt, one bar per iteration."""
    values, told = [], []
    for iteration in looked.iterations:
        own = Counter[str]()
        for (_, _, under, reason), number in looked.counts(iteration).items():
            own[reason] += number if under == prompt else 0
        total = own.total()
        if not total:
            continue
        for reason in sorted(own, key=lambda r: [*REASONS].index(r) if r in REASONS else 99):
            colour = REASONS.get(reason, ("", "var(--failed)"))[1]
            values.append((str(iteration), reason, colour, own[reason] / total))
        told.append(f"{iteration}: {percent(own[''] / total)}")
    label = (
        f"{looked.group.label}, {prompt} prompt: share of draws accepted by iteration {', '.join(told)}."
    )
    return stacks(values, label, Axis("iteration", ".0%", (0.0, 1.0)))


def _reason_table(known: Sequence[EStepTallies]) -> Table:
    reasons = [key for key in REASONS if any(k[3] == key for each in known for k in each.counts())]
    rows = []
    for each in known:
        for iteration in each.iterations:
            own = each.counts(iteration)
            for stage, prompt in sorted({(key[0], key[2]) for key in own}):
                by = Counter[str]()
                for (at, _, _, reason), number in own.items():
                    by[reason] += number if at == stage else 0
                cells = [f"{by[reason]:,}" for reason in reasons]
                rows.append([f"{each.group.label}, {iteration}", prompt, f"{by.total():,}", *cells])
    head = ["scheme, iteration", "prompt", "draws", *(REASONS[r][0] for r in reasons)]
    return Table("Draws by iteration, stage and what became of them", head, rows)
