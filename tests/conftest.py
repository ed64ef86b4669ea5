"""For all tests: no network, Ctrl-C, and one thread, as results must not hang on the number of cores."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

# before torch is imported; processes that tests start inherit them
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

# trackio, which TRL imports, reads it once: no test may find what is in a home, or add to it
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="femtune-trackio-")

from hypothesis import settings

atexit.register(shutil.rmtree, os.environ["TRACKIO_DIR"], ignore_errors=True)

# who starts the tests may have it ignored, as a shell has of what it starts in the background
signal.signal(signal.SIGINT, signal.default_int_handler)

for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):  # a developer's own server is none of the tests'
    os.environ.pop(name, None)

settings.register_profile("shared", deadline=None)  # a machine that is shared has slow moments
settings.load_profile("shared")
