"""Summaries: judge which of two a human prefers, or rate one. Posts take the place of prompts.

After Stiennon et al. 2020, "Learning to summarize from human feedback", arXiv 2009.01325; their data
set is openai/summarize_from_feedback.
"""

from __future__ import annotations

from femtune.data.tasks.judge import Wording

SUMMARIZE = Wording("summary", (("Title", "title"), ("Post", "post")))
