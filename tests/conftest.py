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

# files that take longest, each on one core: begun last, one would keep the others waiting at the end
LONGEST = (
    *("test_kills", "test_distributed", "test_guides", "test_docs", "test_wheel", "test_ray_pool"),
    *("test_faults", "test_compare", "test_signals", "test_verify", "test_rl_baselines", "test_cli"),
    *("test_hf_engine", "test_browser_view", "test_report", "test_cards", "test_loop", "test_trackers"),
    *("test_recipes", "test_baselines", "test_consoles", "test_terminal", "test_replay", "test_fuzz"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest; the order within a file stays."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True, scope="module")
def frozen() -> None:
    """Leave what was imported so far out of later collections of garbage.

    A run collects several times an iteration, and each time all of torch and transformers is
    searched: a fifth of the time of a small run.
    """
    gc.collect()
    gc.freeze()
