"""What the tests share: a database of their own, CoinGecko on loopback, and the scripts as subprocesses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import mysql.connector
import pytest

from etl_crypto import Settings, parse_settings
from tests.stub_coingecko import StubCoinGecko

pytest_plugins = ["tests.own_server"]  # its fixtures

# A shell that starts the tests in the background has Ctrl-C ignored, by the scripts that the tests start as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT_DIR = Path(__file__).resolve().parent.parent
NOON = datetime(2025, 3, 14, 12, 0)
TODAY = datetime.now(UTC).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
TIMEOUT = 60  # seconds for a server to start, or for anything else that must come
SETTING_PREFIXES = (
    *("MYSQL_", "COINGECKO_", "COIN_", "REQUESTS_", "HTTP_TIMEOUT_", "RETRY_", "SNAPSHOT_", "RETENTION_", "TIER_"),
)
Found = TypeVar("Found")
posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows has neither a POSIX shell nor these signals")


def utc_now() -> datetime:
    """The whole second of now, naive as in the table."""
    return datetime.now(UTC).replace(tzinfo=None, microsecond=0)


def midnight(days_ago: int) -> datetime:
    """00:00 UTC of a day before today."""
    return TODAY - timedelta(days=days_ago)


def make_coin(number: int, **changes: object) -> dict:
    """An invented coin as /coins/markets sends it, the `number`th by market cap; `changes` replace its fields."""
    price, supply = 1000.0 / number, 1e9
    return {
        "id": f"coin-{number:05}",
        "symbol": f"c{number}",
        "name": f"Coin {number}",
        "image": "https://example.com/coin.png",
        "current_price": price,
        "market_cap": price * supply,
        "market_cap_rank": number,
        "fully_diluted_valuation": price * supply,
        "total_volume": price * supply / 20,
        "high_24h": price * 1.02,
        "low_24h": price * 0.97,
        "price_change_24h": price * 0.01,
        "price_change_percentage_24h": 1.01,
        "market_cap_change_24h": price * supply * 0.01,
        "market_cap_change_percentage_24h": 1.01,
        "circulating_supply": supply,
        "total_supply": supply,
        "max_supply": None,
        "ath": price * 3,
        "ath_change_percentage": -66.7,
        "ath_date": "2021-11-10T14:24:11.849Z",
        "atl": price / 50,
        "atl_change_percentage": 4900.0,
        "atl_date": "2015-01-14T00:00:00.000+08:00",
        "roi": None,
        "last_updated": "2025-03-14T23:59:31.123Z",
        "price_change_percentage_1h_in_currency": 0.1,
        "price_change_percentage_24h_in_currency": 1.0101,
        "price_change_percentage_7d_in_currency": -3.2,
    } | changes


# How coins were seen to be called in 1,162 recorded answers of /coins/markets, and what a careless reader takes it for.
ODD_TEXTS: list[dict[str, str]] = [
    {"name": "Lantern \N{IZAKAYA LANTERN}"},
    {"name": "样本 Cowslip"},
    {"name": "Zero\u200bWidth"},
    {"name": "Not\u00a0Breaking"},
    {"name": "Fennel's"},
    {"name": '"Dill"'},
    {"name": "100% Mulberry"},
    {"name": "%(symbol)s"},
    {"name": "@Robin", "symbol": "@rob"},  # a formula to a spreadsheet
    {"name": "=1+1 Lapwing"},
    {"symbol": "nan"},
    {"symbol": "inf"},
    {"symbol": "true"},
    {"symbol": "1"},
    {"symbol": "4.25"},
    {"id": "far-" * 16 + "along"},  # the longest, 69 characters
    {"symbol": "so" + "-far" * 12},  # 50 characters
    {"name": "Teacup" + " Far" * 15 + "山" * 15},  # 81 characters, 111 bytes
    {"symbol": "same", "name": "Twin"},
    {"symbol": "same", "name": "Twin"},
]


def make_coins(count: int, first: int = 1) -> list[dict]:
    return [make_coin(number) for number in range(first, first + count)]


# --------------------------------------------------------------------------------------------------------- the database


def connect_to_server(**options: object) -> mysql.connector.MySQLConnection:
    """A connection to the server of TEST_MYSQL_*."""
    return mysql.connector.connect(
        host=os.environ["TEST_MYSQL_HOST"],
        port=int(os.environ.get("TEST_MYSQL_PORT", "3306")),
        user=os.environ.get("TEST_MYSQL_USER", "root"),
        password=os.environ.get("TEST_MYSQL_PASSWORD", ""),
        charset="utf8mb4",
        **options,
    )


@pytest.fixture(scope="session")
def server() -> Iterator[mysql.connector.MySQLConnection]:
    """A connection to the server of TEST_MYSQL_*, which sql/local_mysql.sh sets, that may do everything there.

    Without a server the tests that need one are skipped; with REQUIRE_MYSQL=1 they fail.
    """
    required = os.environ.get("REQUIRE_MYSQL") == "1"
    if "TEST_MYSQL_HOST" not in os.environ:
        reason = (
            "no database server: run the tests by bash sql/local_mysql.sh --with powerbi/requirements.txt"
            " python -m pytest, or set TEST_MYSQL_*"
        )
        pytest.fail(reason) if required else pytest.skip(reason)
    try:
        connection = connect_to_server(autocommit=True)
    except mysql.connector.Error as error:
        pytest.fail(str(error)) if required else pytest.skip(f"no database server answers: {error}")
    yield connection
    connection.close()


class Database:
    """A fresh database with an empty crypto_prices, and an account that the scripts use."""

    def __init__(self, server: mysql.connector.MySQLConnection) -> None:
        self.server = server
        self.name = f"crypto_test_{uuid4().hex[:12]}"
        self.user = f"etl_{uuid4().hex[:12]}"
        self.password = uuid4().hex
        self.execute("SET SESSION lock_wait_timeout = 20")  # what a failed test left open shall not hang the next one
        self.execute(f"CREATE DATABASE {self.name}")
        self.execute(f"USE {self.name}")
        self.execute(f"CREATE USER '{self.user}'@'%' IDENTIFIED BY '{self.password}'")
        self.create_table()

    def create_table(self) -> None:
        self.execute((PROJECT_DIR / "sql" / "crypto_prices.sql").read_text(encoding="utf-8"))
        self.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {self.name}.crypto_prices TO '{self.user}'@'%'")

    def execute(self, statement: str, parameters: tuple = ()) -> list[tuple]:
        """The rows of a statement that ran with all rights."""
        with self.server.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def connect(self) -> AbstractContextManager[mysql.connector.MySQLConnection]:
        """Another session with all rights, as a second writer or a reader has one; closed when it is left."""
        return closing(connect_to_server(database=self.name))

    def settings(self) -> dict[str, str]:
        """What a script needs to reach it."""
        return {
            "MYSQL_HOST": self.server.server_host,
            "MYSQL_PORT": str(self.server.server_port),
            "MYSQL_DATABASE": self.name,
            "MYSQL_USER": self.user,
            "MYSQL_PASSWORD": self.password,
        }

    def count(self) -> int:
        return self.execute("SELECT COUNT(*) FROM crypto_prices")[0][0]

    def sessions(self, statement: str = "%") -> list[int]:
        """The ids of the scripts' sessions that are at a `statement` like this, as in SQL's LIKE."""
        query = "SELECT id FROM information_schema.processlist WHERE user = %s AND COALESCE(info, '') LIKE %s"
        return [session for (session,) in self.execute(query, (self.user, statement))]

    def wait_for_statement(self, statement: str) -> int:
        """The id of the first session of the scripts that is at a `statement` like this."""
        return wait_until(lambda: self.sessions(statement), statement)[0]

    def drop(self) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {self.name}")
        self.execute(f"DROP USER '{self.user}'@'%'")


@pytest.fixture(scope="session")
def session_database(server: mysql.connector.MySQLConnection) -> Iterator[Database]:
    database = Database(server)
    yield database
    database.drop()


@pytest.fixture
def database(session_database: Database) -> Database:
    """The database of this run, with an empty table made by sql/crypto_prices.sql."""
    session_database.execute(f"USE {session_database.name}")  # other tests make databases on this connection too
    session_database.execute("DROP TABLE IF EXISTS crypto_prices")
    session_database.create_table()
    return session_database


# -------------------------------------------------------------------------------------------- CoinGecko and the scripts


@pytest.fixture
def api() -> Iterator[StubCoinGecko]:
    """CoinGecko on loopback, with 120 coins."""
    with StubCoinGecko(make_coins(120)) as stub:
        yield stub


class Scripts:
    """Runs the scripts the way a user does, with settings of their own and those alone."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self.snapshots = folder / "snapshots"
        self.env_file = folder / "settings.env"
        self.env_file.write_text("", encoding="utf-8")
        self.settings = {"SNAPSHOT_DIR": str(self.snapshots), "RETRY_BUDGET_SECONDS": "0"} | settings

    def environment(self, settings: dict[str, str | None]) -> dict[str, str]:
        bare = {key: value for key, value in os.environ.items() if not key.startswith(SETTING_PREFIXES)}
        # PYTHONWARNINGS: a warning in a script is an error here too
        merged = bare | {"PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8"} | self.settings | settings
        return {key: value for key, value in merged.items() if value is not None}

    def start(self, script: str, *arguments: object, **settings: str | None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, PROJECT_DIR / script, *map(str, arguments), "--env-file", self.env_file],
            env=self.environment(settings),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        """The end of a started script. No output may hold the password or the key."""
        stdout, stderr = process.communicate(timeout=120)
        for secret in (self.settings.get("MYSQL_PASSWORD"), self.settings.get("COINGECKO_API_KEY")):
            assert not secret or secret not in stdout + stderr
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def run(self, script: str, *arguments: object, **settings: str | None) -> subprocess.CompletedProcess[str]:
        return self.finish(self.start(script, *arguments, **settings))

    def kill(self) -> None:
        """Kill what was started; safe to repeat."""
        for process in self.started:
            process.kill()
            process.communicate()

    def pipeline(self, *arguments: object, **settings: str | None) -> subprocess.CompletedProcess[str]:
        return self.run("pipeline_orchestrator.py", *arguments, **settings)

    def load(self, snapshots: dict[datetime, list], *options: str) -> None:
        """Put snapshots of these times (UTC, naive) into the table; those in the future need --force."""
        paths = [self.folder / f"{taken_at:%Y-%m-%dT%H-%M-%S}.json" for taken_at in snapshots]
        for path, (taken_at, coins) in zip(paths, snapshots.items(), strict=True):
            path.write_text(json.dumps({"timestamp": f"{taken_at.isoformat()}Z", "coins": coins}), encoding="utf-8")
        result = self.pipeline("--replay", *paths, "-q", *options)
        assert result.returncode == 0, result.stderr

    def shell(self, command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """A line of a shell, in which $python and $here stand for the interpreter and the project's folder."""
        environment = self.environment({"python": sys.executable, "here": str(PROJECT_DIR)} | settings)
        return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, cwd=self.folder)

    def kept(self, pattern: str = "*.json.gz") -> list[Path]:
        return sorted(self.snapshots.glob(pattern))


@pytest.fixture
def scripts(tmp_path: Path, database: Database, api: StubCoinGecko) -> Iterator[Scripts]:
    """The scripts on the test database and on CoinGecko on loopback; none outlives its test."""
    scripts = Scripts(tmp_path, database.settings() | {"COINGECKO_BASE_URL": api.url})
    yield scripts
    scripts.kill()


@pytest.fixture
def small_market(api: StubCoinGecko, scripts: Scripts) -> StubCoinGecko:
    """CoinGecko with five coins, whose snapshot of today is in the table."""
    api.coins = make_coins(5)
    scripts.settings["REQUESTS_PER_MINUTE"] = "1000"
    assert scripts.pipeline().returncode == 0
    api.requests.clear()
    return api


# -------------------------------------------------------------------------------------------------------------- helpers


def make_settings(**values: str) -> Settings:
    """Settings with the defaults, and with `values` in place of some."""
    return parse_settings({"MYSQL_USER": "u", "MYSQL_PASSWORD": "p"} | values)


def last_line(text: str) -> str:
    return text.rstrip("\n").rpartition("\n")[2]


def one_line_error(result: subprocess.CompletedProcess[str], exit_code: int, *parts: str) -> str:
    """The run ended with `exit_code` and one error line, which holds `parts` and is returned."""
    errors = [line for line in result.stderr.splitlines() if " ERROR " in line]
    assert result.returncode == exit_code, result.stderr
    assert len(errors) == 1
    assert last_line(result.stderr) == errors[0]
    for part in parts:
        assert part in errors[0]
    assert "Traceback" not in result.stderr
    # paths as long as a user's
    message = re.sub(r"/\S*pytest-\d+/[^/\s]+", "/home/me/crypto", errors[0].partition(": ")[2])
    assert len(message) <= 500, message
    return errors[0]


def wait_until(find: Callable[[], Found], what: str) -> Found:
    """What `find()` returns, once that is true. Raises TimeoutError."""
    until = time.monotonic() + TIMEOUT
    while not (found := find()):
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not come within {TIMEOUT} s")
        time.sleep(0.02)
    return found


def read_log_until(process: subprocess.Popen[str], part: str) -> None:
    """Return once `process` has logged a line with `part`."""
    lines = []
    while part not in (line := process.stderr.readline()):
        lines.append(line)
        assert line, lines  # an empty line is the end
