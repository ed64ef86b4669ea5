"""Draw the rationales of the first E-step from another model, the teacher.

The draws are stored where the loop looks for those of iteration 1, so it draws none itself. The teacher
has its own tokenizer, and the M-step trains on the text of its draws, under the student's plain prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from femtune.config import Train
from femtune.data.answer_format import parse_format
from femtune.data.tasks.labels import label_of
from femtune.data.truncation import Cut
from femtune.engines.model_files import load_tokenizer, local_model, named_folder
from femtune.engines.weight_check import serve
from femtune.errors import ConfigError
from femtune.estep.driver import e_step
from femtune.estep.forced_answers import Force, check_cue
from femtune.loop import LoopConfig, Progress
from femtune.resolve import TaskInputs
from femtune.run_folder import TEACHER, teacher_args
from femtune.runs.run import Run
from femtune.sampler import SamplerBuilder, make_sampler_builder
from femtune.types import SCORED, Problem, Sampling, Scheme
from femtune.workflows.worked_examples import usable_demos

# what a scheme must not need: the teacher's draws have another law than the student's
_STUDENT = SCORED | {"temperature_1"}


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The model that draws in the first E-step, and what a run stores of it."""

    builder: SamplerBuilder
    about: Mapping[str, Any]  # for teacher.json

    def draw(
        self,
        run: Run,
        problems: Sequence[Problem],
        config: LoopConfig,
        sampling: Sampling,
        progress: Progress,
    ) -> None:
        """Draw what iteration 1 lacks, and store it in the run. Raises what the engine raises."""
        settings = self.builder.settings
        num_chunks = -(-len(problems) // settings.chunk_size)
        shards = [run.shard(1, "draws", index) for index in range(num_chunks)]
        run.verify(*shards)
        if not (run.root / TEACHER).exists():
            run.write_json(run.root / TEACHER, self.about)
        if all(shard.exists() for shard in shards):
            return
        progress.phase("E-step", 1, len(problems))
        run.log("E-step", iteration=1, teacher=self.about["model"])
        shown = usable_demos(self.builder.demos, config.scheme) if config.demo_iterations else ()
        with self.builder.sampler(sampling, folder=run.root) as made:
            forced: Force = "ended" if config.force == "always" else "never"
            sampler = replace(made, demos=shown, force=forced)
            serve(sampler.engine, self.builder.base, sampler.rounding, None)
            chunks = e_step(
                [label_of(each, 1, settings.seed) for each in problems],
                config.scheme,
                sampler,
                iteration=1,
                place=lambda index: run.shard(1, "draws", index),
                on_draws=progress.draws,
            )
            for chunk in chunks:
                run.record(run.shard(1, "draws", chunk.index))


def check_teacher(settings: Train, scheme: Scheme) -> None:
    """Refuse settings and schemes that do not go with a teacher, and a teacher that lacks its files.

    Raises ConfigError or ModelError.
    """
    if settings.teacher is None:
        return
    if settings.m_step == "examples":
        raise ConfigError(
            "teacher is for M-steps that train weights: with --m-step examples, show the teacher's "
            "rationales as worked examples (--demos FILE)."
        )
    if scheme.needs & _STUDENT or scheme.remember is not None:
        raise ConfigError(
            f"Scheme {scheme.name} weighs draws by the student's own probability of them, or remembers "
            "them, and the teacher's draws are another model's. Choose --scheme auto, rejection, star "
            "or pps without importance, expected, reasons, chain and hard; or drop --teacher."
        )
    tokenizer = load_tokenizer(local_model(settings.teacher), settings.template_args)
    check_cue(Cut(parse_format(settings.answer_format), tokenizer, ""), tokenizer)


def make_teacher(
    asked: TaskInputs[Train], place: Path, stored: Mapping[str, Any], problems: Sequence[Problem]
) -> Teacher | None:
    """Return the teacher of a run in `place` with this configuration, None without one.

    Raises ModelError if its files can't be read, DataError if prompts are too long for it.
    """
    settings = asked.settings
    name = settings.teacher
    if name is None:
        return None
    args = teacher_args(settings, place)
    about = {
        "model": name,
        "license": license_of(named_folder(name)),
        "sha256": stored["relies_on"]["teacher"],
    }
    own = replace(
        settings,
        engine="transformers",
        teacher=None,
        base_url=None,
        served_model=None,
        engine_args=(),
        ray_workers=0,
        ray_address=None,
        worker_gpus=None,
        template_args=args,
    )
    builder = make_sampler_builder(name, replace(asked, settings=own), problems)
    return Teacher(builder=builder, about=about | {"template_args": [*args]})


def license_of(folder: Path) -> str:
    """Return the licence that a model's README.md names in its metadata, else "unknown"."""
    path = folder / "README.md"
    try:
        found = ModelCard.load(path, ignore_metadata_errors=True).data if path.is_file() else None
    except (OSError, ValueError):
        return "unknown"
    own = found and (found.get("license_name") or found.license)
    return ", ".join(own) if isinstance(own, list) else str(own or "unknown")
