"""CoinGecko on loopback: a real HTTP server that answers /coins/markets from a list of coins, and fails on command.

`python tests/stub_coingecko.py` serves the newest sample snapshot until Ctrl-C, and says where.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

SAMPLE_FILES = sorted(Path(__file__).with_name("data").glob("*.json.gz"))


@dataclass
class Answer:
    """One HTTP answer. `body` is JSON unless it is bytes; a `length` other than the body's cuts the answer short.

    With `reset` the connection breaks in mid-body. `raw` is sent in place of all that.
    """

    body: object = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    reset: bool = False
    raw: bytes = b""


@dataclass
class Request:
    """One call that the stub received, at `time` (s, monotonic)."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    time: float


class StubCoinGecko:
    """Serves `coins` in pages of per_page. `script(page, attempt)` may return an Answer that takes a page's place.

    `attempt` counts the calls for that page from 1. `requests` holds the calls received so far.
    """

    def __init__(self, coins: list) -> None:
        self.coins = coins
        self.script: Callable[[int, int], Answer | None] = lambda page, attempt: None
        self.requests: list[Request] = []
        self.received = threading.Condition()
        self.released = threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = dict(parse_qsl(parts.query))
                with stub.received:
                    stub.requests.append(Request(parts.path, query, dict(self.headers), time.monotonic()))
                    attempt = sum(request.query.get("page") == query.get("page") for request in stub.requests)
                    stub.received.notify_all()
                answer = stub.answer(parts.path, query, attempt)
                if answer.raw:
                    self.wfile.write(answer.raw)
                    self.close_connection = True
                    return
                body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body) if answer.length is None else answer.length))
                self.end_headers()
                if answer.reset:
                    self.wfile.write(body[: len(body) // 2])
                    # closed with data unsent: the other end gets a reset, not an end
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    return
                self.wfile.write(body)
                if answer.length is not None:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Nothing: the tests read `requests`."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Nothing: a client that went away, as a killed one does, is no error of the stub."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/api/v3"

    def answer(self, path: str, query: dict[str, str], attempt: int) -> Answer:
        if path != "/api/v3/coins/markets":
            return Answer({"error": "not found"}, 404)
        page, per_page = int(query["page"]), int(query["per_page"])
        scripted = self.script(page, attempt)
        if scripted:
            return scripted
        return Answer(self.coins[(page - 1) * per_page : page * per_page])

    def hang(self) -> Answer:
        """No answer until the stub is closed."""
        self.released.wait()
        return Answer([])

    def wait_for_requests(self, count: int, timeout: float = 20) -> None:
        """Return once `count` calls have come. Raises TimeoutError."""
        with self.received:
            if not self.received.wait_for(lambda: len(self.requests) >= count, timeout):
                raise TimeoutError(f"{len(self.requests)} calls came within {timeout} s, not {count}")

    @property
    def pages(self) -> list[int]:
        return [int(request.query["page"]) for request in self.requests]

    def __enter__(self) -> StubCoinGecko:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


def read_sample(path: Path) -> list[dict]:
    """The coins of a sample snapshot."""
    return json.loads(gzip.decompress(path.read_bytes()))["coins"]


if __name__ == "__main__":
    with StubCoinGecko(read_sample(SAMPLE_FILES[-1])) as stub:
        print(f"COINGECKO_BASE_URL={stub.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
