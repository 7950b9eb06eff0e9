"""CoinGecko on loopback: a real HTTP server that answers /coins/markets from a list of coins, and fails on command.

`python tests/stub_coingecko.py` serves the newest sample snapshot until Ctrl-C, and says where.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

SAMPLE_FILES = sorted(Path(__file__).with_name("data").glob("*.json.gz"))
FORBIDDEN = {"status": {"error_code": 403, "error_message": "This endpoint is temporarily unavailable"}}  # may pass


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
    """Serves `coins` in pages of per_page, and their daily history.

    `script(page, attempt)` may return an Answer that takes a page's place, `history_script(coin_id, attempt)` one that
    takes a history's; `attempt` counts the calls for the same from 1. `headers` go with every answer, Date among them.
    `requests` holds the calls received so far.
    """

    def __init__(self, coins: list) -> None:
        self.coins = coins
        self.script: Callable[[int, int], Answer | None] = lambda page, attempt: None
        self.history_script: Callable[[str, int], Answer | None] = lambda coin_id, attempt: None
        self.headers: dict[str, str] = {}
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
                    asked = (parts.path, query.get("page"))
                    attempt = sum((request.path, request.query.get("page")) == asked for request in stub.requests)
                    stub.received.notify_all()
                answer = stub.answer(parts.path, query, attempt)
                if answer.raw:
                    self.wfile.write(answer.raw)
                    self.close_connection = True
                    return
                body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response_only(answer.status)
                for name, value in ({"Date": self.date_time_string()} | stub.headers | answer.headers).items():
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
        history = re.fullmatch("/api/v3/coins/([^/]+)/market_chart", path)
        if history:
            coin_id = unquote(history[1])
            coin = next((coin for coin in self.coins if coin["id"] == coin_id), None)
            unknown = None if coin else Answer({"error": "coin not found"}, 404)
            scripted = self.history_script(coin_id, attempt) or unknown
            return scripted or Answer(make_history(coin, int(query["days"]), datetime.now(UTC)))
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
    def histories(self) -> list[str]:
        """The coins whose history was asked for, in the order of the calls."""
        return [unquote(request.path.split("/")[4]) for request in self.requests if "market_chart" in request.path]

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


def make_history(coin: dict, days: int, now: datetime) -> dict[str, list[list]]:
    """What /coins/{id}/market_chart answers for a coin: a point at 00:00 UTC from `days` ago to today, and one now.

    A day's figures depend on its date alone, and come close to the coin's own of today.
    """
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    points = []
    for moment in [*(today - timedelta(days=day) for day in range(days, -1, -1)), now]:
        factor = 1 + 0.1 * math.sin(moment.timestamp() / 86_400 / 5)
        points.append((int(moment.timestamp() * 1000), factor))
    return {
        kind: [[at, None if coin[key] is None else coin[key] * factor] for at, factor in points]
        for kind, key in (("prices", "current_price"), ("market_caps", "market_cap"), ("total_volumes", "total_volume"))
    }


def read_sample(path: Path) -> list[dict]:
    """The coins of a sample snapshot."""
    return json.loads(gzip.decompress(path.read_bytes()))["coins"]


if __name__ == "__main__":
    with StubCoinGecko(read_sample(SAMPLE_FILES[-1])) as stub:
        print(f"COINGECKO_BASE_URL={stub.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
