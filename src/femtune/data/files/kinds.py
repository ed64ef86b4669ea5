"""Kinds of files by their names: those that are read, and those that are refused with advice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from femtune.errors import DataError

FORMS = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "table",
    ".tsv": "table",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}  # pyarrow's names
_SHEET = "a spreadsheet: save it as CSV UTF-8 there, or as .jsonl"
_PACKED = "an archive: unpack it, and give the file or folder inside"
REFUSED = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers"), _SHEET),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar", ".xz", ".lz4"), _PACKED),
    **dict.fromkeys((".pkl", ".pickle", ".pt"), "a pickle, which can run code: save it as .parquet"),
    **dict.fromkeys((".txt", ".md"), "plain text without columns: save it as .jsonl or .csv"),
    **dict.fromkeys((".yaml", ".yml", ".xml", ".html", ".feather"), "save it as .jsonl or .parquet"),
}


@dataclass(frozen=True)
class Kind:
    """The kind of a file by its name, for example `.csv` and `gzip` for ratings.csv.gz."""

    suffix: str  # a key of FORMS
    compression: str | None = None

    @property
    def form(self) -> str:
        return FORMS[self.suffix]


def find_kind(file: Path) -> Kind | None:
    """Return the kind of a file, or None if it can't be read.

    >>> find_kind(Path("a/ratings.CSV.gz")), find_kind(Path("ratings.parquet.gz"))
    (Kind(suffix='.csv', compression='gzip'), None)
    """
    suffix, compression = file.suffix.lower(), None
    if suffix in COMPRESSIONS:
        suffix, compression = Path(file.stem).suffix.lower(), COMPRESSIONS[suffix]
    columnar = FORMS.get(suffix) in ("parquet", "arrow")
    return None if suffix not in FORMS or (compression and columnar) else Kind(suffix, compression)


def kind_of(file: Path) -> Kind:
    """Return the kind of a file. Raises DataError for a file that can't be read."""
    found = find_kind(file)
    if found is not None:
        return found
    known, own = ", ".join(FORMS), ending(file)
    if own in REFUSED:
        raise DataError(f'{file} is of unknown kind "{own}", {REFUSED[own]}. Use one of {known}.')
    if own.startswith((".parquet.", ".arrow.")):  # their columns are compressed by themselves
        raise DataError(f'{file}: "{own}" is compressed twice. Unpack it first.')
    raise DataError(
        f'{file} is of unknown kind "{own}": use one of {known}. Those of text may end in .gz, .zst or '
        ".bz2 too."
    )


def ending(file: Path) -> str:
    """Return the end of a file's name that tells its kind.

    >>> ending(Path("a.b.csv")), ending(Path("a.b.csv.gz"))
    ('.csv', '.csv.gz')
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    return "".join(suffixes[-2:] if suffixes and suffixes[-1] in COMPRESSIONS else suffixes[-1:])


def looks_like_file(name: str) -> bool:
    """Return True for a name with the ending of a file, read or not.

    >>> looks_like_file("data/rows.csv.zst"), looks_like_file("data/rows.xlsx"), looks_like_file("a/b.5")
    (True, True, False)
    """
    own = ending(Path(name))
    return own in FORMS or own in REFUSED or Path(own).suffix in COMPRESSIONS
