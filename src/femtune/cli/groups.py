"""The panels of `--help`: what most runs set comes first, the other options by topic.

An option that no panel below lists is among the first, such as --task, --scale and --iterations.
"""

from __future__ import annotations

from typing import Annotated, get_type_hints

from cyclopts import App, Group, Parameter

from femtune.comparison.ladder.options import LadderOptions
from femtune.config import RL, Ask, Calibrate, Evaluate, Predict, Sample, Train
from femtune.mstep.config import Training

MAIN = Group("Options", sort_key=0)
OTHERS = Group("Other", sort_key=9)
PANELS = {
    "Data": (
        *("columns", "header", "data_config", "split", "attributes", "labels", "group", "bad_rows"),
        *("round_scores", "soft_labels", "check_gold"),
    ),
    "Prompts and answers": (
        *("instruction", "hint", "answer_format", "force_answers", "system_prompt", "rubric"),
        *("prompt_template", "template_args", "demos", "demo_iterations", "demos_in_prompt"),
    ),
    "Reward": ("reward", "accept_at", "soft_accept", "soft_decay", "reward_timeout", "on_reward_error"),
    "E-step": ("temperature", "top_p", "top_k", "balance", "start_from", "teacher"),
    "M-step": (
        *("lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "fsdp", "launch"),
        *("per_device_train_batch_size", "max_tokens_per_batch", "gradient_accumulation_steps"),
        *("gradient_checkpointing", "bf16", "dtype", "attn_implementation", "use_cpu"),
        *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
        *("average_weights", "m_step", "num_examples", "selection_requests", "selection_tokens"),
    ),
    "Evaluation": (
        *("dev_share", "patience", "eval_split", "eval_share", "eval_draws", "eval_temperature"),
        *("eval_every", "bound_draws", "bound_problems", "reader_problems"),
    ),
    "Engine": (
        *("engine", "engine_args", "engine_dtype", "max_batch", "device", "share_device", "base_url"),
        *("max_requests", "max_total_tokens", "max_cost", "prices", "on_model_change"),
        *("served_model", "engine_timeout", "ray_workers", "ray_address", "worker_cpus", "worker_gpus"),
    ),
    "Run": ("seed", "chunk_size", "overlap", "resume", "keep_last", "report_to"),
}
COMMANDS = {  # in the order of work
    "From ratings to a judge": (
        *("demo", "check", "estimate", "train", "evaluate", "calibrate", "predict", "report", "view"),
        *("merge", "push"),
    ),
    "Is it worth it, and is it fair?": ("ladder", "compare", "bias"),
    "Single steps and stored runs": ("sample", "fit", "refilter", "replay", "demos", "verify", "world"),
}
EXAMPLES = {
    "train": "femtune train ratings.csv --model Qwen/Qwen3-1.7B --task judge --scale 1,5",
    "check": "femtune check ratings.csv --model Qwen/Qwen3-1.7B --task judge --scale 1,5",
    "evaluate": "femtune evaluate test.csv --model runs/judge",
    "calibrate": "femtune calibrate validation.csv --model runs/judge",
    "predict": "femtune predict new.csv --model runs/judge --output scores.csv",
    "compare": "femtune compare ratings.csv --model Qwen/Qwen3-1.7B --task judge --schemes star auto",
    "ladder": "femtune ladder ratings.csv --model Qwen/Qwen3-1.7B --task judge --budget 30m",
    "report": "femtune report runs/judge",
    "view": "femtune view runs/judge --open",
    "merge": "femtune merge runs/judge --output-dir judge-merged",
    "push": "femtune push runs/judge me/judge --dry-run",
}
_OWN: dict[type, tuple[str, ...]] = {
    Evaluate: ("temperature",),
    Calibrate: ("temperature",),
}  # beside the command's own draws
_KINDS: tuple[type, ...] = (
    Ask,
    Sample,
    Train,
    Training,
    Evaluate,
    Predict,
    Calibrate,
    RL,
    LadderOptions,
)


def in_order(app: App) -> App:
    """Put the commands into their panels, in the order of work, each with an example at the end."""
    app.register_install_completion_command()
    for place, (title, names) in enumerate(COMMANDS.items()):
        group = Group(title, sort_key=place)
        for number, name in enumerate(names):
            if name in app:
                app[name].group = (group,)
                app[name].sort_key = number
                if name in EXAMPLES:
                    app[name].help_epilogue = f"Example:\n\n{EXAMPLES[name]}"
    return app


def group_options() -> Group:
    """Assign the settings to their panels, by annotations that cyclopts reads; return the first one."""
    groups = {
        name: Group(title, sort_key=number)
        for number, (title, names) in enumerate(PANELS.items(), 1)
        for name in names
    }
    for kind in _KINDS:
        hints = get_type_hints(kind, include_extras=True)
        own = {*kind.__annotations__} & groups.keys() - {*_OWN.get(kind, ())}
        for name in own:
            kind.__annotations__[name] = Annotated[hints[name], Parameter(group=groups[name])]
    return MAIN
