"""For all tests: no network, and one thread, as results must not hang on how many cores there are."""

from __future__ import annotations

import os

# before torch is imported; processes that tests start inherit them
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import settings

for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):  # a developer's own server is none of the tests'
    os.environ.pop(name, None)

settings.register_profile("shared", deadline=None)  # a machine that is shared has slow moments
settings.load_profile("shared")
