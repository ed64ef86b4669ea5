"""The scheme of a run's config.yaml given to --config, where its name does not say which it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from cyclopts import Parameter

from femtune._util.text import brief
from femtune.config import Sample
from femtune.errors import ConfigError
from femtune.resolve import named_scheme
from femtune.schemes.serialization import scheme_from_data, scheme_to_data
from femtune.types import Scheme

SchemeData = Annotated[str | None, Parameter(show=False)]  # JSON; from a file alone


def keep_scheme(settings: Mapping[str, Any], source: str, replaced: bool) -> dict[str, Any]:
    """Return a file's settings with `scheme_data` as JSON, without it if the scheme's name suffices.

    A scheme made in Python is not known by its name. `replaced` says that --scheme is given. Raises
    ConfigError if the name is not that of the data.
    """
    kept = {name: value for name, value in settings.items() if name != "scheme_data"}
    data = settings.get("scheme_data")
    if data is None or replaced:
        return kept
    if not isinstance(data, Mapping) or not isinstance(name := data.get("name"), str):
        raise ConfigError(
            f"{source} has scheme_data {brief(repr(data))}, expected a scheme as a run's config.yaml "
            "stores it. Remove it to take the scheme by name."
        )
    spec = kept.setdefault("scheme", name)
    named = _named(spec, kept.get("scale"))
    if name != (spec if named is None else named.name):
        raise ConfigError(
            f"{source} names the scheme {brief(repr(spec))}, and its scheme_data is of "
            f"{brief(repr(name))}. Remove scheme_data to take the scheme by name."
        )
    if named is not None and scheme_to_data(named) == data:
        return kept
    return {**kept, "scheme_data": json.dumps(data)}


def _named(spec: Any, scale: Any) -> Scheme | None:
    """Return the scheme of a name, or None for an unknown name."""
    try:
        return named_scheme(Sample(scheme=str(spec), scale=None if scale is None else str(scale)))
    except ConfigError:
        return None


def read_scheme(data: str | None) -> Scheme | None:
    """Return the scheme that `keep_scheme` kept. Raises ConfigError if a rule can't be imported."""
    return None if data is None else scheme_from_data(json.loads(data))
