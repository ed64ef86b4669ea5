"""What femtune adds to each of vLLM's workers, in whose process this runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import psutil  # which comes with vLLM


class Reloader:
    """vLLM mixes it into its worker's own class, by its name."""

    def femtune_watch(self, owner: int) -> None:
        """End vLLM when the owner is gone, killed say: it would keep the GPU's memory."""
        chain = _ancestors(owner)  # vLLM's core is between, or is this process

        def watch() -> None:
            while _ancestors(owner) == chain:
                time.sleep(1.0)
            if os.getppid() in chain[:-1]:
                os.kill(os.getppid(), signal.SIGKILL)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()

    def femtune_reload(self, folder: str) -> None:
        """Read a folder's weights into the running model.

        vLLM's own reload works layer by layer and leaves out those whose weights the folder does not
        name. An output layer that is tied to the embedding is one: its weights are the embedding's and
        so are new, but what a platform derived from them (on a CPU, a packed copy) is still old.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import (
            UnquantizedEmbeddingMethod,
            VocabParallelEmbedding,
        )

        worker: Any = self
        worker.reload_weights(weights_path=folder)
        for layer in worker.model_runner.get_model().modules():
            method = getattr(layer, "quant_method", None)
            if isinstance(layer, VocabParallelEmbedding) and isinstance(
                method, UnquantizedEmbeddingMethod
            ):
                method.process_weights_after_loading(layer)


def _ancestors(owner: int) -> list[int]:
    """This process's parent, its parent and so on up to the owner; none where that is no ancestor."""
    found = []
    for process in psutil.Process().parents():
        found.append(process.pid)
        if process.pid == owner:
            return found
    return []
