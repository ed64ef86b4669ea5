"""The notebook in examples/ runs, shows its progress, and ends with scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

NOTEBOOK = Path(__file__).parent.parent / "examples" / "judge.ipynb"


def said(cell: Any) -> str:
    """Return all that a cell has printed and shown as text."""
    streams = [out["text"] for out in cell.outputs if out.output_type == "stream"]
    shown = [out["data"].get("text/plain", "") for out in cell.outputs if "data" in out]
    return "\n".join(streams + shown)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_the_notebook_runs_and_shows_what_it_does(tmp_path: Path) -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(book, timeout=280, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises where a cell fails
    rows, trained, scores, rationale = (cell for cell in book.cells if cell.cell_type == "code")
    assert "response" in said(rows)
    progress = said(trained)
    assert "iteration 1" in progress and "accuracy" in progress  # as it goes
    assert "best: judge/best" in progress  # and the summary, of the result
    assert "[(" in said(scores) and said(rationale).strip()
    assert all(not cell.get("outputs") for cell in nbformat.read(NOTEBOOK, as_version=4).cells)
