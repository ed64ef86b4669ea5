"""Keys get into no run, log, report or message."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune import train
from femtune._util.redaction import Redactor, check_values, is_secret_name
from femtune.cli.main import main
from femtune.config import RL, Ask, Predict, Train
from femtune.engines.openai import engine
from femtune.engines.openai.http import RetryPolicy, shown
from femtune.errors import ConfigError
from femtune.mstep.config import Training

from ..models import tiny_model
from ..servers import Faults, letters, serving

KEY = "sk-proj-4f6a" + "Zq81_x-" * 4 + "end"
OTHERS = {"HF_TOKEN": "hf_" + "Ab3" * 9, "WANDB_API_KEY": "0f" * 20}
ONLY_TEXT = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=40)


# --- settings


@pytest.mark.parametrize(
    "url",
    [
        *("http://me:hush@host:8000/v1", "http://hush@host/v1", "https://host/v1?api_key=hush"),
        "http://one/v1,http://me:hush@two/v1",
    ],
)
def test_a_url_with_a_key_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"base_url holds.*OPENAI_API_KEY") as refused:
        Ask(engine="openai", base_url=url)
    assert "hush" not in str(refused.value)
    assert "hush" not in ", ".join(map(shown, url.split(",")))


def test_a_url_without_one_is_taken() -> None:
    Ask(engine="openai", base_url="http://[::1]:8000/v1, https://host/a@b/v1")


@pytest.mark.parametrize(
    "pair",
    [
        *("hf_token=hush", "hf-token=hush", "api_key=hush", "token=hush", "password=hush"),
        *('hf_overrides={"auth": {"access_token": "hush"}}', "model_loader_extra_config={"),
        *("client_secret=hush", "AWS_SECRET_ACCESS_KEY=hush", "s3_credentials=hush"),
    ],
)
def test_an_engine_argument_that_is_a_secret_is_refused(pair: str) -> None:
    if pair.endswith("{"):
        pair += '"aws_secret_access_key": "hush"}'
    with pytest.raises(ConfigError, match=r"is a secret.*in the environment") as refused:
        Ask(engine="vllm", engine_args=("seed=1", pair))
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        *("max_num_batched_tokens", "tokenizer_mode", "skip_tokenizer_init", "tensor_parallel_size"),
        *("long_prefill_token_threshold", "kv_cache_dtype", "disable_cascade_attn", "key_type"),
    ],
)
def test_other_engine_arguments_are_taken(name: str) -> None:
    Ask(engine="vllm", engine_args=(f"{name}=1",))


def test_a_launcher_with_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"launch holds HF_TOKEN.*which the processes inherit") as no:
        Train(launch="srun --export=ALL,HF_TOKEN=hush torchrun")
    assert "hush" not in str(no.value)
    Train(launch="torchrun --rdzv-endpoint=host:29400 --nproc-per-node=8")


def test_the_command_line_refuses_a_key_and_does_not_repeat_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    for words in (
        ("--engine", "openai", "--base-url", "http://me:hush@host/v1"),
        ("--engine", "vllm", "--engine-args", "hf_token=hush"),
        ("--launch", "env WANDB_API_KEY=hush torchrun"),
    ):
        out = tmp_path / "out"
        argv = ["train", str(data), "--model", "seedling", "--output-dir", str(out), *words]
        assert main(argv) == 1
        said = capsys.readouterr()
        assert said.err.startswith("ConfigError") and "hush" not in said.err + said.out
        assert not out.exists()


# --- every setting

SECRET = "Zq81x7Kd03mP"  # in each form below
LETTERS = "WkTbVcVoAhmqKNjEyyGBVBPRQDpOnZfBAM"  # as the Hub's tokens have no digits
FORMS = [
    f"me:{SECRET}@host:8000/v1",
    f"http://me:{SECRET}@host:8000/v1",
    f"https://{SECRET}@host/v1",
    f"http://host/v1;key={SECRET}",
    f"http://host/v1#key={SECRET}",
    f"http://host/v1?key={SECRET}",
    f"http://host/v1?a=b&api_key={SECRET}",
    f"http://host/v1;token={SECRET}",
    f"ray://me:{SECRET}@host:10001",
    f"postgres://me:{SECRET}@db/x",
    f"s3://AB:{SECRET}@bucket/data",
    f"https://host/x?sig={SECRET}",
    f"https://host/x?access_token={SECRET}",
    f"api_key={SECRET}",
    f"api-key: {SECRET}",
    f"API_KEY = {SECRET}",
    f"apikey={SECRET}",
    f"token={SECRET}",
    f"hf_token={SECRET}",
    f"HF_TOKEN={SECRET}",
    f"access_token: '{SECRET}'",
    f"password={SECRET}",
    f"password: {SECRET}",
    f"passwd={SECRET}",
    f"pwd={SECRET}",
    f"passphrase: {SECRET}",
    f"secret={SECRET}",
    f"client_secret={SECRET}",
    f"aws_secret_access_key={SECRET}",
    f"private_key={SECRET}",
    f"auth_key={SECRET}",
    f"credentials={SECRET}",
    f"cookie: {SECRET}",
    f"Authorization: Bearer {SECRET}",
    f"Authorization: Basic {SECRET}",
    f"authorization={SECRET}",
    f"Bearer {SECRET}",
    f'x={{"Authorization": "Bearer {SECRET}"}}',
    f'x={{"Authorization": "{SECRET}"}}',
    f'x={{"headers": {{"x-api-key": "{SECRET}"}}}}',
    f'x={{"a": [{{"token": "{SECRET}"}}]}}',
    f"x={{'password': '{SECRET}'}}",
    f"x={{Authorization: {SECRET}}}",
    f"--password={SECRET}",
    f"env WANDB_API_KEY={SECRET} torchrun",
    f"sk-proj-{SECRET}{SECRET}",
    f"hf_{SECRET}{SECRET}",
    f"hf_{LETTERS} in {SECRET}",
    f"sk-ant-api03-{SECRET}-{SECRET}{SECRET}",
    f"ghp_{SECRET}{SECRET}",
    f"see glpat-{SECRET}abcdef",
    f"eyJhbGciOiJ9.eyJ{SECRET}.{SECRET}",
    f"-----BEGIN RSA PRIVATE KEY----- {SECRET}",
    f"the value of the environment: env-{SECRET}",
]
TEXTS = [
    each.name
    for kind in (Train, Training, Predict)
    for each in fields(kind)
    if "str" in str(each.type) and "Literal" not in str(each.type)
]


def test_each_form_of_a_secret_is_refused_in_each_setting_that_takes_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line, a file of settings and Python alike, before a folder is made."""
    assert len(FORMS) >= 50 and len(set(TEXTS)) >= 25
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_SERVICE_TOKEN", f"env-{SECRET}")
    rows = [{"prompt": f"{n} + 2?", "answer": f"{n + 2}"} for n in range(40)]
    Path("data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = ["train", "data.jsonl", "--model", "seedling"]
    for form in FORMS:
        for name in sorted({*TEXTS, "model", "data", "output_dir", "wrong_name"}):
            value: Any = (form,) if "Names" in str(Train.__annotations__.get(name)) else form
            argv = [*command, f"--{name.replace('_', '-')}", form]
            assert (form, name, main(argv)) == (form, name, 1)
            Path("run.yaml").write_text(json.dumps({name: form}))
            assert (form, name, main([*command, "--config", "run.yaml"])) == (form, name, 1)
            if name == "output_dir" and form != FORMS[0]:
                continue  # it is looked at once the data are read: one form is enough here
            given = {"data": "data.jsonl", "model": "seedling", "max_new_tokens": 64, name: value}
            with pytest.raises(ConfigError) as refused:
                train(**given)
            assert SECRET not in str(refused.value)
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err, form
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", "run.yaml"}


@pytest.mark.parametrize(
    "url",
    [
        *("me:hush@host:8000/v1", "http://host/v1;key=hush", "http://host/v1#key=hush", "host/hush"),
        *("http://host/v1/key=hush", "http:///me:hush@host", "http://host:hush/v1", "http://a b/hush"),
    ],
)
def test_a_malformed_url_is_refused_and_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="base_url holds") as refused:
        Ask(engine="openai", base_url=url)
    assert "hush" not in str(refused.value)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL holds") as refused:
        engine.OpenAIEngine(Path("none"), tokenizer=None)  # type: ignore[arg-type]  # refused first
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        *("Rate from 1 to 5. The key point: is it true?", "Answer key: B", "mailto:ann@example.org"),
        *("The token count is 512.", "Is the password: policy good?", "ratio 3:1, see a@b.org"),
        *("/data/sk-learn/models/large", "Basic GPT4-level grammar", 'End with {"token": "A"}'),
        *("Secret: {answer}", "Qwen/Qwen3-1.7B", "a b:c d@e"),
    ],
)
def test_text_that_only_speaks_of_secrets_is_taken(text: str) -> None:
    Ask(instruction=text, rubric=text, served_model=None)


HARMLESS = {
    "instruction": [
        "Is the password: policy2024 fit for the guideline?",
        "Does the reply leak a secret (password, token, API key)? 1 to 5.",
        "Use a password: at-least-8-characters",
        "The API key: 32-character string",
        "The access key: F10-button",
        "Cookie: chocolate-chip-2-go",
        "authorization: OAuth2.0-based",
        "the bearer 12345abcdef of this letter",
        "End with the stop token: <|endoftext1|>",
        "A phishing mail asks for password=<secret2>",
        "As in https://<user>:<password2>@host/path",
        "As in git clone https://token@github.com/org/repo",
        "From:alice1984@example.org To:bob@example.org",
        "mailto:ann.smith2@example.org",
        "P:0.9@k=10, precision:recall@k5, accuracy:pass@1/pass@8",
        "Score:{score}@5",
        "@article{key2024:author@x}",
        "{'role':'user'}@x",
    ],
    "data": [
        "data/token=abc12345/part.jsonl",
        "data/key=user1234/part-0.parquet",
        "data/split:train=v2.jsonl",
        "hf://datasets/openai/gsm8k@refs/convert/parquet/train.parquet",
        "https://host/datasets/gsm8k/resolve/main/train.parquet?download=true",
        "abfss://container1@account.dfs.core.windows.net/data",
        "gsk_reviews_train_2024_v2_clean",
        "runs/2024-07-26@12:30/last",
    ],
    "model": [
        "meta-llama/Llama-3.1-8B-Instruct@main",
        "mistralai/Mistral-7B-Instruct-v0.3@e0bc86c23ce5aae1db576c8cca6f06f1f73af2db",
        "user@host:/models/qwen2.5-7b",
        "/data/me@lab/llama-3-8b",
        r"C:\Users\me2@lab\models",
        "models/sk-large-judge-v2-1234567890",
        "lora_r8_alpha16_dropout005",
        "hf_Qwen2_5_7B_Instruct_judge",
    ],
    "output_dir": ["runs/hf_smollm2_135m_instruct_seed1", "runs/rk-2024-train-part-one-x"],
    "launch": [
        "torchrun --nproc-per-node 8 --rdzv-endpoint host1:29500",
        "srun --mail-user=me2024@uni.edu --account=proj1234 torchrun",
        "mpirun -x HF_TOKEN torchrun",
    ],
    "engine_args": [
        "tokenizer=meta-llama/Llama-3.1-8B",
        'speculative_config={"model": "x/y-1b", "num_speculative_tokens": 5}',
        'hf_overrides={"bos_token_id": 1, "num_key_value_heads": 8}',
    ],
    "template_args": ["bos_token=", "eos_token=<|reserved_special_token_0|>", "date_string=26 Jul 2024"],
    "ray_address": ["ray://head-0.ns.svc.cluster.local:10001"],
    "base_url": ["http://10.0.0.3:8000/v1, https://host/api/v1/models/a@b"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, each) for name, values in HARMLESS.items() for each in values]
)
def test_a_harmless_setting_is_taken(name: str, value: str) -> None:
    """On the command line and as a field: settings as people have them."""
    check_values({name: value})
    if name not in ("data", "model", "output_dir"):
        Train(**{name: (value,) if name.endswith("_args") else value, **NEEDS.get(name, {})})


NEEDS: dict[str, dict[str, Any]] = {
    "engine_args": {"engine": "vllm"},
    "base_url": {"engine": "openai"},
    "ray_address": {"ray_workers": 2},
}


@pytest.mark.parametrize(
    "text",
    [
        *("password=hunter22", "api_key=abcd1234", "password: Tr0ub4dor3x", "http://me:plain@host"),
        *("me:plain2024@host:8000", f"HF_TOKEN=hf_{LETTERS}", f"gsk_{LETTERS}", f"sk_live_{SECRET * 2}"),
        KEY,
    ],
)
def test_weaker_secrets_of_these_forms_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="x holds"):
        check_values({"x": text})


def test_no_option_has_the_name_of_a_secret() -> None:
    names = {each.name for kind in (Train, Training, Predict, RL) for each in fields(kind)}
    assert not [name for name in names if is_secret_name(name)]


@pytest.mark.parametrize("size", [20_000])
def test_long_texts_are_looked_through_at_once(size: int) -> None:
    began = time.process_time()
    for text in ("a." * size, "token=" * size, "x:" * size, "eyJ" * size, "sk-" * size, "-" * size):
        with suppress(ConfigError):
            check_values({"text": text})
    assert time.process_time() - began < 20


# --- what servers say


@given(ONLY_TEXT, st.integers(0, 30), st.integers(0, 30), ONLY_TEXT)
def test_a_key_and_most_of_it_are_hidden(before: str, cut: int, end: int, after: str) -> None:
    part = KEY[cut : len(KEY) - end]
    hidden = Redactor(KEY)(before + part + after)
    assert not any(KEY[at : at + 8] in hidden for at in range(len(KEY) - 7))


@given(ONLY_TEXT)
def test_other_words_stay(words: str) -> None:
    if not any(KEY[at : at + 8] in words for at in range(len(KEY) - 7)):
        assert Redactor(KEY)(words) == words
    assert Redactor("")(words) == words


@pytest.mark.parametrize("key", ["x", "EMPTY", "a.b*c", "(" * 12, "\\" * 9])
def test_keys_of_all_lengths_and_letters_are_hidden_whole(key: str) -> None:
    assert Redactor(key)(f"<{key}>") == "<***>"


def echoes(body: dict[str, Any], count: int) -> Any:
    """Now and then an error that repeats the key, or most of it, or an answer that does."""
    said = {
        1: (400, {}, {"error": {"message": f"Bearer {KEY} may not ask this"}}),
        2: (400, {}, f"<html>the headers were: authorization: Bearer {KEY[:-6]}"),
        3: (422, {}, {"detail": [{"input": {"authorization": KEY[4:]}}]}),
        4: (200, {}, f"Bearer {KEY} is no JSON"),
        5: (200, {}, {"choices": [], "echo": KEY[:-4]}),
        6: (200, {}, {"choices": [{"text": KEY, "finish_reason": f"refused {KEY}"}]}),
    }
    return said.get(count % 12) if count > 20 else None  # the first ones are looked at as they are


def all_bytes(root: Path) -> str:
    """All that a run holds: names, files, and the values of tables."""
    said = []
    for path in sorted(root.rglob("*")):
        said.append(str(path))
        if path.is_file():
            said.append(path.read_bytes().decode(errors="replace"))
        if path.suffix == ".parquet":
            said.append(repr(pq.read_table(path).to_pylist()) + repr(pq.read_schema(path).metadata))
    return "\n".join(said)


def check_absent(said: str) -> None:
    assert not [KEY[at : at + 9] for at in range(len(KEY) - 8) if KEY[at : at + 9] in said]
    assert not [name for name, value in OTHERS.items() if value in said]


@pytest.fixture
def sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: Any
) -> Callable[[Faults], tuple[int, str, Path]]:
    """Runs `sample` through a server: its status, all that it said, and its folder."""
    model = tiny_model(tmp_path / "model", num_ends=0, max_position_embeddings=2048)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"prompt": "{n} + 1?", "answer": "{n + 1}"}}\n' for n in range(40)))
    for name, value in {"OPENAI_API_KEY": KEY, **OTHERS}.items():
        monkeypatch.setenv(name, value)

    monkeypatch.setattr(engine, "RetryPolicy", partial(RetryPolicy, backoff_s=0.01))

    def write(prompt: str, seed: int) -> str:
        if " + 1?" not in prompt:
            return letters(prompt, seed)
        number = prompt.partition(" + 1?")[0].split()[-1]
        return f"One more.\nAnswer: {int(number) + 1}"

    def run(faults: Faults) -> tuple[int, str, Path]:
        caplog.set_level(logging.DEBUG)
        out = tmp_path / "run"
        with serving(write=write, faults=faults) as server:
            argv = ["sample", str(data), "--model", str(model), "--output-dir", str(out)]
            argv += ["--engine", "openai", "--base-url", server.url, "--max-new-tokens", "40"]
            status = main([*argv, "--scheme", "rejection:3", "--max-batch", "1"])
        said = capsys.readouterr()
        return status, said.out + said.err + caplog.text, out

    return run


def test_a_key_that_a_server_repeats_gets_into_no_run_and_no_message(
    sampled: Callable[[Faults], tuple[int, str, Path]],
) -> None:
    status, said, root = sampled(Faults(key=KEY, completion=echoes))
    draws = pq.read_table(root / "iteration-001" / "draws").to_pylist()
    errors = {row["error"] for row in draws if row.get("error")}
    assert status == 0, said
    assert any("Bearer *** may not ask this" in error for error in errors)
    assert any("refused ***" in error for error in errors)
    check_absent(said + all_bytes(root))


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_run_that_ends_by_such_an_error_does_not_tell_the_key(
    status: int, sampled: Callable[[Faults], tuple[int, str, Path]]
) -> None:
    broken = (status, {"retry-after": "0"}, {"error": {"message": f"no: {KEY}, {KEY[:-4]}"}})
    faults = Faults(key=KEY, completion=lambda body, count: broken if count > 30 else None)
    ended, said, root = sampled(faults)
    assert ended == 1 and "EngineError" in said and "no: ***" in said
    check_absent(said + all_bytes(root))


def test_settings_hold_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    check_absent(repr(asdict(Train(engine="openai"))))
