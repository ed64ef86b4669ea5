"""Data sets from the Hugging Face Hub or its local cache, opened with `datasets`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from femtune._util.extras import check_extra
from femtune.data.files.kinds import looks_like_file
from femtune.errors import ConfigError, DataError

# messages of `datasets` about errors that a user can fix: 5.2, load.py, builder.py, arrow_reader.py
_CHOOSABLE = re.compile(r"BuilderConfig .* not found|Config name is missing|Unknown split")


@dataclass(frozen=True)
class Address:
    """The location of a data set's rows on the Hub."""

    name: str  # owner/name
    split: str
    config: str | None = None
    in_folder: bool = False  # the config is a folder of the repository, not a declared config
    revision: str | None = None


def is_hub_id(name: str) -> bool:
    """Return True for a name of the form owner/name that is not, and does not look like, a file's path.

    >>> is_hub_id("openai/gsm8k"), is_hub_id("data/rows.jsonl"), is_hub_id("./data/rows")
    (True, False, False)
    """
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None
    return is_id and not looks_like_file(name) and not Path(name).exists()


def open_hub(address: Address, task: str) -> Any:
    """Open the `datasets.Dataset` at an address; its rows stay on disk and are read one by one.

    Raises ConfigError for an unknown config or split, or if the library `datasets` is not installed, and
    DataError if the data set can't be loaded.
    """
    check_extra(f"{address.name}, a data set on the Hub,", "datasets")
    import datasets  # takes a second
    from huggingface_hub.utils.tqdm import disable_progress_bars

    datasets.disable_progress_bars()
    disable_progress_bars()
    where = {"data_dir" if address.in_folder else "name": address.config}
    try:
        return datasets.load_dataset(
            address.name, split=address.split, revision=address.revision, **where
        )
    except Exception as error:  # of datasets, the Hub's client, pyarrow: they share no base class
        reason = str(error).strip() or type(error).__name__
        if _CHOOSABLE.match(reason):
            raise ConfigError(f"{address.name}: {' '.join(reason.split())}") from error
        raise DataError(
            f"there is no file {address.name}, and data set {address.name} can't be loaded from the "
            f"Hub: {reason.splitlines()[0]}. Download it on a machine with network access and give the "
            f"file: femtune ... {task} path/to/file.parquet"
        ) from error


def hub_rows(opened: Any, columns: Collection[str]) -> Iterator[tuple[int, Any]]:
    """Yield place (from 1) and row of an open data set, reduced to those of the columns it has."""
    kept = [name for name in opened.column_names if name in columns]
    yield from enumerate(opened.select_columns(kept), 1)
