"""A soak: hundreds of runs against every fault at random, with readers, a second run and kills beside them.

`-s` shows its counts.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from random import Random

import mysql.connector
import pytest

from tests.conftest import Scripts, make_coins, posix_only
from tests.own_server import OwnDatabase
from tests.stub_coingecko import Answer, StubCoinGecko
from tests.test_api_faults import FINAL, PASSING
from tests.test_clock import http_date

RUNS = 300
COINS = 600
DOCUMENTED = {0, 3, 4, 5, 130, 143, -signal.SIGKILL}
KEPT = re.compile(r"raw snapshot kept in (\S+)\.pending\.json\.gz")


class Market:
    """The lists that CoinGecko gave: each has a version, which is the price of all its coins."""

    def __init__(self, api: StubCoinGecko) -> None:
        self.api = api
        self.version = 0
        self.sizes: dict[float, int] = {}  # usable coins, by version

    def change(self, random: Random) -> None:
        """A new list, of a few coins more or less."""
        self.version += 1
        coins = make_coins(COINS - random.randrange(5))
        for coin in coins:
            coin["current_price"] = float(self.version)
        unusable = random.choice([0, 0, 0, 1, 4])
        for coin in coins[-unusable:] if unusable else ():
            coin["name"] = None
        self.sizes[float(self.version)] = len(coins) - unusable
        self.api.coins = coins
        self.api.requests.clear()
        self.api.headers = {}
        self.api.script = lambda page, attempt: None


# ------------------------------------------------------------------------------------------------- what may go wrong


def on_a_page(market: Market, random: Random, answer: Callable[[StubCoinGecko], Answer], attempts: int) -> None:
    at = random.randint(1, 3)
    market.api.script = lambda page, attempt: answer(market.api) if page == at and attempt <= attempts else None


def break_the_api(market: Market, random: Random) -> tuple[str, set[int]]:
    """One fault of CoinGecko, its name, and the exit codes that a run without another fault may have."""
    api = market.api
    kind = random.choice(
        ["none", "none", "passing", "passing", "lasting", "final", "short", "missing", "clock", "deep"]
    )
    if kind == "passing":
        name = random.choice(list(PASSING))
        on_a_page(market, random, PASSING[name], 1)
        return f"passing {name}", {0}
    if kind in ("lasting", "final"):
        faults = PASSING if kind == "lasting" else FINAL
        name = random.choice(list(faults))
        on_a_page(market, random, faults[name], 99)
        return f"{kind} {name}", {3}
    if kind == "short":
        at, rows = random.randint(1, 2), random.choice([0, 1, 150, 249])
        short = api.coins[250 * (at - 1) :][:rows]
        lasts = random.random() < 0.5
        api.script = lambda page, attempt: Answer(short) if page == at and (lasts or attempt == 1) else None
        return f"short page, {'for ever' if lasts else 'once'}", {3} if lasts else {0}
    if kind == "missing":
        api.coins = api.coins[30:]
        return "the largest coins are missing", {3}
    if kind == "clock":
        api.headers = {"Date": http_date(timedelta(hours=random.choice([-26, 26])))}
        return "a wrong clock", {3}
    if kind == "deep":
        api.coins[5]["roi"] = json.loads("[" * 900 + "]" * 900)
        return "a deep row", {0}
    return "none", {0}


@contextmanager
def disturbed(api: StubCoinGecko, database: OwnDatabase, process: subprocess.Popen, random: Random) -> Iterator[str]:
    """Something done to the run or to its database, at a random moment once it has called the API."""
    kinds = ["SIGKILL", "SIGTERM", "Ctrl-C", "session", "session", "rows", "read-only", "server"]
    kind = random.choice(["nothing"] * 7 + kinds)
    moment = random.uniform(0, 0.8)

    def act() -> None:
        if kind == "session":
            database.cut_sessions()
        elif kind == "rows":
            with database.connect() as other, other.cursor() as cursor, suppress(mysql.connector.Error):
                cursor.execute("SELECT coin_id FROM crypto_prices LIMIT 50 FOR UPDATE")
                cursor.fetchall()
                process.wait(1)
        elif kind == "server":
            database.own.restart()  # killed, as when the machine loses power
        elif kind == "read-only":
            with database.globally(read_only=1), suppress(subprocess.TimeoutExpired):
                process.wait(1)
        elif kind != "nothing":
            number = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}[kind]
            process.send_signal(number)

    def wait_and_act() -> None:
        with suppress(subprocess.TimeoutExpired, TimeoutError):
            api.wait_for_requests(1, timeout=5)
            process.wait(moment)
        with suppress(subprocess.TimeoutExpired):
            act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    yield kind
    thread.join()


# ------------------------------------------------------------------------------------------------- what is looked at

NEWEST = """
SELECT COUNT(*), COUNT(market_cap_tier), COUNT(DISTINCT current_price), MAX(current_price)
FROM crypto_prices WHERE timestamp = (SELECT MAX(timestamp) FROM crypto_prices)
"""


class Reader:
    """Sums the newest snapshot every 50 ms, as a dashboard may at any moment; keeps what it saw."""

    def __init__(self, database: OwnDatabase) -> None:
        self.seen: Counter[tuple] = Counter()
        self.database = database
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.read)

    def __enter__(self) -> Reader:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def read(self) -> None:
        while not self.ended.is_set():
            with suppress(mysql.connector.Error), self.database.connect() as session, session.cursor() as cursor:
                session.autocommit = True
                while not self.ended.wait(0.05):
                    cursor.execute(NEWEST)
                    self.seen[cursor.fetchone()] += 1


def assert_whole(market: Market, newest: tuple) -> float | None:
    """The newest snapshot is one list that CoinGecko gave, with all its usable coins and their tiers: its version."""
    coins, tiers, versions, version = newest
    if coins:
        assert (versions, coins, tiers) == (1, market.sizes[version], market.sizes[version])
    return version


@posix_only
@pytest.mark.slow
def test_whatever_happens_the_newest_snapshot_is_a_list_that_coingecko_gave(
    scripts: Scripts, api: StubCoinGecko, own_database: OwnDatabase
):
    random = Random(15)
    market = Market(api)
    counts: Counter[str] = Counter()
    kept: set[str] = set()
    slow_runs = 0
    scripts.settings |= {
        **{"COIN_LIMIT": str(COINS), "REQUESTS_PER_MINUTE": "10000", "RETRY_BUDGET_SECONDS": "1"},
        **{"HTTP_TIMEOUT_SECONDS": "1", "SNAPSHOT_KEEP": "100000", "PYTHONWARNINGS": "ignore"},
    }
    before = None
    with Reader(own_database) as reader:
        for _ in range(RUNS):
            market.change(random)
            fault, expected = break_the_api(market, random)
            started = time.monotonic()
            run = scripts.start("pipeline_orchestrator.py")
            second = scripts.start("pipeline_orchestrator.py") if random.random() < 0.1 else None
            with disturbed(api, own_database, run, random) as disturbance:
                results = [scripts.finish(each) for each in (run, second) if each]
            status = scripts.pipeline("--status", "--max-age", "600") if random.random() < 0.2 else None
            slow_runs += time.monotonic() - started > 30

            codes = [result.returncode for result in results]
            counts.update([fault, f"disturbed by {disturbance}", *(f"exit code {code}" for code in codes)])
            what = f"run {market.version}: {fault}, disturbed by {disturbance}: {codes}\n{results[0].stderr}"
            assert set(codes) <= DOCUMENTED, what
            if disturbance in ("nothing", "session", "rows", "read-only") and not second:
                assert codes[0] in expected, what
            assert not any("Traceback" in result.stderr for result in results), what
            assert status is None or status.returncode in (0, 6), status.stderr

            own_database.execute("SELECT 1 FROM crypto_prices FOR UPDATE")  # a killed session's transaction ends first
            version = assert_whole(market, own_database.execute(NEWEST)[0])
            assert version == (market.version if 0 in codes else version), what
            assert version in (before, market.version), what
            before = version
            kept |= {path for result in results for path in KEPT.findall(result.stderr)}
            lost = [
                path
                for path in kept
                if not any(Path(f"{path}{end}").exists() for end in (".pending.json.gz", ".json.gz"))
            ]
            assert lost == [], what

    for seen in reader.seen:
        assert_whole(market, seen)
    pending = len(scripts.kept("*.pending.json.gz"))
    print(f"\n{RUNS} runs, {slow_runs} of them over 30 s; {reader.seen.total()} readings; {len(kept)} raw snapshots,")
    print(f"{pending} of them pending; " + ", ".join(f"{count} x {what}" for what, count in sorted(counts.items())))
    assert slow_runs <= 5
