"""`femtune view`: hostile text is text, nobody else may look, and the command ends in order."""

from __future__ import annotations

import re
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit
from urllib.request import Request as UrlRequest
from urllib.request import urlopen

import pytest

from femtune.cli.main import main
from femtune.reporting.browser.serve import open_in_browser
from femtune.reporting.browser.store import Name
from femtune.reporting.browser.texts import visible
from femtune.runs.draws import write_draws
from femtune.runs.run import Run

from ..views import (
    HOSTILE,
    TOKEN,
    Folder,
    Look,
    Page,
    looking,
    made,
    make_folder,
    make_hostile,
    page,
    start,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Runs in a folder whose name is a pattern."""
    return make_folder(tmp_path_factory.mktemp("view") / "a*b [1] ?")


@pytest.fixture
def look() -> Iterator[Look]:
    with looking() as opened:
        yield opened


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hostile(tmp_path_factory.mktemp("hostile") / "<script>alert('run')</script>&\"")


OURS = {
    *("html", "head", "meta", "title", "link", "body", "header", "main", "nav", "section", "article"),
    *("aside", "details", "summary", "div", "p", "span", "a", "b", "strong", "code", "br", "mark"),
    *("del", "ins", "h1", "h2", "h3", "ul", "ol", "li", "dl", "dt", "dd", "figure", "figcaption"),
    *("table", "thead", "tbody", "tr", "th", "td", "form", "label", "input", "select", "option"),
    *("button", "svg", "rect"),
}


STRANGE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)


def clean(html: str) -> Page:
    """A page that has no element, attribute or character that is not ours."""
    shown = Page(html)
    assert {tag for tag, _ in shown.tags} <= OURS
    for _, attributes in shown.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc")]
        for name in ("href", "action", "src"):
            assert (attributes.get(name) or "/").startswith(("/", "#main"))
    for tag, attributes in shown.tags:
        if tag != "input":  # gives back what was typed, as it was typed
            assert not [value for value in attributes.values() if value and STRANGE.search(value)]
    assert not STRANGE.search(shown.shown)
    return shown


def test_hostile_text_is_text(look: Look, hostile: Path) -> None:
    client = look(hostile)
    listed = clean(client.get("/draws").text)
    assert len(listed.names()) == len(HOSTILE)
    for name, text in zip(listed.names(), HOSTILE, strict=True):
        own = clean(client.get("/draw", params={"name": name}).text)
        seen = "".join(Page(f"<p>{visible(text)}</p>").shown)
        assert own.shown.count(seen) >= 5  # rationale, answer, correct answer, why not, prompts
        id = Name.read(name).problem_id
        assert client.get("/problem", params={"id": id}).status_code == 200
        clean(client.get("/problem", params={"id": id}).text)
        clean(client.get("/difference", params={"a": name, "b": listed.names()[0]}).text)
        for field in ("text", "problem", "answer", "correct", "reason", "prompt", "finish"):
            found = client.get("/draws", params={field: text})
            assert name in clean(found.text).names()
        clean(client.get("/draws", params={text: text}).text)
        clean(client.get("/draw", params={"name": text}).text)
        clean(client.get(f"/{quote(text)}").text)


def test_text_of_a_megabyte_is_cut(look: Look, tmp_path: Path) -> None:
    long = "A long line <b>. " * 70_000
    draws = [made(f"{long}\nAnswer: 3"), made(f"{long[1:]}\nAnswer: 3", index=1)]
    write_draws(Run(tmp_path / "run").shard(1, "draws", 0), draws, {})
    client, name = look(tmp_path), "run/draws/1/0/0/p"
    for path in ("/", f"/draw?name={name}", "/problem?id=p", f"/difference?a={name}&b={name[:-3]}1/p"):
        answer = client.get(path.replace("0/0/1/p", "0/1/p"))
        assert answer.status_code == 200
        assert len(answer.text) < 400_000
    shown = page(client, "/draw", name=name)
    (more,) = [link for link in shown.links("/draw?") if "whole=1" in link]
    whole = page(client, more)
    assert long.strip() in whole.shown


def test_strange_characters_are_codes() -> None:
    assert "U+202E" in visible("a\u202eb") and "\u202e" not in visible("a\u202eb")
    assert visible("\x00" * 1000) == '<span class="odd">U+0000 ×1,000</span>'
    assert visible("a\tb\r\nc\n") == "a\tb\r\nc\n"  # these are no strange ones
    assert visible("👩\u200d🔬 خوش\u200cحال") == "👩\u200d🔬 خوش\u200cحال"


# --- who may look


def test_nobody_looks_without_the_token(look: Look, folder: Folder) -> None:
    paths = ("/", "/draw", "/problem", "/difference", "/export.jsonl", "/style.css", "/icon.svg", "/x")
    for known in (None, "wrong", TOKEN + "x", TOKEN[:-1]):
        client = look(folder.root, token=known)
        for path in (
            *paths,
            "/draws?token=wrong",
            f"/draws?token={TOKEN}x",
            "/draws?token=",
            "/draws?token=é",
        ):
            answer = client.get(path)
            assert answer.status_code == 403
            assert "pps" not in answer.text and TOKEN not in answer.text


def test_the_address_with_the_token_gives_the_cookie(look: Look, folder: Folder) -> None:
    client = look(folder.root, token=None)
    answer = client.get(f"/draws?kept=no&token={TOKEN}&text=a%26b", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/draws?kept=no&text=a%26b")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "domain" not in cookie
    assert client.get("/draws").status_code == 200
    assert TOKEN not in client.get("/draws").text
    assert client.get("/draws?token=wrong").status_code == 403  # whoever says a token says the right one


def test_the_way_on_stays_here(look: Look, folder: Folder) -> None:
    client = look(folder.root, token=None)
    answer = client.get(f"http://127.0.0.1:1234//evil.example/?token={TOKEN}", follow_redirects=False)
    assert answer.headers["location"] == "/evil.example/"
    # a redirect that another site began would come without the cookie
    sent = {"sec-fetch-site": "cross-site"}
    answer = client.get(f"/draws?text=%22%3E%3Cb%3E&token={TOKEN}", headers=sent, follow_redirects=False)
    assert answer.status_code == 200
    assert {tag for tag, _ in Page(answer.text).tags} == {"html", "meta", "title", "a"}
    assert Page(answer.text).links("/") == ["/draws?text=%22%3E%3Cb%3E"]


def test_other_names_of_this_machine_are_refused(look: Look, folder: Folder) -> None:
    client = look(folder.root)
    for host in ("evil.example", "evil.example:1234", "127.0.0.1.evil.example", "0.0.0.0", ""):
        assert client.get("/draws", headers={"host": host}).status_code == 400
    for host in ("localhost:80", "127.0.0.1"):
        assert client.get("/draws", headers={"host": host}).status_code == 200


def test_pages_are_only_read(look: Look, folder: Folder) -> None:
    client = look(folder.root)
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        for path in ("/", "/draw", "/export.parquet", "/style.css"):
            assert client.request(method, path).status_code == 405
    assert client.head("/").status_code == 200


def test_each_answer_has_the_headers(look: Look, folder: Folder) -> None:
    client = look(folder.root)
    answers = [client.get(path) for path in ("/", "/x", "/draws?x=1", "/style.css", "/export.jsonl")]
    answers += [
        client.get("/draws?token=x"),
        client.post("/"),
        client.get("/draws", headers={"host": "x"}),
    ]
    for answer in answers:
        assert answer.headers["content-security-policy"].startswith(
            "default-src 'none'; style-src 'self'"
        )
        assert "script" not in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


# --- the command


def test_the_command_serves_till_ctrl_c(folder: Folder) -> None:
    process, address = start(str(folder.root))
    try:
        host = urlsplit(address)
        token = dict(parse_qsl(host.query))["token"]
        cookie = f"femtune-view-{host.port}={token}"
        with urlopen(
            UrlRequest(f"http://127.0.0.1:{host.port}/draws", headers={"Cookie": cookie})
        ) as answer:
            assert f"{len(folder.draws):,}" in answer.read().decode()
        assert host.port is not None
        with socket.socket() as other, pytest.raises(OSError):
            other.settimeout(5)
            other.connect(("127.0.0.2", host.port))  # another address of this machine: not served
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert (out, err) == ("", "")  # no log, and so no token in one


def test_the_command_ends_while_it_still_reads(folder: Folder) -> None:
    process, _ = start(str(folder.root))
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


def test_a_browser_is_opened_without_the_token_on_a_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    address = f"http://127.0.0.1:1/?token={TOKEN}"
    assert open_in_browser(address, tmp_path)
    (file,) = tmp_path.iterdir()
    assert opened == [file.as_uri()] and TOKEN not in opened[0]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Page(file.read_text()).tags[0][1]["content"] == f"0; url={address}"


def test_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Folder
) -> None:
    def refusal(*argv: str) -> str:
        assert main(["view", *argv]) == 1
        return " ".join(capsys.readouterr().err.split())

    assert "holds no run" in refusal(str(tmp_path))
    assert "holds no run" in refusal(str(folder.root), str(tmp_path / "none"))
    assert "Give one or more folders of runs" in refusal()
    assert "port must be from 0" in refusal(str(folder.root), "--port", "70000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert f"port {number} can't be used" in refusal(str(folder.root), "--port", str(number))
    for name in [name for name in sys.modules if name.startswith("femtune.reporting.browser.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert "femtune view needs duckdb: pip install 'femtune[view]'" in refusal(str(folder.root))
