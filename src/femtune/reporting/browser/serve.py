"""`femtune view`: a server on loopback, an address with a token, and a clean shutdown."""

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
    """Serve pages over the runs at these places until Ctrl-C; `say` receives the address.

    Raises RunError if a place has no run, ConfigError if the port is in use or a package is missing.
    """
    if not places:
        raise ConfigError("No run is given. Give one or more folders of runs: femtune view runs/judge")
    check_places(places)
    with listening(port) as sock, tempfile.TemporaryDirectory(prefix="femtune-view-") as folder:
        try:
            from femtune.reporting.browser.index import Index

            index = Index(places)
            reading = threading.Thread(target=_read, args=[index], daemon=True)
            reading.start()  # in parallel with the imports, which take as long
            import uvicorn

            from femtune.reporting.browser.app import make_app
        except ModuleNotFoundError as error:
            raise ConfigError(f"femtune view needs {error.name}: pip install 'femtune[view]'") from error
        token, number = secrets.token_urlsafe(32), sock.getsockname()[1]
        address = f"http://{HOST}:{number}/?token={token}"

        def ready() -> None:
            say(address)
            if open_browser and not open_in_browser(address, Path(folder)):
                log.warning("No browser was found. Open the address yourself.")

        config = uvicorn.Config(
            make_app(index, token, f"femtune-view-{number}", ready),
            log_level="critical",  # `failed` logs errors; an interrupted download is not an error
            access_log=False,  # the address of the first request contains the token
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        with suppress(KeyboardInterrupt):  # uvicorn shuts down cleanly, then raises it again
            uvicorn.Server(config).run(sockets=[sock])
        index.close()
        reading.join()


def _read(index: Index) -> None:
    """Load the index before the first request."""
    from femtune.reporting.browser.database import Closed

    with suppress(Closed):
        index.refresh()


def listening(port: int) -> socket.socket:
    """Return a listening socket on loopback; port 0 selects a free one. Raises ConfigError."""
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
            f"port {port} can't be used: {error.strerror}. Leave out --port to get a free one."
        ) from error
    return made


def open_in_browser(address: str, folder: Path) -> bool:
    """Open a browser through a private file: all users can see command lines, and so the token."""
    page = folder / "open.html"
    page.touch(mode=0o600)
    page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(address)}">')
    return webbrowser.open(page.as_uri())
