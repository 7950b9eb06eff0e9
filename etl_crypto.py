"""Fetch the cryptocurrency market from CoinGecko and upsert it into MySQL, table crypto_prices.

  python etl_crypto.py                              the COIN_LIMIT largest coins, as they are now
  python etl_crypto.py --coins 250 --dry-run        fetch and check them, write nothing
  python etl_crypto.py --replay snapshots/*.gz      load kept answers again

Rows are left without a market_cap_tier: segment_and_load.py fills it in, and pipeline_orchestrator.py runs both.
Settings come from .env (see .env.example); exit codes are in README.md.
"""

from __future__ import annotations

import argparse
import glob
import gzip
import json
import logging
import math
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from hashlib import sha256
from io import StringIO
from ipaddress import ip_address
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, TypeVar
from urllib.parse import quote, urlsplit

# requests, python-dotenv and the connector are imported where they are used: --help and a bad setting answer at once.
if TYPE_CHECKING:
    import requests
    from mysql.connector.abstracts import MySQLConnectionAbstract as Connection

PROJECT_DIR = Path(__file__).resolve().parent
log = logging.getLogger("etl_crypto")
Key = TypeVar("Key")
Result = TypeVar("Result")

# The columns of crypto_prices that come from CoinGecko, in the order of the table; `FIGURES` says from which field.
# The percentages of other periods than a day are named for the currency that was asked for.
FIGURES = {
    "current_price": "current_price",
    "market_cap": "market_cap",
    "fully_diluted_valuation": "fully_diluted_valuation",
    "total_volume": "total_volume",
    "high_24h": "high_24h",
    "low_24h": "low_24h",
    "price_change_24h": "price_change_24h",
    "price_change_percentage_1h": "price_change_percentage_1h_in_currency",
    "price_change_percentage_24h": "price_change_percentage_24h",
    "price_change_percentage_7d": "price_change_percentage_7d_in_currency",
    "market_cap_change_24h": "market_cap_change_24h",
    "market_cap_change_percentage_24h": "market_cap_change_percentage_24h",
    "circulating_supply": "circulating_supply",
    "total_supply": "total_supply",
    "max_supply": "max_supply",
    "ath": "ath",
    "atl": "atl",
}
COLUMNS = ("timestamp", "coin_id", "symbol", "name", "market_cap_rank", *FIGURES, "last_updated")
TEXT_LENGTHS = {"id": 128, "symbol": 255, "name": 255}  # characters that the columns hold

# CoinGecko's limits and habits.
PER_PAGE = 250  # its largest page; the same for every page, or page 2 would not begin where page 1 ended
CALLS_IN_FLIGHT = 4
LONGEST_BACKOFF = 60.0  # seconds; it counts calls by the minute
UNCLEAR_REFUSALS = 2  # how often an unexplained 403 is asked again: some pass
PAGES_A_LINE = 10  # of the log
REPEATING_PAGES = 3  # so many pages in a row without a new coin end the list
MAX_ANSWER_BYTES = 20_000_000  # a page of 250 coins has 0.3 MB
USER_AGENT = "crypto-market-pipeline (python-requests)"  # an empty one is answered 403
PUBLIC_API = "https://api.coingecko.com/api/v3"
PRO_API = "https://pro-api.coingecko.com/api/v3"
CURES_BY_API_ERROR = {
    10002: "set COINGECKO_API_KEY",
    10005: "this needs another plan: check COINGECKO_API_PLAN",
    10010: "a Pro key needs COINGECKO_API_PLAN=pro",
    10011: "a Demo key needs COINGECKO_API_PLAN=demo",
    10012: "it reaches further back than the plan allows",
}
SAMPLE_COMMAND = (
    "MYSQL_DATABASE=crypto_sample bash sql/local_mysql.sh python pipeline_orchestrator.py --replay tests/data/*.json.gz"
)

# When a fetched snapshot is refused, and when a warning is due.
MAX_REJECTED_SHARE, MIN_REJECTED_ROWS = 0.05, 5
MIN_COMPLETE_SHARE, SNAPSHOTS_COMPARED = 0.9, 5
EPOCH = datetime(1970, 1, 1)  # times are naive UTC throughout, as DATETIME columns are
STALE_AFTER = timedelta(minutes=15)
REJECTED_ROWS_LOGGED = 100

# What a row of true figures may hold all the same, by what the log calls it.
ODDITIES: dict[str, Callable[[Mapping], bool]] = {
    "prices outside their 24 h range": lambda c: not c["low_24h"] <= c["current_price"] <= c["high_24h"],
    "with more coins circulating than there are": lambda c: c["circulating_supply"] > c["total_supply"],
    "with more volume than market cap": lambda c: c["total_volume"] > c["market_cap"] > 0,
    "moved more than threefold in a day": lambda c: abs(c["price_change_percentage_24h"]) > 200,
}

# Kept answers. The mode of a file marks the answer as loaded; all that Windows keeps of a mode is "read-only".
SNAPSHOT_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ(_\d+)?\.json\.gz")
UNFINISHED_NAME = re.compile(r".+\.json\.gz\.\d+\.tmp")
LOADED_MODE = 0o444 if os.name == "nt" else 0o440

# Writing.
RUN_LOCK, BACKFILL_LOCK = "crypto_prices", "crypto_prices.backfill"
LOCKS = {RUN_LOCK: "run is writing to", BACKFILL_LOCK: "backfill is going on for"}
BATCH_ROWS = 1_000  # 330 KB a statement: well below every server's max_allowed_packet
RETRIES = 3
RETRY_PATIENCE = 30  # seconds for a server to come back, or for a lost session to let go of the run lock
LOST_CONNECTION = (1053, 1317, 1927, 2006, 2013, 2055, 4031)  # shut down, killed (1317, 1927), lost, idle for too long
LOCKED = (1020, 1205, 1213)  # changed by another, lock wait, deadlock
LOCK_WAIT = 10  # seconds; MySQL's own are 50 for a row and a year for the table
SESSION = {  # whatever the server's own are
    "lock_wait_timeout": LOCK_WAIT,
    "innodb_lock_wait_timeout": LOCK_WAIT,
    "sql_safe_updates": 0,
    "sql_select_limit": 2**64 - 1,
}
ANSWER_TIMEOUT = 30  # seconds for a server that is mute, as one whose disk is full may be; no statement here is as long
NO_SERVER = (2002, 2003, 2005)
NO_TLS = (2026,)  # or a server that went away during the handshake
OTHER_SCHEMA = (
    "{database}.crypto_prices was made by something else ({error}): keep it under another name (RENAME TABLE), then run"
    " sql/crypto_prices.sql and sql/accounts.sql, see README.md"
)
CURES_BY_MYSQL_ERROR = {
    NO_SERVER: "no MySQL server answers at {server}: start it, or check MYSQL_HOST and MYSQL_PORT (without a server of"
    " your own: bash sql/local_mysql.sh python pipeline_orchestrator.py)",
    LOST_CONNECTION: "the connection to MySQL at {server} was lost: see that the server is up, then run again",
    LOCKED: "others keep {database}.crypto_prices or rows of it locked: end the session that does, then run again",
    NO_TLS: "no trusted TLS connection to {server} ({error}): check MYSQL_SSL_CA, and that MYSQL_HOST is the name in"
    " the server's certificate",
    (1146, 1932): "there is no table {database}.crypto_prices at {server}: run sql/crypto_prices.sql, or check"
    " MYSQL_DATABASE",
    (1049,): "there is no database {database} at {server}: run sql/database.sql, or check MYSQL_DATABASE",
    (1044,): "{user} has no right on a database {database} at {server}, or there is none: check MYSQL_DATABASE, or run"
    " sql/database.sql, sql/crypto_prices.sql and sql/accounts.sql with its name in place of crypto_db",
    (1045, 1698): "MySQL at {server} refused the login of {user}: check MYSQL_USER and MYSQL_PASSWORD",
    (1820, 1862, 3118): "the account {user} at {server} is locked or its password has expired: ALTER USER it ({error})",
    (2061,): "{user} cannot log in at {server} without TLS: switch TLS on in the server ({error})",
    (1142, 1143, 1227): "{user} lacks a right on {database}.crypto_prices at {server}: run sql/accounts.sql ({error})",
    (1048, 1054, 1264, 1265, 1364, 1366, 1406): OTHER_SCHEMA,
    (1153,): "the server at {server} takes no statement of 1,000 rows: raise its max_allowed_packet to 16M",
    (1290, 1792, 1836): "the server at {server} is read-only: set MYSQL_HOST to the one that takes writes",
    (1021, 1114): "the server at {server} has no room left: free some disk, or delete old snapshots, see README.md",
    (1040, 1203, 1226): "the server at {server} takes no more connections: end some, or raise its max_connections",
}


# ---------------------------------------------------------------------------------------------------------- errors


class PipelineError(Exception):
    """An expected failure: one line that says what failed, where and what to do, and the exit code it ends with."""

    exit_code: int


class ConfigError(PipelineError):
    """A setting or an option is missing or bad; nothing was connected to."""

    exit_code = 2


class DataError(PipelineError):
    """CoinGecko did not answer as it should, or what it answered, or a file, cannot be used."""

    exit_code = 3


class GoneError(DataError):
    """CoinGecko does not know what was asked for."""


class DatabaseError(PipelineError):
    """MySQL refused or was lost. `errno` is MySQL's own number."""

    exit_code = 4

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class BusyError(PipelineError):
    """Another run, or another backfill, is going on."""

    exit_code = 5


class StaleError(PipelineError):
    """The table is empty, or its newest snapshot is too old."""

    exit_code = 6


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a run the way Ctrl-C does, with an exit code of its own."""


def shown(value: object, limit: int = 120) -> str:
    """`value`, which came from outside, fit for a log: quoted, ASCII, no line break or terminal code, not endless."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def listed(values: Iterable[object], limit: int = 5) -> str:
    """The first few of `values`, shown, and how many more there are."""
    values = list(values)
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(shown(value) for value in values[:limit]) + more


# -------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Settings:
    """What a run is told. Each field is the key of .env.example that bears its name."""

    mysql_host: str
    mysql_port: int
    mysql_database: str
    mysql_user: str
    mysql_password: str = field(repr=False)
    mysql_ssl_ca: Path | None
    coingecko_api_key: str = field(repr=False)
    coingecko_api_plan: str
    coingecko_base_url: str
    coin_limit: int | None  # None: every coin
    requests_per_minute: int
    http_timeout_seconds: float
    retry_budget_seconds: float
    snapshot_minutes: int
    snapshot_dir: Path | None  # None: raw answers are not kept
    snapshot_keep: int
    tier_large_cap_min: float
    tier_mid_cap_min: float
    tier_small_cap_min: float


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A reader of whole numbers from `low` to `high`; its ValueError says what is wanted."""

    def read(text: str) -> int:
        with suppress(ValueError):
            if "_" not in text and low <= int(text) <= high:
                return int(text)
        raise ValueError(f"a whole number from {low} to {high}")

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """A reader of numbers from `low` to `high`, such as 2.5 or 10e9; its ValueError says what is wanted."""

    def read(text: str) -> float:
        with suppress(ValueError):
            if low <= float(text) <= high:
                return float(text)
        raise ValueError(f"a number from {low:g} to {high:g}")

    return read


def coin_limit(text: str) -> int | None:
    """COIN_LIMIT and --coins: how many coins, or None for `all`."""
    if text.strip().lower() == "all":
        return None
    try:
        return whole_number(1, 1_000_000)(text)
    except ValueError as wanted:
        raise ValueError(f"{wanted}, or to all") from None


def api_plan(text: str) -> str:
    if text.strip().lower() not in ("demo", "pro"):
        raise ValueError("demo or pro")
    return text.strip().lower()


def some_text(what: str) -> Callable[[str], str]:
    """A reader of `what`, which must not be empty."""

    def read(text: str) -> str:
        if not text.strip():
            raise ValueError(what)
        return text.strip()

    return read


def path_or_none(text: str) -> Path | None:
    """A path, relative to the scripts' folder; None for nothing."""
    return PROJECT_DIR / text.strip() if text.strip() else None


def file_or_none(text: str) -> Path | None:
    path = path_or_none(text)
    if path and not path.is_file():
        raise ValueError("a file with the CA certificates (PEM), or to nothing")
    return path


def read_environment(env_file: Path | None) -> dict[str, str]:
    """The variables of `env_file` (default: .env beside the scripts) under those of the real environment.

    Raises ConfigError when a file that was asked for is not there, or one cannot be read.
    """
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    path = env_file or PROJECT_DIR / ".env"
    if env_file and not path.is_file():
        raise ConfigError(f"there is no file {path}: copy .env.example to it and fill it in, or leave --env-file out")
    try:
        # utf-8-sig: Notepad begins a file with a byte order mark, which would become part of the first key
        text = path.read_text(encoding="utf-8-sig") if path.exists() else ""
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path} ({shown(str(error))}): save it as a text file in UTF-8") from error
    for line in parse_stream(StringIO(text)):
        if line.error:
            raise ConfigError(f"{path}, line {line.original.line}, is not KEY=value: fix it (a quote without its end?)")
    in_file = dotenv_values(stream=StringIO(text), interpolate=False)
    return {key: value for key, value in in_file.items() if value is not None} | dict(os.environ)


def parse_settings(values: Mapping[str, str], needs_database: bool) -> Settings:
    """Settings from `values`, with the defaults of README.md. Raises ConfigError, which never shows a secret."""

    def get(key: str, default: str, read: Callable[[str], Result]) -> Result:
        text = values.get(key, default)
        try:
            return read(text)
        except ValueError as wanted:
            raise ConfigError(f"{key} is {shown(text)}: set it to {wanted} in .env") from None

    if needs_database:
        for key in ("MYSQL_USER", "MYSQL_PASSWORD"):
            if key not in values or (key == "MYSQL_USER" and not values[key].strip()):
                raise ConfigError(
                    f"{key} is not set: copy .env.example to .env and fill it in, or let a server of this"
                    " project's own set it: bash sql/local_mysql.sh python pipeline_orchestrator.py"
                )
    api_key = values.get("COINGECKO_API_KEY", "").strip()
    if not re.fullmatch("[!-~]*", api_key):
        raise ConfigError("COINGECKO_API_KEY holds characters that no key has: copy it again from CoinGecko's page")
    plan = get("COINGECKO_API_PLAN", "demo", api_plan)
    calls = ("250" if plan == "pro" else "30") if api_key else "5"
    settings = Settings(
        mysql_host=get("MYSQL_HOST", "localhost", some_text("a host name or an address")),
        mysql_port=get("MYSQL_PORT", "3306", whole_number(1, 65535)),
        mysql_database=get("MYSQL_DATABASE", "crypto_db", some_text("the name of a database")),
        mysql_user=values.get("MYSQL_USER", "").strip(),
        mysql_password=values.get("MYSQL_PASSWORD", ""),
        mysql_ssl_ca=get("MYSQL_SSL_CA", "", file_or_none),
        coingecko_api_key=api_key,
        coingecko_api_plan=plan,
        coingecko_base_url=base_url(
            values.get("COINGECKO_BASE_URL", "").strip() or (PRO_API if plan == "pro" and api_key else PUBLIC_API),
            api_key,
        ),
        coin_limit=get("COIN_LIMIT", "1000", coin_limit),
        requests_per_minute=get("REQUESTS_PER_MINUTE", "", lambda text: whole_number(1, 10_000)(text.strip() or calls)),
        http_timeout_seconds=get("HTTP_TIMEOUT_SECONDS", "30", number(0.1, 3600)),
        retry_budget_seconds=get("RETRY_BUDGET_SECONDS", "600", number(0, 1e6)),
        snapshot_minutes=get("SNAPSHOT_MINUTES", "1", whole_number(1, 525_600)),
        snapshot_dir=get("SNAPSHOT_DIR", "snapshots", path_or_none),
        snapshot_keep=get("SNAPSHOT_KEEP", "100", whole_number(0, 1_000_000)),
        tier_large_cap_min=get("TIER_LARGE_CAP_MIN", "10e9", number(1e-9, 1e300)),
        tier_mid_cap_min=get("TIER_MID_CAP_MIN", "1e9", number(1e-9, 1e300)),
        tier_small_cap_min=get("TIER_SMALL_CAP_MIN", "100e6", number(1e-9, 1e300)),
    )
    if not settings.tier_large_cap_min > settings.tier_mid_cap_min > settings.tier_small_cap_min:
        raise ConfigError(
            f"TIER_LARGE_CAP_MIN={settings.tier_large_cap_min:g}, TIER_MID_CAP_MIN={settings.tier_mid_cap_min:g} and"
            f" TIER_SMALL_CAP_MIN={settings.tier_small_cap_min:g} do not fall: set each below the one before it"
        )
    return settings


def base_url(url: str, api_key: str) -> str:
    """COINGECKO_BASE_URL without a slash at its end. Raises ConfigError when a key sent there would not be safe."""
    cure = f"set COINGECKO_BASE_URL to an address such as {PUBLIC_API}, or leave it empty"
    if re.search("[@?#]", url):
        # not shown: whoever writes such an address has probably put a password or a key into it
        raise ConfigError(f"COINGECKO_BASE_URL holds more than an address (a key goes into COINGECKO_API_KEY): {cure}")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or re.search(r"[^\w.:-]", host) or parts.scheme not in ("http", "https"):
        raise ConfigError(f"COINGECKO_BASE_URL is {shown(url)}, no http(s) address: {cure}")
    if api_key and parts.scheme == "http" and not is_loopback(host):
        raise ConfigError(f"COINGECKO_BASE_URL is {shown(url)}, which would send the key in the clear: use https")
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


# --------------------------------------------------------------------------------------------------------- threads


def in_background(work: Callable[..., Result], *arguments: object) -> Future[Result]:
    """`work(*arguments)` begun in a thread that cannot hold up the end of the program, as an executor's would."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:  # handed on to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


# -------------------------------------------------------------------------------------------------------- database


def mysql_errors() -> tuple[type[Exception], ...]:
    """What the connector raises: with its C extension, COMMIT on a lost server is none of its own errors."""
    import mysql.connector

    try:
        from _mysql_connector import MySQLInterfaceError
    except ImportError:
        return (mysql.connector.Error,)
    return mysql.connector.Error, MySQLInterfaceError


def explain(error: Exception, settings: Settings) -> DatabaseError:
    """MySQL's `error` as one line with its cure. The driver's classes differ, its numbers do not."""
    import mysql.connector

    errno = getattr(error, "errno", None)
    if errno == -1 and isinstance(error, mysql.connector.OperationalError):
        errno = 2006  # the connector found the connection gone before it asked the server
    otherwise = "MySQL at {server}: {error}; the server's log may say more, then run again"
    text = next((text for numbers, text in CURES_BY_MYSQL_ERROR.items() if errno in numbers), otherwise)
    return DatabaseError(
        text.format(
            server=f"{settings.mysql_host}:{settings.mysql_port}",
            user=shown(settings.mysql_user),
            database=settings.mysql_database,
            error=shown(str(error), 300),
        ),
        errno,
    )


@contextmanager
def signals_held() -> Iterator[None]:
    """SIGTERM and Ctrl-C take effect only as this is left; in a thread, which they never reach, nothing changes.

    For the import of a large package: Python's own import may print what is raised in its midst, and go on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def connect(settings: Settings) -> Connection:
    """An open connection to MySQL. Raises DatabaseError. The caller closes it."""
    with signals_held():
        import mysql.connector

    tls = {}
    if settings.mysql_ssl_ca:  # the CA alone would verify nothing
        tls = {"ssl_ca": str(settings.mysql_ssl_ca), "ssl_verify_cert": True, "ssl_verify_identity": True}
    try:
        return mysql.connector.connect(
            host=settings.mysql_host,
            port=settings.mysql_port,
            database=settings.mysql_database,
            user=settings.mysql_user,
            password=settings.mysql_password,
            connection_timeout=10,
            read_timeout=ANSWER_TIMEOUT,
            write_timeout=ANSWER_TIMEOUT,
            charset="utf8mb4",  # and no collation: the one that MySQL prefers is not on MariaDB
            sql_mode="TRADITIONAL",  # whatever the server's own is, a value that does not fit is an error
            time_zone="+00:00",
            autocommit=False,
            init_command="SET SESSION " + ", ".join(f"{name} = {value}" for name, value in SESSION.items()),
            **tls,
        )
    except mysql_errors() as error:
        raise explain(error, settings) from error


@contextmanager
def transaction(settings: Settings, connection: Connection) -> Iterator[Any]:
    """A cursor: commit on success, roll back and re-raise on error.

    What MySQL raises becomes a DatabaseError. This is the one place that commits.
    """
    try:
        cursor = connection.cursor()
        yield cursor
        cursor.close()
        connection.commit()
    except BaseException as error:
        # A connection that is gone has nothing to roll back: the server did that by itself.
        with suppress(*mysql_errors()):
            connection.rollback()
        if isinstance(error, mysql_errors()):
            raise explain(error, settings) from error
        raise


def in_session(settings: Settings, connection: Connection, work: Callable[[], Result]) -> Result:
    """What `work()`, which uses `connection`, returns. A signal ends it at once, whatever the server is at.

    It runs in a thread, which no signal reaches: one that raised in the connector's C code would crash it.
    """
    try:
        with signals_held():
            running = in_background(work)
        while not running.done():
            wait([running], timeout=0.1)
    except KeyboardInterrupt:
        with signals_held():
            with suppress(DatabaseError, *mysql_errors()), closing(connect(settings)) as other:
                other.cursor().execute("KILL %s", (connection.connection_id,))
            wait([running])  # a connection must not be closed while a thread is in it
        raise
    return running.result()


@contextmanager
def writing_connection(settings: Settings, lock: str = RUN_LOCK, patience: float = 0) -> Iterator[Connection]:
    """A connection that holds `lock` and may write the table; closed at the end, which frees the lock.

    Raises BusyError, and DatabaseError when the table or a right is missing: both before an API call is spent.
    """
    connection = connect(settings)
    try:
        in_session(settings, connection, lambda: take_lock(settings, connection, lock, patience))
        in_session(settings, connection, lambda: check_table(settings, connection))
        yield connection
    finally:
        with suppress(*mysql_errors()):
            connection.close()


def take_lock(settings: Settings, connection: Connection, lock: str = RUN_LOCK, patience: float = 0) -> None:
    """Take one of LOCKS, which keep runs of this database apart, waiting `patience` seconds. Raises BusyError.

    The lock belongs to the session: MySQL frees it when the session ends, however it ends.
    """
    # A lock is server-wide and its name has at most 64 characters, as many as a database's alone may have.
    name = f"{lock}.{settings.mysql_database}"
    name = name if len(name) <= 64 else f"{lock}.{sha256(name.encode()).hexdigest()[:40]}"
    until = time.monotonic() + patience
    said = False
    while True:
        with transaction(settings, connection) as cursor:
            cursor.execute("SELECT GET_LOCK(%s, 0), IS_USED_LOCK(%s)", (name, name))
            taken, holder = cursor.fetchone()
        if taken:
            return
        if time.monotonic() >= until:
            raise BusyError(
                f"another {LOCKS[lock]} {settings.mysql_database} at {settings.mysql_host}:{settings.mysql_port}"
                f" (MySQL connection {holder}): wait until it has ended, then run again"
            )
        if not said:
            log.warning(
                "another %s %s (MySQL connection %s); waiting up to %d s for it to end",
                LOCKS[lock],
                settings.mysql_database,
                holder,
                patience,
            )
            said = True
        time.sleep(0.2)


class Column(NamedTuple):
    """A column of the table as it is."""

    kind: str
    size: int  # characters of a text, digits of a time's fraction
    is_nullable: bool
    has_default: bool
    is_key: bool
    collation: str

    def fits(self, name: str) -> bool:
        """Can it hold what is written to the column `name`? One that is not written must not need a value."""
        if name in FIGURES:
            return self.kind == "double" and self.is_nullable
        match name:
            case "timestamp":
                return self.kind == "datetime"
            case "last_updated":
                return self.kind == "datetime" and self.size >= 3 and self.is_nullable
            case "market_cap_rank":
                return self.kind in ("int", "bigint") and self.is_nullable
            case "market_cap_tier":
                return self.kind != "enum" and self.size >= 14 and self.is_nullable
            case "coin_id":
                return self.size >= TEXT_LENGTHS["id"]
            case "symbol" | "name":
                return self.size >= TEXT_LENGTHS[name]
        return bool(self.is_nullable or self.has_default)


def check_table(settings: Settings, connection: Connection) -> None:
    """Raise DatabaseError unless the table is the one of sql/crypto_prices.sql and this account may write it."""
    columns = ", ".join((*COLUMNS, "market_cap_tier"))
    with transaction(settings, connection) as cursor:
        # Statements that touch no row still need the rights, the columns and a server that takes writes.
        cursor.execute(f"INSERT INTO crypto_prices ({columns}) SELECT {columns} FROM crypto_prices WHERE FALSE")
        cursor.execute("UPDATE crypto_prices SET market_cap_tier = NULL WHERE FALSE")
        cursor.execute(
            "SELECT LOWER(column_name), LOWER(data_type), COALESCE(character_maximum_length, datetime_precision, 0),"
            " is_nullable = 'YES', column_default IS NOT NULL OR extra <> '', column_key = 'PRI',"
            " COALESCE(collation_name, '') FROM information_schema.columns"
            " WHERE table_schema = DATABASE() AND table_name = 'crypto_prices'"
        )
        found = {name: Column(*facts) for name, *facts in cursor.fetchall()}
        cursor.execute(
            "SELECT engine FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name = 'crypto_prices'"
        )
        (engine,) = cursor.fetchone()
    key = sorted(name for name, column in found.items() if column.is_key)
    misfits = sorted(name for name, column in found.items() if not column.fits(name))
    if key != ["coin_id", "timestamp"]:
        problem = f"its primary key is {', '.join(key) or 'missing'}, not timestamp and coin_id"
    elif misfits:
        problem = f"{', '.join(misfits)} cannot hold what is written there"
    elif not found["coin_id"].collation.endswith("_bin"):
        problem = f"coin_id has the collation {found['coin_id'].collation}, which takes different coins for one"
    elif engine != "InnoDB":
        problem = f"its engine is {engine}, which has no transactions"
    else:
        return
    raise DatabaseError(OTHER_SCHEMA.format(database=settings.mysql_database, error=problem))


def in_one_transaction(settings: Settings, connection: Connection, work: Callable[[Any], Result]) -> Result:
    """What `work(cursor)` returns, done in one transaction that is not tried again. Raises DatabaseError."""

    def attempt() -> Result:
        with transaction(settings, connection) as cursor:
            return work(cursor)

    return in_session(settings, connection, attempt)


def in_transaction(settings: Settings, connection: Connection, work: Callable[[Any], Result]) -> Result:
    """What `work(cursor)` returns, done in one transaction, on a connection that holds the run lock.

    A deadlock, a lock wait or a lost connection is tried again, three times, on a fresh session that has taken the lock
    again; so `work` must be idempotent. Raises DatabaseError, and BusyError for a lost lock.
    """
    is_open = connection.is_connected()  # a long fetch is longer than some servers keep an idle session
    retries = 0
    while True:
        try:
            if not is_open:
                reopen(settings, connection)
            return in_one_transaction(settings, connection, work)
        except DatabaseError as error:
            if error.errno not in (*LOST_CONNECTION, *LOCKED) or retries == RETRIES:
                raise
            is_open = False
            retries += 1
            log.warning("%s; trying again on a new connection (%d of %d)", error, retries, RETRIES)
        time.sleep(retries - 1)  # none at first: what was in the way of a deadlock is over by then


def reopen(settings: Settings, connection: Connection) -> None:
    """A fresh session in place of a lost one, with the run lock. Raises DatabaseError when no server comes back."""
    until = time.monotonic() + RETRY_PATIENCE
    said = False
    while True:
        try:
            connection.reconnect()
            break
        except mysql_errors() as error:
            # the connector wraps what went wrong in an error without a number
            problem = explain(error.__cause__ if isinstance(error.__cause__, Exception) else error, settings)
            if problem.errno not in (*LOST_CONNECTION, *NO_SERVER, *NO_TLS) or time.monotonic() >= until:
                raise problem from error
            if not said:
                log.warning("%s; waiting up to %d s for it to come back", problem, RETRY_PATIENCE)
                said = True
        time.sleep(0.5)
    in_session(settings, connection, lambda: take_lock(settings, connection, patience=RETRY_PATIENCE))


# ------------------------------------------------------------------------------------------------- fetch: CoinGecko


class TryAgain(Exception):
    """An answer that may be better next time.

    `after` is how many seconds the API asked to wait, counted from `at` (s, by the clock of CoinGecko), and `counts` is
    False when the call cannot have reached it.
    """

    at: float

    def __init__(self, problem: str, after: float = 0.0, unclear_refusal: bool = False, counts: bool = True) -> None:
        super().__init__(problem)
        self.after = after
        self.unclear_refusal = unclear_refusal
        self.counts = counts


@dataclass
class Call(Generic[Key, Result]):
    """A call in flight: what it asks for, when its time is up, and how often it has failed before."""

    key: Key
    answer: Future[Result]
    deadline: float  # s, by the clock of CoinGecko
    failures: int
    refusals: int


class CoinGecko:
    """The API, under one run's rate limit and retry budget. `sleep` and `clock` are in seconds."""

    def __init__(
        self,
        settings: Settings,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.sleep = sleep
        self.clock = clock
        self.budget = settings.retry_budget_seconds
        self.in_flight: list[Future] = []
        self.answered: deque[float] = deque()  # when the calls of the last minute were answered
        self.headers = {"User-Agent": USER_AGENT}
        if settings.coingecko_api_key:
            self.headers[f"x-cg-{settings.coingecko_api_plan}-api-key"] = settings.coingecko_api_key

    def fetch_in_order(
        self, what: str, fetch: Callable[[Key], Result], keys: Iterable[Key]
    ) -> Iterator[tuple[Key, Result]]:
        """Each of `keys` with what `fetch(key)`, one call, answers, in this order; up to four calls run ahead.

        A failure that may pass is tried again as long as the budget lasts. Raises DataError for any other. `what` a key
        is, such as page or coin, goes into messages.
        """
        coming = iter(keys)
        calls: deque[Call[Key, Result]] = deque()  # in order: an answer waits for those before it
        while True:
            while len(calls) < CALLS_IN_FLIGHT and not (calls and (self.rate_wait() or any(map(has_failed, calls)))):
                try:
                    calls.append(self.ask(fetch, next(coming)))
                except StopIteration:
                    break
            if not calls:
                return
            call = calls.popleft()
            try:
                answer = self.answer_of(call)
            except TryAgain as problem:
                self.wait_to_retry(f"{what} {shown(call.key)}: {problem}", call, problem)
                refusals = call.refusals + problem.unclear_refusal
                calls.appendleft(self.ask(fetch, call.key, call.failures + 1, refusals))
            else:
                yield call.key, answer

    def ask(self, fetch: Callable[[Key], Result], key: Key, failures: int = 0, refusals: int = 0) -> Call[Key, Result]:
        """A call begun as soon as the rate limit allows it."""
        while pause := self.rate_wait():
            if pause > 1:
                limit = self.settings.requests_per_minute
                log.info("%d calls in a minute, the most allowed: waiting %.0f s", limit, pause)
            self.sleep(pause)

        def work() -> Result:
            try:
                answer = fetch(key)
            except TryAgain as problem:
                problem.at = self.clock()
                if problem.counts:
                    self.answered.append(problem.at)
                raise
            self.answered.append(self.clock())
            return answer

        deadline = self.clock() + self.settings.http_timeout_seconds
        self.in_flight.append(in_background(work))
        return Call(key, self.in_flight[-1], deadline, failures, refusals)

    def rate_wait(self) -> float:
        """Seconds until the rate limit allows another call; 0 when it does now."""
        # A call counts until a minute after its answer: whenever the API counts it, it was before that.
        self.in_flight = [answer for answer in self.in_flight if not answer.done()]
        while self.answered and self.answered[0] <= self.clock() - 60:
            self.answered.popleft()
        if len(self.in_flight) + len(self.answered) < self.settings.requests_per_minute:
            return 0.0
        return max(self.answered[0] + 60 - self.clock(), 0.01) if self.answered else 0.1

    def wait_to_retry(self, said: str, call: Call, problem: TryAgain) -> None:
        """Wait before a call that has failed is made again; DataError when that is not worth it."""
        if call.refusals + problem.unclear_refusal > UNCLEAR_REFUSALS:
            raise DataError(f"CoinGecko, {said}, again and again: see https://status.coingecko.com, run again later")
        pause = max(min(2.0**call.failures, LONGEST_BACKOFF), problem.after)
        pause = max(problem.at + pause - self.clock(), 0.0)  # it may be long since: others were waited for
        if pause > self.budget:
            raise DataError(
                f"CoinGecko, {said}; the next try is due in {pause:.0f} s, and RETRY_BUDGET_SECONDS="
                f"{self.settings.retry_budget_seconds:g} has {self.budget:.0f} s left: check the network,"
                " COINGECKO_BASE_URL and https://status.coingecko.com and run again later, or see the sample market:"
                f" {SAMPLE_COMMAND}"
            ) from problem
        log.warning("%s; trying again in %.0f s", said, pause)
        self.budget -= pause
        self.sleep(pause)

    def answer_of(self, call: Call[Key, Result]) -> Result:
        """What `call` came to; TryAgain when the whole answer is not there in time, however it trickles in."""
        while not call.answer.done():
            if self.clock() > call.deadline:
                self.in_flight.remove(call.answer)
                self.answered.append(self.clock())
                late = TryAgain(f"no complete answer within {self.settings.http_timeout_seconds:g} s")
                late.at = self.clock()
                raise late
            wait([call.answer], timeout=0.1)
        return call.answer.result()

    def fetch_page(self, page: int) -> list:
        """One call for one page. Raises TryAgain or DataError."""
        answer = self.get(
            "/coins/markets",
            {
                "vs_currency": "usd",
                "order": "market_cap_desc",
                "per_page": PER_PAGE,
                "page": page,
                "sparkline": "false",
                "price_change_percentage": "1h,24h,7d",
            },
        )
        if not isinstance(answer, list) or (answer and not any(isinstance(coin, dict) for coin in answer)):
            raise TryAgain(f"no list of coins: {self.shown(answer)}")
        return answer

    def fetch_history(self, coin_id: str, days: int) -> dict | None:
        """One call for a point a day of so many days and the present: lists of [ms since 1970, figure] by kind.

        Source: /coins/{id}/market_chart. None for a coin that is gone. Raises TryAgain or DataError.
        """
        try:
            answer = self.get(
                f"/coins/{quote(coin_id, safe='')}/market_chart",
                {"vs_currency": "usd", "days": days, "interval": "daily"},
            )
        except GoneError:
            return None
        if not isinstance(answer, dict) or not isinstance(answer.get("prices"), list):
            raise TryAgain(f"no history: {self.shown(answer)}")
        return answer

    def get(self, path: str, parameters: Mapping[str, object]) -> Any:
        """The JSON that one call answers. Raises TryAgain or DataError."""
        import requests
        from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

        url = self.settings.coingecko_base_url + path
        try:
            # A session for each call: it serves one thread only, and no connection is kept that is gone when the
            # next paced call is due.
            with requests.Session() as session:
                session.trust_env = not is_loopback(urlsplit(url).hostname or "")  # a proxy is for other machines
                with session.get(
                    url,
                    params=parameters,
                    headers=self.headers,
                    timeout=self.settings.http_timeout_seconds,
                    allow_redirects=False,  # requests would take the key along
                    stream=True,
                ) as response:
                    body = bytearray()
                    for chunk in response.iter_content(65_536):
                        body += chunk
                        if len(body) > MAX_ANSWER_BYTES:
                            raise TryAgain(f"an answer of more than {MAX_ANSWER_BYTES // 1_000_000} MB")
        except requests.ReadTimeout as error:
            raise TryAgain(f"no answer within {self.settings.http_timeout_seconds:g} s") from error
        except (requests.RequestException, ValueError) as error:  # requests lets some errors of parsing through
            problem = f"no answer from {self.settings.coingecko_base_url} ({self.shown(root_cause(error))})"
            reason = getattr(error.args[0], "reason", None) if error.args else None
            raise TryAgain(problem, counts=not isinstance(reason, ConnectTimeoutError | NewConnectionError)) from error
        try:
            answer = parse_json(bytes(body))
        except ValueError:
            answer = None
            if response.status_code == 200:
                raise TryAgain(f"status 200, yet no JSON: {self.shown(bytes(body[:200]))}") from None
        self.check(response, answer)
        return answer

    def shown(self, value: object) -> str:
        """`value` fit for a log, without the key, which whoever answers may send back."""
        key = self.settings.coingecko_api_key
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        return shown(text.replace(key, "***") if key else text)

    def check(self, response: requests.Response, answer: Any) -> None:
        """Raise TryAgain or DataError for an answer that is an error, by its status or by its body."""
        status = response.status_code
        code, message = api_error(answer)
        if status == 200 and code is None and message is None:
            return
        said = f"status {status}"
        if code is not None and code != status:
            said += f", error {code}"
        if message:
            said += f": {self.shown(message)}"
        if code in CURES_BY_API_ERROR or status == 401 or code == 401:
            has_key = bool(self.settings.coingecko_api_key)
            otherwise = "check COINGECKO_API_KEY and COINGECKO_API_PLAN" if has_key else "set COINGECKO_API_KEY"
            cure = CURES_BY_API_ERROR.get(code, otherwise)
            raise DataError(f"CoinGecko refused the call ({said}): {cure}")
        if 300 <= status < 400:
            raise DataError(
                f"{self.settings.coingecko_base_url} sends elsewhere ({said}): set COINGECKO_BASE_URL to where"
            )
        if status == 403 or code == 403:
            raise TryAgain(said, unclear_refusal=True)
        if status < 400 or status in (408, 429) or status >= 500:
            raise TryAgain(said, after=retry_after(response.headers.get("Retry-After", "")))
        refused = GoneError if status == 404 else DataError
        raise refused(f"CoinGecko did not take the call ({said}): check COINGECKO_BASE_URL, or update these scripts")


def has_failed(call: Call) -> bool:
    return call.answer.done() and call.answer.exception() is not None


def parse_json(text: bytes | str) -> Any:
    """JSON as Python sees it. A whole number of 20 digits or more becomes a float, as does its column. ValueError."""
    try:
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def api_error(answer: Any) -> tuple[int | None, str | None]:
    """Error code and message of an error body: CoinGecko has three forms. (None, None) for anything else."""
    if not isinstance(answer, dict):
        return None, None
    error = answer.get("error")
    status = answer.get("status") or (error.get("status") if isinstance(error, dict) else None)
    if isinstance(status, dict):
        code = str(status.get("error_code"))
        return int(code) if code.isdecimal() and len(code) < 9 else None, str(status.get("error_message") or "an error")
    return None, error if isinstance(error, str) else None


def retry_after(header: str) -> float:
    """Seconds that a Retry-After header asks for, from its number or its date; 0 when it says nothing usable."""
    with suppress(ValueError):
        seconds = float(header)
        return seconds if 0 < seconds < math.inf else 0.0
    with suppress(ValueError, OverflowError):
        date = parsedate_to_datetime(header)
        return max((date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)
    return 0.0


def root_cause(error: BaseException) -> str:
    """What lies at the bottom of a chain of exceptions, which is what a reader needs of it."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def fetch_coins(api: CoinGecko, limit: int | None) -> list:
    """The market's first `limit` distinct coins (None: all), as sent and in the order of the pages, repeats included.

    The ranking moves between two calls, so a coin may come twice: another page is fetched when that leaves too few.
    An empty page, confirmed by asking again, ends the list.
    """
    coins: list = []
    ids: set[str] = set()
    next_page = 1
    pages_without_news = 0
    while True:
        # so many pages hold no more than what is missing: none is asked for in vain, unless the list ends
        pages = count(1) if limit is None else range(next_page, next_page + math.ceil((limit - len(ids)) / PER_PAGE))
        for page, answer in api.fetch_in_order("page", api.fetch_page, pages):
            if not answer:
                [(_, answer)] = api.fetch_in_order("page", api.fetch_page, [page])
            if not answer:
                log.info("page %d is empty: the list ends with %d coins", page, len(ids))
                return coins
            known = len(ids)
            for coin in answer:
                coins.append(coin)
                if isinstance(coin, dict) and isinstance(coin.get("id"), str):
                    ids.add(coin["id"])
                if len(ids) == limit:
                    log.info("pages 1 to %d: %d coins", page, len(ids))
                    return coins
            pages_without_news = 0 if len(ids) > known else pages_without_news + 1
            if pages_without_news == REPEATING_PAGES:
                log.warning("pages %d to %d bring no coin that is new: taking the list as ended", page - 2, page)
                return coins
            if page % PAGES_A_LINE == 0:
                log.info("pages 1 to %d: %d coins", page, len(ids))
            next_page = page + 1


# -------------------------------------------------------------------------------------- snapshots: raw answers kept


class Snapshot(NamedTuple):
    """A market as it was answered, not looked at yet."""

    timestamp: datetime  # UTC, floored to SNAPSHOT_MINUTES
    coins: list  # as CoinGecko sent them; anything may be in it
    path: Path | None  # where the answer is kept, or was read from
    stem: str  # of the file with its rejected rows


class Market(NamedTuple):
    """A snapshot that was read."""

    snapshot: Snapshot
    rows: list[tuple]  # in the order of COLUMNS, one per coin, by coin_id
    rejected: list[tuple[str, Any]]  # the reason, and the row as sent


def floor_time(moment: datetime, minutes: int) -> datetime:
    """`moment` (UTC, naive) floored to a multiple of `minutes`."""
    return moment - (moment - EPOCH) % timedelta(minutes=minutes)


def file_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H-%M-%SZ")


def fetch_snapshot(settings: Settings, api: CoinGecko, now: datetime, keep: bool) -> Snapshot:
    """The market from CoinGecko, taken at `now` (UTC, naive); with `keep`, its raw answer is on disk first."""
    timestamp = floor_time(now, settings.snapshot_minutes)
    coins = fetch_coins(api, settings.coin_limit)
    path = None
    if keep and coins and settings.snapshot_dir:
        try:
            path = write_snapshot(settings.snapshot_dir, now, timestamp, coins)
            log.info("raw answer kept in %s", path)
        except OSError as error:
            log.warning(
                "the raw answer cannot be kept in %s (%s), so it is lost if the load fails: free the disk or change"
                " SNAPSHOT_DIR",
                settings.snapshot_dir,
                error.strerror,
            )
    stem = path.name.removesuffix(".json.gz") if path else file_time(now)
    return Snapshot(timestamp, coins, path, stem)


def write_snapshot(folder: Path, now: datetime, timestamp: datetime, coins: list) -> Path:
    """Keep a raw answer in `folder`, whole or not at all, under a name that no other has. Raises OSError."""
    path = folder / f"{file_time(now)}.json.gz"
    for number in range(2, 1000):
        if not path.exists():
            break
        path = folder / f"{file_time(now)}_{number}.json.gz"  # another pipeline of the same second
    keep_answer(path, {"timestamp": f"{timestamp.isoformat()}Z", "coins": coins})
    return path


def keep_answer(path: Path, answer: object) -> None:
    """Write a raw answer to `path` as gzipped JSON, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob("*.tmp"):  # of runs that were killed
        with suppress(OSError):
            if UNFINISHED_NAME.fullmatch(stale.name) and stale.stat().st_mtime < time.time() - 3600:
                stale.unlink()
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    text = json.dumps(answer, separators=(",", ":"))
    try:
        with unfinished.open("wb") as file:
            file.write(gzip.compress(text.encode(), compresslevel=1))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_answer(path: Path) -> Any:
    """The JSON in a file, plain or gzipped. Raises DataError, which leaves the path out."""
    try:
        content = path.read_bytes()
        return parse_json(gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content)
    except FileNotFoundError as error:
        raise DataError("there is no such file: check the path") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"it cannot be read as JSON, plain or gzip ({shown(str(error))}): leave it out") from error


def read_snapshot(settings: Settings, path: Path) -> Snapshot:
    """A kept snapshot, or a plain list as /coins/markets answers it. Raises DataError, which leaves the path out."""
    answer = read_answer(path)
    if isinstance(answer, dict) and isinstance(answer.get("coins"), list):
        coins = answer["coins"]
        timestamp = to_time(answer.get("timestamp"))
        if not timestamp:
            raise DataError(
                f"its timestamp is {shown(answer.get('timestamp'))}: put the time of the snapshot there, UTC"
            )
        timestamp = timestamp.replace(microsecond=0)
    elif isinstance(answer, list):
        coins = answer
        times = (to_time(coin.get("last_updated")) for coin in coins if isinstance(coin, dict))
        newest = max(filter(None, times), default=None)
        if not newest:
            raise DataError("it has no coin with a last_updated, which gives a plain list its time: leave it out")
        timestamp = floor_time(newest, settings.snapshot_minutes)
    else:
        raise DataError("it holds no list of coins: give a kept snapshot, or an answer of /coins/markets")
    if not coins:
        raise DataError("it holds no coin: leave it out")
    if timestamp > datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1):
        log.warning("%s is dated %s, in the future: it will pass for the newest snapshot", path, timestamp)
    return Snapshot(timestamp, coins, path, file_time(timestamp))


def keep_rejected(settings: Settings, market: Market, on_disk: bool) -> None:
    """Log the rejected rows, and keep each with its reason as a line of a file beside the snapshots."""
    if not market.rejected:
        return
    for reason, coin in market.rejected[:REJECTED_ROWS_LOGGED]:
        name = coin.get("id") if isinstance(coin, dict) else coin
        log.warning("row rejected: %s (coin %s)", reason, shown(name))
    more = len(market.rejected) - REJECTED_ROWS_LOGGED
    where = ""
    if on_disk and settings.snapshot_dir:
        path = settings.snapshot_dir / f"{market.snapshot.stem}.rejected.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A file that is replayed again adds nothing; two files of one time both do.
            known = set(path.read_text(encoding="utf-8", errors="replace").splitlines()) if path.exists() else set()
            lines = [json.dumps({"reason": reason, "row": coin}) for reason, coin in market.rejected]
            with path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines if line not in known)
            where = f"; kept in {path}"
        except OSError as error:
            log.warning("rejected rows cannot be kept in %s (%s): change SNAPSHOT_DIR", path, error.strerror)
    log.warning("%d rows rejected%s%s", len(market.rejected), f", {more} not shown" if more > 0 else "", where)


def mark_loaded(settings: Settings, snapshot: Snapshot) -> None:
    """Mark a kept answer as loaded, by the mode of its file: only such files are ever pruned."""
    if settings.snapshot_dir and snapshot.path and snapshot.path.resolve().parent == settings.snapshot_dir.resolve():
        try:
            snapshot.path.chmod(LOADED_MODE)
        except OSError as error:
            log.warning("%s cannot be marked as loaded, so it will not be pruned (%s)", snapshot.path, error.strerror)


def prune_snapshots(settings: Settings) -> None:
    """Delete the loaded answers but the newest SNAPSHOT_KEEP, each with its rejected rows."""
    if not settings.snapshot_dir:
        return
    try:
        loaded = [
            path
            for path in sorted(settings.snapshot_dir.glob("*.json.gz"), reverse=True)
            if SNAPSHOT_NAME.fullmatch(path.name) and stat.S_IMODE(path.stat().st_mode) == LOADED_MODE
        ]
        for path in loaded[settings.snapshot_keep :]:
            path.chmod(0o600)  # Windows deletes no read-only file
            path.unlink()
            path.with_name(path.name.replace(".json.gz", ".rejected.jsonl")).unlink(missing_ok=True)
    except OSError as error:
        log.warning("old answers in %s are not pruned: %s", settings.snapshot_dir, error)


# ------------------------------------------------------------------------------------------- transform: coin to row


def to_time(value: Any) -> datetime | None:
    """A naive UTC time, cut to milliseconds, from ISO 8601 with or without an offset; None for what is no time."""
    try:
        moment = datetime.fromisoformat(value)
        # MySQL would drop an offset without a word, and rounds what it cannot hold where MariaDB cuts
        moment = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (TypeError, ValueError, OverflowError):
        return None
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000) if moment.year >= 1000 else None


def to_text(coin: Mapping, key: str) -> str:
    """The text under `key`, unchanged. ValueError says why it cannot be stored."""
    text = coin.get(key)
    if not isinstance(text, str):
        raise ValueError(f"{key} is {shown(text)}, not a text")
    if len(text) > TEXT_LENGTHS[key]:
        raise ValueError(f"{key} has {len(text)} characters, more than {TEXT_LENGTHS[key]}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key} is {shown(text)}, which is no valid Unicode") from None
    return text


def to_figure(coin: Mapping, key: str) -> float | None:
    """The figure under `key`, exactly as sent; None when it is null or missing. ValueError for anything else."""
    figure = coin.get(key)
    if figure is None:
        return None
    if type(figure) not in (int, float):  # a truth value is an int to isinstance
        raise ValueError(f"{key} is {shown(figure)}, not a number")
    if not math.isfinite(figure):
        raise ValueError(f"{key} is {figure}, not a finite number")
    return float(figure)


def to_row(coin: Any, timestamp: datetime) -> tuple:
    """The row of `coin` in the order of COLUMNS. ValueError says why it has none."""
    if not isinstance(coin, dict):
        raise ValueError(f"{shown(coin)} is no coin")
    coin_id, symbol, name = (to_text(coin, key) for key in TEXT_LENGTHS)
    if not coin_id or coin_id != coin_id.strip():
        # the key's collation takes 'x' and 'x ' for one
        raise ValueError(f"id is {shown(coin_id)}: empty, or with white space at an end")
    rank = to_figure(coin, "market_cap_rank")
    if rank is not None and not (rank.is_integer() and 1 <= rank < 2**31):
        raise ValueError(f"market_cap_rank is {rank:g}, not a positive 32-bit integer")
    return (
        timestamp,
        coin_id,
        symbol,
        name,
        None if rank is None else int(rank),
        *(to_figure(coin, key) for key in FIGURES.values()),
        to_time(coin.get("last_updated")),
    )


def read_market(snapshot: Snapshot) -> Market:
    """The usable rows of a snapshot, one per coin, the first one wins; and those that are not, with the reason."""
    rows: dict[str, tuple] = {}
    rejected: dict[Any, tuple[str, Any]] = {}  # by content, where there is an id: the rejected come twice as well
    repeats = 0
    no_time = []
    for position, coin in enumerate(snapshot.coins):
        try:
            row = to_row(coin, snapshot.timestamp)
        except ValueError as reason:
            has_id = isinstance(coin, dict) and isinstance(coin.get("id"), str)
            rejected.setdefault(json.dumps(coin) if has_id else position, (str(reason), coin))
            continue
        coin_id = row[1]
        if coin_id in rows:
            repeats += 1
            continue
        rows[coin_id] = row
        if row[-1] is None:
            no_time.append(coin_id)
    if repeats:
        log.info("%d rows are repeats of a coin and were passed over: the ranking moved between two pages", repeats)
    if no_time:
        log.warning("last_updated of %d coins is no time and becomes NULL: %s", len(no_time), listed(no_time))
    # By id: rows that reach the primary key in its order take half the space and do not deadlock.
    return Market(snapshot, [rows[coin_id] for coin_id in sorted(rows)], list(rejected.values()))


def tell_oddities(market: Market) -> None:
    """Say how many rows hold what surprises but occurs: they are loaded as they are."""
    counts: dict[str, int] = dict.fromkeys(ODDITIES, 0)
    for row in market.rows:
        coin = {column: figure for column, figure in zip(COLUMNS, row, strict=True) if figure is not None}
        for oddity, is_odd in ODDITIES.items():
            with suppress(KeyError):  # a figure that is NULL is not odd
                counts[oddity] += is_odd(coin)
    odd = ", ".join(f"{count} {oddity}" for oddity, count in counts.items() if count)
    if odd:
        log.info("odd, and loaded as they are: %s", odd)


def warn_if_stale(market: Market, now: datetime) -> None:
    """Say so when CoinGecko's figures were old already as they were fetched."""
    newest = max((row[-1] for row in market.rows if row[-1] and row[-1] <= now), default=None)
    if newest and now - newest > STALE_AFTER:
        log.warning(
            "the newest figure is from %s UTC, %d minutes before the fetch: see https://status.coingecko.com",
            newest.isoformat(" ", "minutes"),
            (now - newest).total_seconds() // 60,
        )


def refuse_broken(market: Market, options: argparse.Namespace) -> None:
    """Raise DataError for a snapshot without a usable row, or (without --force) with too many that are not."""
    rejected = len(market.rejected)
    received = len(market.rows) + rejected
    if not received:
        raise DataError(
            "the list of coins is empty, so nothing was written: see https://status.coingecko.com, run again"
        )
    share = (
        f"{rejected} of the {received} coins of {market.snapshot.timestamp} UTC are unusable, so nothing was written"
    )
    if not market.rows:
        raise DataError(f"{share}: see https://status.coingecko.com and run again later")
    if not options.force and rejected >= MIN_REJECTED_ROWS and rejected > MAX_REJECTED_SHARE * received:
        raise DataError(
            f"{share}: run again later, or load the others{replay_hint(market.snapshot, options, '--force')}"
        )


def refuse_incomplete(settings: Settings, options: argparse.Namespace, market: Market, largest: int) -> None:
    """Raise DataError for a list that ended early, `largest` being the coins of the largest of the last snapshots."""
    received = len(market.rows) + len(market.rejected)
    expected = min(settings.coin_limit or largest, largest)
    if received < MIN_COMPLETE_SHARE * expected:
        raise DataError(
            f"the list ended early, so nothing was written: {received} coins came where COIN_LIMIT and the last"
            f" {SNAPSHOTS_COMPARED} snapshots let expect {expected}; run again later, or use --force"
            f"{replay_hint(market.snapshot, options)}"
        )


def replay_hint(snapshot: Snapshot, options: argparse.Namespace, force: str = "") -> str:
    """How to load an answer that was not loaded, for the end of a message."""
    if not snapshot.path:
        return f" with {force}" if force else ""
    command = ["python", "pipeline_orchestrator.py"]
    command += ["--env-file", str(options.env_file)] if options.env_file else []
    command += [force] if force else []
    command += ["--replay", str(snapshot.path)]
    line = subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)
    return f"; the answer is kept, load it the way this run was started, with: {line}"


# ------------------------------------------------------------------------------------------------------------ load


def upsert(cursor: Any, rows: list[tuple]) -> None:
    """Insert `rows`, which are in the order of COLUMNS, or renew those that are there; their tier becomes NULL.

    Positional parameters only: named ones are replaced one after another, and a coin may be called %(symbol)s.
    """
    cursor.execute("SELECT VERSION()")
    # VALUES() is deprecated on MySQL, a row alias is a syntax error on MariaDB.
    new, alias = ("VALUES({})", "") if "MariaDB" in cursor.fetchone()[0] else ("new.{}", " AS new")
    insert = f"INSERT INTO crypto_prices ({', '.join(COLUMNS)}) VALUES "
    values = f"({', '.join(['%s'] * len(COLUMNS))})"
    update = (
        f"{alias} ON DUPLICATE KEY UPDATE {', '.join(f'{column} = {new.format(column)}' for column in COLUMNS[2:])},"
        " market_cap_tier = NULL"
    )
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        # Not by executemany, which takes the statement apart anew each time: half of the time for a hundred rows.
        # Nor by a prepared statement: the connector binds figures as FLOAT, with seven digits.
        cursor.execute(insert + ", ".join([values] * len(batch)) + update, tuple(chain.from_iterable(batch)))


def read_largest_snapshot(cursor: Any) -> int:
    """How many coins the largest of the last five snapshots has; 0 for an empty table."""
    cursor.execute(
        "SELECT COUNT(*) FROM crypto_prices GROUP BY timestamp ORDER BY timestamp DESC LIMIT %s", (SNAPSHOTS_COMPARED,)
    )
    return max((coins for (coins,) in cursor.fetchall()), default=0)


class Written(NamedTuple):
    """One snapshot that was loaded, or with --dry-run would have been."""

    market: Market
    result: Any  # what `write` returned; None in a dry run


def run(
    settings: Settings,
    options: argparse.Namespace,
    connection: Connection | None,
    write: Callable[[Any, Market], Any],
) -> Iterator[Written]:
    """Load the market as it is now, or the files of --replay; `write(cursor, market)` loads each in a transaction.

    `connection` holds the run lock; it is None for a dry run, which writes neither table nor file. Raises DataError,
    DatabaseError and BusyError; files that cannot be used are passed over first, and raise at the end.
    """
    if not options.replay:
        now = datetime.now(UTC).replace(tzinfo=None)
        snapshot = fetch_snapshot(settings, CoinGecko(settings), now, keep=connection is not None)
        market = read_market(snapshot)
        warn_if_stale(market, now)
        tell_oddities(market)
        yield load(settings, options, connection, market, write)
        if connection:
            prune_snapshots(settings)
        return
    paths = expand_patterns(options.replay)
    unusable = []
    for path in paths:
        try:
            market = read_market(read_snapshot(settings, path))
            yield load(settings, options, connection, market, write)
            log.info("%s: %d coins of %s UTC", path, len(market.rows), market.snapshot.timestamp)
        except DataError as error:
            log.error("%s: %s", path, error)
            unusable.append(path.name)
    if unusable:
        raise DataError(
            f"{len(unusable)} of {len(paths)} files were not loaded, for the reasons above ({listed(unusable)}):"
            " fix or leave out these, the others need no second run"
        )


def load(
    settings: Settings,
    options: argparse.Namespace,
    connection: Connection | None,
    market: Market,
    write: Callable[[Any, Market], Any],
) -> Written:
    """Load one snapshot; its rejected rows are kept first. Raises DataError when it is refused."""
    keep_rejected(settings, market, on_disk=connection is not None)
    refuse_broken(market, options)

    def work(cursor: Any) -> Any:
        if not options.replay and not options.force:
            refuse_incomplete(settings, options, market, read_largest_snapshot(cursor))
        return write(cursor, market)

    result = None
    if connection:
        try:
            result = in_transaction(settings, connection, work)
        except (DatabaseError, BusyError) as error:
            error.args = (f"{error}{replay_hint(market.snapshot, options)}",)
            raise
        mark_loaded(settings, market.snapshot)
    return Written(market, result)


def expand_patterns(patterns: Iterable[str]) -> list[Path]:
    """Paths of the files, with the patterns expanded that the shell left alone, as those of Windows do."""
    paths: list[str] = []
    for pattern in patterns:
        found = [] if Path(pattern).exists() else sorted(glob.glob(pattern))  # noqa: PTH207 - takes absolute ones too
        paths += found or [pattern]
    return [Path(path) for path in paths]


# ------------------------------------------------------------------------------------------------ the command line


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def coins_option(text: str) -> str:
    try:
        coin_limit(text)
    except ValueError as wanted:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no number of coins: set it to {wanted}") from None
    return text


def make_parser(prog: str, description: str) -> OneLineParser:
    """A parser without options yet. `description` is the script's docstring."""
    return OneLineParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_extract_options(parser: argparse.ArgumentParser) -> Any:
    """Add the options of the two scripts that fetch; the group of those that exclude each other is returned."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--coins", metavar="N", type=coins_option, help="how many coins, or all (instead of COIN_LIMIT)"
    )
    source.add_argument(
        "--replay", metavar="FILE", nargs="+", help="load kept answers (patterns allowed) instead of fetching"
    )
    parser.add_argument(
        "--force", action="store_true", help="load an incomplete or partly broken snapshot all the same"
    )
    return source


def parse_options(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """`argv` parsed, with the options that all three scripts have."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, write nothing")
    parser.add_argument("--env-file", metavar="PATH", type=Path, help="read the settings here, not in .env")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only (for cron)")
    volume.add_argument("-v", "--verbose", action="store_true", help="more, and tracebacks of errors")
    return parser.parse_args(argv)


class LogFormatter(logging.Formatter):
    """Time in UTC, level, script and message, without control characters and without the `secret`, in tracebacks too.

    Messages show what comes from outside escaped and without the key already; this is for what others put into theirs.
    """

    converter = time.gmtime
    secret = ""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    def clean(self, line: str) -> str:
        line = line.replace(self.secret, "***") if self.secret else line
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)

    def formatMessage(self, record: logging.LogRecord) -> str:
        return self.clean(super().formatMessage(record))

    def formatException(self, exc_info: Any) -> str:
        return "\n".join(map(self.clean, super().formatException(exc_info).split("\n")))


def set_up_logging(options: argparse.Namespace) -> LogFormatter:
    """Log on stderr."""
    formatter = LogFormatter()
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)  # what matters of it comes as an exception
    level = logging.WARNING if options.quiet else logging.DEBUG if options.verbose else logging.INFO
    for script in ("etl_crypto", "segment_and_load", "pipeline_orchestrator"):
        logging.getLogger(script).setLevel(level)
    return formatter


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM becomes the exception Terminated, so that what is open is closed."""

    def end(signal_number: int, frame: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_script(
    script_log: logging.Logger,
    options: argparse.Namespace,
    work: Callable[[Settings], int],
    needs_database: bool = True,
    requirements: str = "requirements.txt",
) -> int:
    """The exit code of `work(settings)`. An expected failure becomes one line in the log, a bug stays a traceback."""
    formatter = set_up_logging(options)
    try:
        with sigterm_raises():
            values = read_environment(options.env_file)
            formatter.secret = values.get("COINGECKO_API_KEY", "").strip()
            if getattr(options, "coins", None):
                values["COIN_LIMIT"] = options.coins
            return work(parse_settings(values, needs_database))
    except PipelineError as error:
        script_log.error("%s", error, exc_info=options.verbose)
        return error.exit_code
    except ModuleNotFoundError as error:
        script_log.error(
            "the Python module %s is missing: %s -m pip install -r %s, or start the script by"
            " bash sql/local_mysql.sh%s, which does so",
            error.name,
            sys.executable,
            requirements,
            "" if requirements == "requirements.txt" else f" --with {requirements}",
            exc_info=options.verbose,
        )
        return ConfigError.exit_code
    except KeyboardInterrupt as error:
        by, exit_code = ("SIGTERM", 143) if isinstance(error, Terminated) else ("Ctrl-C", 130)
        script_log.error("ended by %s: no snapshot is half in the table, run again when you like", by)
        return exit_code


def end_process(exit_code: int) -> NoReturn:
    """End with `exit_code` at once: the work is done.

    While Python takes itself down a signal would change the code, and a thread that is still at its import or its call
    could crash the process.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(exit_code)


def print_result(text: str) -> None:
    """Print on stdout; whoever reads there, such as head, may have gone."""
    try:
        print(text, flush=True)
    except OSError as error:
        log.info("the result cannot be printed: %s", error.strerror)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails to flush it at the end


def say(options: argparse.Namespace, line: str) -> None:
    """A line of the result, unless -q."""
    if not options.quiet:
        print_result(line)


def main(argv: list[str] | None = None) -> int:
    """Command line in, exit code out."""
    parser = make_parser("etl_crypto.py", __doc__)
    add_extract_options(parser)
    options = parse_options(parser, argv)

    def work(settings: Settings) -> int:
        with nullcontext() if options.dry_run else writing_connection(settings) as connection:
            done = "would be written (dry run)" if options.dry_run else "written"
            for market, _ in run(settings, options, connection, lambda cursor, market: upsert(cursor, market.rows)):
                coins, rejected = len(market.rows), len(market.rejected)
                say(options, f"{market.snapshot.timestamp} UTC: {coins} coins {done}, {rejected} rejected")
        return 0

    return run_script(log, options, work, needs_database=not options.dry_run)


if __name__ == "__main__":
    end_process(main())
