"""The schemas that data sets are published in, and where on the Hub there are such rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from femtune.data.tasks import forms, pair_forms
from femtune.data.tasks.cells import Row

_HUB = "https://huggingface.co/datasets/"


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The schema of published rows, and the location of such rows on the Hub."""

    name: str  # the Hub id, or for a plain table, its content
    task: str  # judge, summarize, choice or math
    columns: frozenset[str]  # required columns; a file is recognized by them
    rows: Callable[[Row], Iterable[dict[str, Any]]]  # raises BadRow
    label: str  # the label's column in the task's rows: score, preference or answer
    label_columns: frozenset[str]  # published columns of the label; items to predict may lack them
    also: frozenset[str] = frozenset()  # optional columns
    nested: frozenset[str] = frozenset()  # columns of lists or objects, or JSON text of them
    open_labels: bool = False  # True if labels are as the file has them, and `codings` decodes them
    says: str = ""  # how labels come about, for the log
    gaps: bool = False  # True if the publisher left out some labels: such a row is skipped, not an error
    scale: str | None = None  # lowest and highest score, "0,4"; None for no scale, or any
    config: str | None = None  # the default config
    configs: tuple[str, ...] = ()  # all configs with this schema
    in_folder: bool = False  # the config is a folder of the repository, not a declared config
    revision: str | None = None
    split: str = "train"
    eval_split: str | None = None  # a split that has labels too
    card: str = ""  # the page that the schema was checked against; "" for a plain table

    def needs(self, labels: bool) -> frozenset[str]:
        """Return the columns that a row must have, with or without those of its label."""
        return self.columns if labels else self.columns - self.label_columns


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


_CHOSEN = "`chosen` is the better one of each pair; A or B by a hash of the texts."

_MATH_CONFIGS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory"),
    *("prealgebra", "precalculus"),
)

_HELPSTEER2 = Schema(
    name="nvidia/HelpSteer2",
    task="judge",
    columns=_names("prompt response") | {*forms.HELPSTEER},
    rows=forms.helpsteer2_rows,
    label="score",
    label_columns=frozenset(forms.HELPSTEER),
    scale="0,4",
    eval_split="validation",
    card=f"{_HUB}nvidia/HelpSteer2",
)

SCHEMAS: tuple[Schema, ...] = (
    # plain tables come first: the first of several schemas that fit equally well is used
    Schema(
        name="judge ratings",
        task="judge",
        columns=_names("prompt response score"),
        rows=forms.rating_rows,
        label="score",
        label_columns=_names("score"),
        also=_names("id item attribute rater criterion reference source"),
        open_labels=True,
    ),
    Schema(
        name="judge pairs",
        task="judge",
        columns=_names("prompt response_a response_b preference"),
        rows=pair_forms.pair_rows,
        label="preference",
        label_columns=_names("preference"),
        also=_names("id item attribute rater source model_a model_b"),
        open_labels=True,
    ),
    Schema(
        name="judge pairs, chosen and rejected",
        task="judge",
        columns=_names("chosen rejected"),
        rows=pair_forms.chosen_rows,
        label="preference",
        label_columns=frozenset(),  # which one is better stands in their names
        also=_names("prompt id item attribute rater source"),
        says=_CHOSEN,
    ),
    Schema(
        name="judge pairs with a column for each winner",
        task="judge",
        columns=_names("prompt response_a response_b winner_model_a winner_model_b"),
        rows=pair_forms.one_hot_rows,
        label="preference",
        label_columns=_names("winner_model_a winner_model_b"),
        also=_names("winner_tie id item attribute rater source model_a model_b"),
    ),
    Schema(
        name="stanfordnlp/SHP",
        task="judge",
        columns=_names("history human_ref_A human_ref_B labels"),
        rows=pair_forms.labelled_rows,
        label="preference",
        label_columns=_names("labels"),
        says="`labels`: 1 is A, 0 is B, as its publisher says.",
    ),
    Schema(
        name="judge pairs of conversations",
        task="judge",
        columns=_names("conversation_a conversation_b winner"),
        rows=pair_forms.arena_rows,
        label="preference",
        label_columns=_names("winner"),
        also=_names("prompt id item attribute rater source model_a model_b"),
        nested=_names("conversation_a conversation_b"),
        open_labels=True,
    ),
    Schema(
        name="summary pairs",
        task="summarize",
        columns=_names("post summary_a summary_b preference"),
        rows=pair_forms.summary_pair_rows,
        label="preference",
        label_columns=_names("preference"),
        also=_names("id item title attribute rater source"),
        open_labels=True,
    ),
    Schema(
        name="summary pairs, chosen and rejected",
        task="summarize",
        columns=_names("post chosen rejected"),
        rows=pair_forms.chosen_summary_rows,
        label="preference",
        label_columns=frozenset(),
        also=_names("id item title attribute rater source"),
        says=_CHOSEN,
    ),
    Schema(
        name="summary ratings",
        task="summarize",
        columns=_names("post summary score"),
        rows=forms.summary_rating_rows,
        label="score",
        label_columns=_names("score"),
        also=_names("id item title attribute rater source"),
        open_labels=True,
    ),
    Schema(
        name="choice questions",
        task="choice",
        columns=_names("question choices answer"),
        rows=forms.choice_rows,
        label="answer",
        label_columns=_names("answer"),
        also=_names("id labels subject"),
        nested=_names("choices labels"),
        open_labels=True,
    ),
    Schema(
        name="math problems",
        task="math",
        columns=_names("prompt answer"),
        rows=forms.math_rows,
        label="answer",
        label_columns=_names("answer"),
        also=_names("id level subject"),
    ),
    # judge
    _HELPSTEER2,
    replace(  # the card: load_dataset("nvidia/HelpSteer2", data_dir="disagreements")["train"]
        _HELPSTEER2,
        config="disagreements",
        configs=("disagreements",),
        in_folder=True,
        eval_split=None,
        card=f"{_HUB}nvidia/HelpSteer2#disagreements-new---1-oct-2024",
    ),
    Schema(  # its one split holds both: its column `split` is train or validation
        name="nvidia/HelpSteer2",
        task="judge",
        columns=_names("prompt response_1 response_2 preference_strength"),
        rows=forms.helpsteer2_pair_rows,
        label="preference",
        label_columns=_names("preference_strength"),
        config="preference",
        configs=("preference",),
        in_folder=True,
        card=f"{_HUB}nvidia/HelpSteer2#preferences-new---1-oct-2024",
    ),
    Schema(
        name="nvidia/HelpSteer3",
        task="judge",
        columns=_names("context response1 response2 overall_preference"),
        rows=forms.helpsteer3_rows,
        label="preference",
        label_columns=_names("overall_preference"),
        also=_names("domain language individual_preference"),
        nested=_names("context individual_preference"),
        config="preference",
        configs=("preference",),
        eval_split="validation",
        card=f"{_HUB}nvidia/HelpSteer3#preference",
    ),
    Schema(  # "N/A" for a Rating: github.com/OpenBMB/UltraFeedback, fix_overall_score_issue.py
        name="openbmb/UltraFeedback",
        task="judge",
        columns=_names("instruction completions"),
        rows=forms.ultrafeedback_rows,
        label="score",
        label_columns=frozenset(),  # they stand within `completions`
        also=_names("source"),
        nested=_names("completions"),
        gaps=True,
        scale="1,5",
        card=f"{_HUB}openbmb/UltraFeedback",
    ),
    Schema(
        name="prometheus-eval/Feedback-Collection",
        task="judge",
        columns=_names("orig_instruction orig_response orig_criteria orig_score"),
        rows=forms.feedback_collection_rows,
        label="score",
        label_columns=_names("orig_score"),
        also=_names("orig_reference_answer")
        | {f"orig_score{score}_description" for score in range(1, 6)},
        scale="1,5",
        card=f"{_HUB}prometheus-eval/Feedback-Collection",
    ),
    Schema(
        name="lmsys/mt_bench_human_judgments",
        task="judge",
        columns=_names("question_id model_a model_b winner judge conversation_a conversation_b turn"),
        rows=forms.mt_bench_rows,
        label="preference",
        label_columns=_names("winner"),
        nested=_names("conversation_a conversation_b"),
        split="human",  # the other is gpt4_pair
        card=f"{_HUB}lmsys/mt_bench_human_judgments",
    ),
    # summarize: there by a script, which `datasets` no longer runs, and on a branch as Parquet
    Schema(
        name="openai/summarize_from_feedback",
        task="summarize",
        columns=_names("info summaries choice worker"),
        rows=forms.comparison_rows,
        label="preference",
        label_columns=_names("choice"),
        also=_names("batch extra"),
        nested=_names("info summaries extra"),
        config="comparisons",
        configs=("comparisons",),
        in_folder=True,
        revision="refs/convert/parquet",
        eval_split="validation",
        card=f"{_HUB}openai/summarize_from_feedback/blob/main/summarize_from_feedback.py",
    ),
    Schema(  # a scale from 1 to 7: arXiv 2009.01325
        name="openai/summarize_from_feedback",
        task="summarize",
        columns=_names("info summary worker"),
        rows=forms.axis_rows,
        label="score",
        label_columns=frozenset(),  # they stand within `summary`
        also=_names("batch"),
        nested=_names("info summary"),
        gaps=True,
        scale="1,7",
        config="axis",
        configs=("axis",),
        in_folder=True,
        revision="refs/convert/parquet",
        split="validation",
        eval_split="test",
        card=f"{_HUB}openai/summarize_from_feedback/blob/main/summarize_from_feedback.py",
    ),
    # choice
    Schema(
        name="allenai/ai2_arc",
        task="choice",
        columns=_names("id question choices answerKey"),
        rows=forms.keyed_rows,
        label="answer",
        label_columns=_names("answerKey"),
        nested=_names("choices"),
        config="ARC-Challenge",
        configs=("ARC-Challenge", "ARC-Easy"),
        eval_split="validation",
        card=f"{_HUB}allenai/ai2_arc",
    ),
    Schema(
        name="cais/mmlu",
        task="choice",
        columns=_names("question subject choices answer"),
        rows=forms.choice_rows,
        label="answer",
        label_columns=_names("answer"),
        nested=_names("choices"),
        open_labels=True,
        config="all",  # each subject is a config too
        split="auxiliary_train",
        eval_split="validation",
        card=f"{_HUB}cais/mmlu",
    ),
    Schema(
        name="allenai/openbookqa",
        task="choice",
        columns=_names("id question_stem choices answerKey"),
        rows=forms.keyed_rows,
        label="answer",
        label_columns=_names("answerKey"),
        nested=_names("choices"),
        config="main",
        configs=("main", "additional"),
        eval_split="validation",
        card=f"{_HUB}allenai/openbookqa",
    ),
    Schema(  # of its test split `answerKey` is ""
        name="tau/commonsense_qa",
        task="choice",
        columns=_names("id question question_concept choices answerKey"),
        rows=forms.keyed_rows,
        label="answer",
        label_columns=_names("answerKey"),
        nested=_names("choices"),
        gaps=True,
        eval_split="validation",
        card=f"{_HUB}tau/commonsense_qa",
    ),
    # math
    Schema(
        name="openai/gsm8k",
        task="math",
        columns=_names("question answer"),
        rows=forms.gsm8k_rows,
        label="answer",
        label_columns=_names("answer"),
        also=_names("id level subject"),
        config="main",
        configs=("main", "socratic"),
        eval_split="test",
        card=f"{_HUB}openai/gsm8k",
    ),
    Schema(
        name="HuggingFaceH4/MATH-500",
        task="math",
        columns=_names("problem answer subject level unique_id"),
        rows=forms.math500_rows,
        label="answer",
        label_columns=_names("answer"),
        split="test",  # there is no other
        card=f"{_HUB}HuggingFaceH4/MATH-500",
    ),
    Schema(  # no config holds all subjects: the user names one
        name="EleutherAI/hendrycks_math",
        task="math",
        columns=_names("problem level type solution"),
        rows=forms.hendrycks_rows,
        label="answer",
        label_columns=_names("solution"),
        configs=_MATH_CONFIGS,
        eval_split="test",
        card=f"{_HUB}EleutherAI/hendrycks_math",
    ),
)
