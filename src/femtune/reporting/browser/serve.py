"""`femtune view`: a port of this machine, an address with a token in it, and a quiet end."""

from __future__ import annotations

import logging
import secrets
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from femtune.errors import ConfigError
from femtune.reporting.browser.runs import check_places

if TYPE_CHECKING:
    from femtune.reporting.browser.index import Index

HOST = "127.0.0.1"

log = logging.getLogger("femtune")


def view(places: Sequence[Path], port: int, open_browser: bool, say: Callable[[str], None]) -> None:
    """Serve pages over the runs at these places until Ctrl-C; `say` is told the address.

    Raises RunError where a place has no run, ConfigError where the port is taken or a package missing.
    """
    if not places:
        raise ConfigError("give the folder of a run, or several: femtune view runs/judge")
    check_places(places)
    with listening(port) as sock, tempfile.TemporaryDirectory(prefix="femtune-view-") as folder:
        try:
            from femtune.reporting.browser.index import Index

            index = Index(places)
            reading = threading.Thread(target=_read, args=[index], daemon=True)
            reading.start()  # while the rest is imported, which takes as long
            import uvicorn

            from femtune.reporting.browser.app import make_app
        except ModuleNotFoundError as error:
            raise ConfigError(f"femtune view needs {error.name}: pip install 'femtune[view]'") from error
        token, number = secrets.token_urlsafe(32), sock.getsockname()[1]
        address = f"http://{HOST}:{number}/?token={token}"

        def ready() -> None:
            say(address)
            if open_browser and not open_in_browser(address, Path(folder)):
                log.warning("no browser was found: open the address by hand.")

        config = uvicorn.Config(
            make_app(index, token, f"femtune-view-{number}", ready),
            log_level="critical",  # faults are told by `failed`; a download that Ctrl-C ends is none
            access_log=False,  # the address of the first request has the token in it
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        with suppress(KeyboardInterrupt):  # uvicorn ends in order, then passes it on
            uvicorn.Server(config).run(sockets=[sock])
        index.close()
        reading.join()


def _read(index: Index) -> None:
    """Read what there is before somebody asks for it."""
    from femtune.reporting.browser.database import Closed

    with suppress(Closed):
        index.refresh()


def listening(port: int) -> socket.socket:
    """A socket at a port of this machine alone; 0: one that is free. Raises ConfigError."""
    if not 0 <= port < 65536:
        raise ConfigError(f"port must be from 0 to 65535, got {port}.")
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((HOST, port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise ConfigError(
            f"port {port} can't be had: {error.strerror}. Leave out --port to get a free one."
        ) from error
    return made


def open_in_browser(address: str, folder: Path) -> bool:
    """Open a browser, by a file that only we can read: command lines are for all users to see."""
    page = folder / "open.html"
    page.touch(mode=0o600)
    page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(address)}">')
    return webbrowser.open(page.as_uri())
