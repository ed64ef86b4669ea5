"""For all tests: no network, Ctrl-C, and one thread, as results must not hang on the number of cores."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import tempfile

# before torch is imported; processes that tests start inherit them
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

# trackio, which TRL imports, reads it once: no test may find what is in a home, or add to it
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="femtune-trackio-")

import pytest
from hypothesis import settings

atexit.register(shutil.rmtree, os.environ["TRACKIO_DIR"], ignore_errors=True)

# who starts the tests may have it ignored, as a shell has of what it starts in the background
signal.signal(signal.SIGINT, signal.default_int_handler)

for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):  # a developer's own server is none of the tests'
    os.environ.pop(name, None)

settings.register_profile("shared", deadline=None)  # a machine that is shared has slow moments
settings.load_profile("shared")


@pytest.fixture(autouse=True, scope="module")
def frozen() -> None:
    """Leave what was imported so far out of later collections of garbage.

    A run collects several times an iteration, and each time all of torch and transformers is
    searched: a fifth of the time of a small run.
    """
    gc.collect()
    gc.freeze()
