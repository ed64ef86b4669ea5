"""What femtune starts listens on loopback alone, and to those who have its token."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'femtune[ray]'")

# A pool of one worker; says who listens in its processes, where, and whether its token is in a file.
POOL = """
import json, os, subprocess, sys
from functools import partial
from pathlib import Path
import psutil
from femtune.estep.ray_pool import Pool, WorkerSpec

def hire():
    from femtune.estep.scheduler import Sampler
    from femtune.engines.fake import FakeEngine
    from femtune.data.prompts import Prompts
    from femtune.types import Sampling
    return Sampler(FakeEngine(lambda prompt, seed: "4"), None, Prompts(), None, Sampling(8))

if __name__ == "__main__":
    if "early" in sys.argv:
        import ray
    pool = Pool(hire, WorkerSpec(1, gpus=0))
    import ray
    ray.get(pool._workers[0].doing)
    me = psutil.Process()
    found = [
        [process.name(), connection.laddr.ip]
        for process in [me, *me.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    address = ray.get_runtime_context().gcs_address
    token = os.environ["RAY_AUTH_TOKEN"]
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ask = "import sys; from ray._raylet import GcsClient; " + (
        "print(GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None, timeout=20))"
    )
    clients = {}
    for name, own in {"none": None, "another": "f" * 64, "right": token}.items():
        mode = {"RAY_AUTH_MODE": "disabled"} if own is None else {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": own
        }
        done = subprocess.run(
            [sys.executable, "-c", ask, address], env=bare | mode | {"HOME": os.getcwd()},
            capture_output=True, text=True,
        )
        clients[name] = [done.returncode, done.stderr]
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    files = [str(path) for path in session.rglob("*") if path.is_file()]
    told = [path for path in files if token.encode() in Path(path).read_bytes()]
    print(json.dumps([found, clients, len(files), told]))
    pool.close()
"""


@pytest.fixture(scope="module", params=["", "early"], ids=["", "Ray was imported before"])
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where a cluster's processes listen, what clients get of it, its files, those with the token."""
    folder: Path = tmp_path_factory.mktemp("pool")
    (folder / "ray_pool.py").write_text(POOL)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "ray_pool.py", request.param],
        capture_output=True,
        text=True,
        cwd=folder,
        env=env | {"HOME": str(folder)},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / ".ray").exists()  # where Ray would write a token for all to read
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_cluster_of_ones_own_listens_on_loopback_alone(pool: Any) -> None:
    found = pool[0]
    assert {"gcs_server", "raylet"} <= {name for name, _ in found} and len(found) >= 5
    for name, address in found:
        ip = ipaddress.ip_address(address)
        assert (getattr(ip, "ipv4_mapped", None) or ip).is_loopback, (name, address)


@pytest.mark.slow
def test_a_cluster_of_ones_own_answers_who_has_its_token(pool: Any) -> None:
    clients = pool[1]
    assert clients["right"][0] == 0
    for name in ("none", "another"):
        status, said = clients[name]
        assert status != 0 and "InvalidAuthToken" in said


@pytest.mark.slow
def test_the_token_of_a_cluster_stands_in_no_file(pool: Any) -> None:
    _, _, num_files, told = pool
    assert num_files > 5 and not told
