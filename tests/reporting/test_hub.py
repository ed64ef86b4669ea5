"""What `push` sends, through the Hub's own client, to a stand-in of the Hub on this machine."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi, constants

from femtune import sample, train
from femtune.cli.main import main
from femtune.comparison.demo import write_world
from femtune.errors import ConfigError, FemtuneError, RunError
from femtune.reporting.hub import pack, send

JUDGE: dict[str, Any] = {"task": "judge", "raters": "named", "scale": "1,5", "max_new_tokens": 40}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that trained an adapter, and one that sampled."""
    folder = tmp_path_factory.mktemp("runs")
    data, test = write_world("rubric", folder / "world", 24, 6)
    options = JUDGE | {
        "num_train_epochs": 1,
        "iterations": 1,
        "eval_data": str(test),
        "use_peft": True,
        "lora_r": 4,
    }
    trained = train(str(data), "seedling", output_dir=folder / "trained", **options).run
    drawn = sample(str(data), "seedling", output_dir=folder / "drawn", **JUDGE).run / "iteration-001"
    return {"trained": trained, "drawn": drawn.parent}


@dataclass
class Hub:
    """What the stand-in was sent."""

    url: str = ""
    made: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)
    public: bool = False  # what it says of a repository


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The parts of the Hub's protocol that an upload of small files needs."""
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.tokens.add(self.headers["Authorization"])
            self.answer({"id": "me/it", "private": not found.public, "siblings": []})

        def do_POST(self) -> None:
            found.tokens.add(self.headers["Authorization"])
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                found.made.append(json.loads(body))
                self.answer({"url": f"{found.url}/me/it", "id": "me/it", "name": "me/it"})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                sorts = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
                ]
                self.answer({"files": sorts})
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        found.files[line["value"]["path"]] = content
                self.answer({"commitUrl": f"{found.url}/me/it/commit/1", "commitOid": "1" * 40})
            else:
                self.answer({"errors": [], "warnings": []})  # of the card's YAML

        def answer(self, value: dict[str, Any]) -> None:
            text = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def api_of(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url)


def test_a_model_goes_with_its_card_and_without_its_problems(runs: dict[str, Path], hub: Hub) -> None:
    upload = pack(runs["trained"], "me/it", "model", "best")
    assert send(upload, private=True, api=api_of(hub)) == f"{hub.url}/me/it"
    folder = runs["trained"] / "last"
    (made,) = hub.made
    assert (made["organization"], made["name"], made["type"]) == ("me", "it", "model")
    assert made.get("visibility") == "private" or made["private"]  # the client's older word
    wanted = {path.name for path in folder.iterdir()} - {"weight_check.json"}
    assert hub.files.keys() == wanted and "adapter_model.safetensors" in wanted
    weights = "adapter_model.safetensors"
    assert hub.files[weights] == (folder / weights).read_bytes()
    assert {name: len(content) for name, content in hub.files.items()} == upload.sizes()
    card = hub.files["README.md"].decode()
    assert card.count('name = "me/it"\n') == 2 and 'name = "."' not in card
    assert hub.tokens == {"Bearer hf_secret"}
    sent = b"".join(hub.files.values())
    assert str(Path(__file__).parents[2]).encode() not in sent and b"hf_secret" not in sent
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "seedling"


def test_data_goes_without_draws_unless_they_are_asked_for(runs: dict[str, Path], hub: Hub) -> None:
    for draws, names in ((False, ["examples"]), (True, ["examples", "draws"])):
        hub.files.clear()
        send(pack(runs["drawn"], "me/it", "data", draws=draws), api=api_of(hub))
        assert hub.made[-1]["type"] == "dataset"
        assert set(hub.files) - {"draws/00000.parquet"} == {"README.md", "examples.parquet"}
        assert ("draws/00000.parquet" in hub.files) is draws
        head = yaml.safe_load(hub.files["README.md"].decode().split("---\n")[1])
        assert [each["config_name"] for each in head["configs"]] == names


def test_rationales_of_a_training_run_can_be_sent_too(runs: dict[str, Path]) -> None:
    upload = pack(runs["trained"], "me/it", "data")
    assert list(upload.sizes()) == ["README.md", "examples.parquet"]
    assert "prompts" in upload.note


def test_an_owners_licence_is_sent(runs: dict[str, Path]) -> None:
    card = runs["drawn"] / "iteration-001" / "README.md"
    before = card.read_text()
    card.write_text(before.replace("---\n", "---\nlicense: cc-by-4.0\n", 1))
    sent = pack(runs["drawn"], "me/it", "data").changed["README.md"]
    card.write_text(before)
    assert yaml.safe_load(sent.split("---\n")[1])["license"] == "cc-by-4.0"


def test_a_public_repository_is_not_taken_for_a_private_one(runs: dict[str, Path], hub: Hub) -> None:
    hub.public = True
    with pytest.raises(ConfigError, match="exists and is public"):
        send(pack(runs["drawn"], "me/it", "data"), private=True, api=api_of(hub))
    assert not hub.files


def test_a_hub_that_is_not_there_is_told_of(
    runs: dict[str, Path], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = HfApi(endpoint="http://127.0.0.1:1")
    with pytest.raises(FemtuneError, match=r"^me/it could not be pushed: "):
        send(pack(runs["drawn"], "me/it", "data"), api=nowhere)


def test_what_can_not_be_sent_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a repository's name"):
        pack(runs["drawn"], "me/it/all", "data")
    with pytest.raises(ConfigError, match="no owner"):
        pack(runs["drawn"], "it", "data")
    with pytest.raises(RunError, match="no model `best`"):
        pack(runs["drawn"], "me/it", "model")
    with pytest.raises(RunError, match="is no run"):
        pack(tmp_path, "me/it", "model")
    with pytest.raises(ConfigError, match="Draws can be pushed with --what data only"):
        pack(runs["trained"], "me/it", "model", draws=True)


def test_the_command_line_shows_what_it_would_send(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["push", str(runs["trained"]), "me/it", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    size = (runs["trained"] / "last" / "adapter_model.safetensors").stat().st_size
    assert re.search(rf"adapter_model.safetensors +{size:,}\n", shown)
    assert "weight_check" not in shown and "others can't load it by name" in shown
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["push", str(runs["trained"]), "me/it"]) == 1
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_without_a_token_it_stops_at_once(tmp_path: Path) -> None:
    code = "from femtune.cli.main import main; import sys; sys.exit(main(['push', 'nothing', 'me/it']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "hf auth login" in done.stderr, done.stderr
