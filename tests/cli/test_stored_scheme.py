"""--config takes a run's own config.yaml, also where its scheme was made in Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from femtune import check, pps, sample, star
from femtune.cli.main import main
from femtune.cli.stored_scheme import keep_scheme, read_scheme
from femtune.errors import ConfigError
from femtune.runs.draws import read_draws
from femtune.runs.run import stored_config
from femtune.schemes.filters import Accepted, Chain, First, Share
from femtune.schemes.named import parse_scheme
from femtune.schemes.serialization import scheme_to_data
from femtune.types import Draw, Scheme, Stage

OWN = Scheme("mine", (Stage("plain", draws=2, ask="all"),), weigh=Chain(Accepted(), First(2), Share()))
ASKED: dict[str, Any] = {"task": "judge", "scale": "1,5", "raters": "named", "max_new_tokens": 48}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ratings")
    sizes = ["--num-train", "12", "--num-test", "2"]
    assert main(["world", "rubric", "--output-dir", str(folder / "made"), *sizes]) == 0
    return str(folder / "made" / "train.jsonl")


def drawn(root: Path) -> list[Draw]:
    return [draw for chunk, _ in read_draws(root / "iteration-001" / "draws") for draw in chunk]


def test_a_runs_configuration_makes_the_run_again(data: str, tmp_path: Path) -> None:
    first = sample(data, "seedling", scheme=OWN, output_dir=tmp_path / "first", **ASKED)
    config = str(first.run / "config.yaml")
    again = tmp_path / "again"
    assert main(["sample", data, "--config", config, "--output-dir", str(again), "--show", "quiet"]) == 0
    assert drawn(again) == drawn(first.run) and len(drawn(again)) == 2 * 12
    assert stored_config(again) == stored_config(first.run)
    # a flag takes its place
    other = tmp_path / "other"
    flags = ["--scheme", "star", "--output-dir", str(other), "--show", "quiet"]
    assert main(["sample", data, "--config", config, *flags]) == 0
    assert stored_config(other)["scheme_data"] == scheme_to_data(star())
    # what only checks takes it too
    assert main(["check", data, "--config", config, "--no-try", "--show", "quiet"]) == 0
    assert main(["estimate", data, "--config", config, "--hardware", "l4", "--show", "quiet"]) == 0


def test_a_check_takes_a_scheme_as_an_object(data: str) -> None:
    """Its name is unknown; its stages are what the check must look at."""
    found = []
    for scheme in ("rejection:8", replace(parse_scheme("rejection:8"), name="mine"), "pps"):
        result = check(data, "seedling", scheme=scheme, try_=False, progress="quiet", **ASKED)
        found.append({each.what: each.found for each in result.findings})
    assert found[0] == found[1] and "8 attempts" in found[0]["right by luck"]
    assert "attempts" not in found[2]["right by luck"]


@pytest.mark.parametrize("spec", ["auto", "star", "rejection:3+chain+every:2", "star+reasons:0.1"])
def test_a_named_scheme_stays_its_name(spec: str) -> None:
    data = scheme_to_data(parse_scheme(spec))
    given = {"scheme": spec, "scale": "1,5", "scheme_data": data}
    assert keep_scheme(given, "config.yaml", False) == {"scheme": spec, "scale": "1,5"}


@pytest.mark.parametrize("made", [OWN, replace(star(), weigh=OWN.weigh)])
def test_another_scheme_is_kept_as_data_whatever_its_name(made: Scheme) -> None:
    stored = yaml.safe_load(yaml.safe_dump({"scheme": made.name, "scheme_data": scheme_to_data(made)}))
    kept = keep_scheme(stored, "config.yaml", False)
    assert read_scheme(kept["scheme_data"]) == made and kept["scheme"] == made.name
    assert keep_scheme(stored, "config.yaml", True) == {"scheme": made.name}
    assert keep_scheme({"scheme_data": stored["scheme_data"]}, "config.yaml", False) == kept


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scheme": "pps", "scheme_data": scheme_to_data(star())}, "scheme 'pps', and its .* 'star'"),
        ({"scheme": "pps", "scheme_data": scheme_to_data(OWN)}, "scheme 'pps', and its .* 'mine'"),
        ({"scheme": "yours", "scheme_data": scheme_to_data(OWN)}, "'yours', and its .* 'mine'"),
        ({"scheme": "pps", "scheme_data": "star"}, "has scheme_data 'star', expected a scheme"),
        ({"scheme": "pps", "scheme_data": {"stages": []}}, "has scheme_data .* expected a scheme"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^run.yaml .*{said}"):
        keep_scheme(given, "run.yaml", False)


def test_a_rule_that_is_gone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = scheme_to_data(pps()) | {"name": "mine", "weigh": [{"nowhere.rules:Rare": {}}]}
    (file := tmp_path / "config.yaml").write_text(yaml.safe_dump({"scheme_data": data}))
    assert main(["train", "none.jsonl", "--model", "seedling", "--config", str(file)]) == 1
    assert "Rule nowhere.rules:Rare can't be imported" in capsys.readouterr().err
