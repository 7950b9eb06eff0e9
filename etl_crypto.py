"""Fetch the cryptocurrency market from CoinGecko and upsert it into MySQL.

  python etl_crypto.py                           the market as it is now
  python etl_crypto.py --coins 250 --dry-run     fetch it, write nothing
  python etl_crypto.py --replay snapshots/*.gz   load raw snapshots again

Rows have no market_cap_tier yet: segment_and_load.py fills it in, and
pipeline_orchestrator.py runs both.
Settings come from .env (see .env.example); exit codes are in README.md.
"""

from __future__ import annotations

import argparse
import errno
import glob
import gzip
import json
import logging
import math
import os
import re
import shlex
import signal
import ssl
import stat
import subprocess
import sys
import threading
import time
import zlib
from argparse import Namespace
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import Field, dataclass, field, fields, replace
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from io import StringIO
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from sql import crypto_prices
from sql.connection import (
    AWS_HINTS,
    HINTS,
    Database,
    DatabaseError,
    PipelineError,
    Server,
    defer_signals,
    is_loopback,
    join_quoted,
    quote,
)
from sql.crypto_prices import COLUMNS, FIGURES, TEXT_LENGTHS, open_database

VERSION = "2.0.0"
PROJECT_DIR = Path(__file__).resolve().parent
UTC = timezone.utc  # noqa: UP017 - an old Python has no datetime.UTC, and shall get as far as sql/__init__.py
log = logging.getLogger("etl_crypto")
Fetch = Callable[[Any], Any]  # one call of the API, for a page or a coin


class ConfigError(PipelineError):
    """A setting or an option is missing or bad; nothing was connected to."""

    exit_code = 2


class DataError(PipelineError):
    """CoinGecko did not answer as it should, or its answer or a file is unusable."""

    exit_code = 3


class RejectedCallError(DataError):
    """CoinGecko rejected one call for good; another may do."""


class NotFoundError(RejectedCallError):
    """CoinGecko does not know what was asked for."""


# -------------------------------------------------------------------------------------------------------- settings

PUBLIC_API = "https://api.coingecko.com/api/v3"
PRO_API = "https://pro-api.coingecko.com/api/v3"

BadValue = argparse.ArgumentTypeError  # a bad setting or option, and what is wanted
NO_CA = "none"  # as MYSQL_SSL_CA: nobody's certificate is checked


def to_number(kind: type, low: float, high: float, text: str) -> float:
    with suppress(ValueError):
        if "_" not in text and low <= kind(text) <= high:
            return kind(text)
    raise BadValue(f"{quote(text)}, not a {'whole ' if kind is int else ''}number from {low} to {high}")


def to_match(pattern: str, what: str, text: str) -> str:
    if not re.fullmatch(pattern, text.strip()):
        raise BadValue(f"{quote(text)}, not {what}")
    return text.strip()


def or_none(read: Callable[[str], Any], text: str) -> Any:
    return read(text) if text.strip() else None


def to_coin_limit(text: str) -> int | None:
    try:
        return None if text.strip().lower() == "all" else to_number(int, 1, 1_000_000, text)
    except BadValue as problem:
        raise BadValue(f"{problem}, or all") from None


def to_path(text: str, folder: Path = PROJECT_DIR) -> Path:
    """Relative to `folder`, by default that of the scripts; ~ is the home folder."""
    try:
        return folder / Path(text.strip()).expanduser()
    except RuntimeError:
        raise BadValue(f"{quote(text)}, and there is no such home folder") from None


def to_ca_file(text: str) -> Path | str:
    if text.strip().lower() == NO_CA:
        return NO_CA
    if not os.path.isfile(to_path(text)):  # noqa: PTH113 - false for a folder without access, where is_file() raises
        raise BadValue(f"{quote(text)}, not a file with CA certificates (PEM)")
    return to_path(text)


def setting(default: str | None, read: Callable[..., Any], *arguments: object, is_secret: bool = False) -> Any:
    """A field of Settings: its default as .env would have it (None: required), and `read(*arguments, text)`."""
    return field(repr=not is_secret, metadata={"default": default, "read": partial(read, *arguments)})


@dataclass(frozen=True)
class Settings:
    """The settings of a run. Each field is the .env.example key of the same name."""

    mysql_host: str = setting("localhost", to_match, ".+", "a host name or an address")
    mysql_port: int = setting("3306", to_number, int, 1, 65535)
    mysql_database: str = setting("crypto_db", to_match, ".+", "the name of a database")
    mysql_user: str | None = setting(None, str.strip)
    mysql_password: str | None = setting(None, str, is_secret=True)
    mysql_ssl_ca: Path | str | None = setting("", or_none, to_ca_file)  # noqa: RUF009
    mysql_secret_id: str = setting("", str.strip)  # name or ARN
    coingecko_secret_id: str = setting("", str.strip)
    coingecko_api_key: str = setting("", to_match, "[!-~]*", "a key of CoinGecko", is_secret=True)
    coingecko_api_plan: str = setting("demo", lambda text: to_match("demo|pro", "demo or pro", text.lower()))
    coingecko_base_url: str = setting("", str.strip)
    coin_limit: int | None = setting("1000", to_coin_limit)  # None: every coin
    requests_per_minute: int = setting("", or_none, partial(to_number, int, 1, 10_000))
    http_timeout_seconds: float = setting("30", to_number, float, 0.1, 3600)
    retry_budget_seconds: float = setting("600", to_number, float, 0, 1e6)
    snapshot_minutes: int = setting("1", to_number, int, 1, 525_600)
    snapshot_dir: Path | None = setting("snapshots", or_none, to_path)  # noqa: RUF009 - None: no raw snapshots
    snapshot_keep: int = setting("100", to_number, int, 0, 1_000_000)
    retention_days: int | None = setting("", or_none, partial(to_number, int, 1, 36_500))  # None: for ever
    tier_large_cap_min: float = setting("10e9", to_number, float, 1e-9, 1e300)  # USD
    tier_mid_cap_min: float = setting("1e9", to_number, float, 1e-9, 1e300)
    tier_small_cap_min: float = setting("100e6", to_number, float, 1e-9, 1e300)

    @property
    def server(self) -> Server:
        """The database server. Raises ConfigError without an account, or a CA file for another machine: some runs need
        no server.
        """
        if not self.mysql_user or self.mysql_password is None:
            missing = "MYSQL_PASSWORD" if self.mysql_user else "MYSQL_USER"
            if self.mysql_secret_id:
                raise ConfigError(
                    f"{missing} is not set, and the secret {quote(self.mysql_secret_id)} does not hold it: put username"
                    " and password into the secret"
                )
            raise ConfigError(
                f"{missing} is not set: run python"
                " sql/create_database.py, which writes .env (or copy .env.example to it), or use this project's own"
                " server: bash sql/local_mysql.sh python pipeline_orchestrator.py"
            )
        has_secret = self.mysql_secret_id or self.coingecko_secret_id
        if not self.mysql_ssl_ca and (has_secret or not is_loopback(self.mysql_host)):
            raise ConfigError(
                f"MYSQL_SSL_CA is empty, so whoever answers as {quote(self.mysql_host)} would get the password: set it"
                f" to the CA file of that server, or to {NO_CA} to trust whoever answers"
            )
        where = (self.mysql_host, self.mysql_port, self.mysql_database)
        ssl_ca = None if self.mysql_ssl_ca == NO_CA else self.mysql_ssl_ca
        hints = AWS_HINTS if self.mysql_secret_id else HINTS
        return Server(*where, self.mysql_user, self.mysql_password, ssl_ca, hints=hints)


def read_environment(env_file: Path | None) -> dict[str, str]:
    """The real environment over the variables of `env_file` (default: .env beside the scripts). Raises ConfigError."""
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    path = env_file or PROJECT_DIR / ".env"
    try:
        # utf-8-sig: Notepad begins a file with a byte order mark, which would become part of the first key
        text = path.read_text(encoding="utf-8-sig") if env_file or path.exists() else ""
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}: copy .env.example to it, or leave --env-file out") from error
    except OSError as error:
        raise ConfigError(
            f"cannot read {path} ({error.strerror}): it must be a file that this user may read"
        ) from error
    except ValueError as error:
        raise ConfigError(f"cannot read {path} ({quote(str(error))}): save it as a text file in UTF-8") from error
    for line in parse_stream(StringIO(text)):
        if line.error:
            raise ConfigError(f"{path}, line {line.original.line}, is not KEY=value: fix it (a quote without its end?)")
    values = dotenv_values(stream=StringIO(text), interpolate=False)
    warn_of_misspelt_keys(path, values)
    warn_of_readers(path, values)
    return {key: value for key, value in values.items() if value is not None} | dict(os.environ)


SECRETS = {  # which setting each field of a secret is; these of the database are RDS's own names
    "MYSQL_SECRET_ID": {
        "host": "MYSQL_HOST",
        "port": "MYSQL_PORT",
        "dbname": "MYSQL_DATABASE",
        "username": "MYSQL_USER",
        "password": "MYSQL_PASSWORD",
    },
    "COINGECKO_SECRET_ID": {"api_key": "COINGECKO_API_KEY", "api_plan": "COINGECKO_API_PLAN"},
}
AWS_TIMEOUT = 5  # seconds, three times; without a way out of its network, boto3 would wait for minutes


def add_secrets(values: Mapping[str, str]) -> dict[str, str]:
    """`values` over the settings in the secrets that they name. Read at each run: a new password counts from the next.

    Raises ConfigError, which never shows what is in a secret.
    """
    found: dict[str, str] = {}
    for key, settings in SECRETS.items():
        if secret_id := values.get(key, "").strip():
            secret = fetch_secret(key, secret_id)
            found |= {name: secret[each] for each, name in settings.items() if each in secret}
    if stronger := [name for name, text in found.items() if values.get(name, text) != text]:
        log.info("%s of the environment or .env: not taken from the secret", ", ".join(stronger))
    return found | dict(values)


def fetch_secret(key: str, secret_id: str) -> dict[str, str]:
    """The fields of a secret in AWS Secrets Manager that are filled in. `key` names the setting, for messages.

    Raises ConfigError, which never shows what is in it.
    """
    secret = f"the secret {quote(secret_id, 150)} of {key}"
    try:
        with defer_signals():
            import boto3  # part of Lambda's Python
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError
    except ModuleNotFoundError as error:
        raise ConfigError(f"{key} needs the module {error.name}: {sys.executable} -m pip install boto3") from error
    arn = re.match("arn:[^:]+:secretsmanager:([^:]+):", secret_id)
    config = Config(connect_timeout=AWS_TIMEOUT, read_timeout=AWS_TIMEOUT, retries={"total_max_attempts": 3})
    try:
        client = boto3.client("secretsmanager", region_name=arn and arn[1], config=config)
        text = client.get_secret_value(SecretId=secret_id).get("SecretString", "")
    except ClientError as error:
        reason = "{Code}: {Message}".format_map(defaultdict(str, error.response["Error"]))
        rights = "check its name and region, and that this role or user may read it (secretsmanager:GetSecretValue)"
        raise ConfigError(f"AWS refuses {secret} ({quote(reason, 150)}): {rights}") from error
    except (BotoCoreError, ValueError) as error:
        way = "check the region, the credentials and the network path to AWS"
        raise ConfigError(f"{secret} could not be read ({quote(str(error), 150)}): {way}") from error
    fields: Any = None
    with suppress(ValueError):
        fields = json.loads(text)
    if not isinstance(fields, dict) or any(type(value) not in (str, int, type(None)) for value in fields.values()):
        names = "api_key and api_plan" if key == "COINGECKO_SECRET_ID" else "username and password"
        raise ConfigError(f"{secret} is no JSON object of texts (it is not shown here): give it {names}")
    return {name: str(value) for name, value in fields.items() if value not in (None, "")}


def warn_of_readers(path: Path, values: Mapping[str, str | None]) -> None:
    """Warn of passwords that anybody may read; not under -q, as cron would mail it with every run."""
    secrets = [each.name.upper() for each in fields(Settings) if not each.repr]
    has_secret = any(map(values.get, secrets))
    if os.name == "posix" and has_secret and log.isEnabledFor(logging.INFO) and path.stat().st_mode & stat.S_IROTH:
        log.warning("everybody on this machine may read the passwords in it: chmod 600 %s", shlex.quote(str(path)))


def warn_of_misspelt_keys(path: Path, keys: Iterable[str]) -> None:
    known = [each.name.upper() for each in fields(Settings)]
    for key in set(keys) - set(known):
        near = [name for edits in range(3) for name in known if is_within(edits, key.upper(), name)]
        if near:
            log.warning("%s in %s is no setting and has no effect: rename it to %s", quote(key), path, near[0])


def is_within(edits: int, one: str, other: str) -> bool:
    """Is the edit distance (insert, delete, replace) of `one` and `other` at most `edits`?"""
    if edits < 0 or not one or not other:
        return len(one or other) <= edits
    if one[0] == other[0]:
        return is_within(edits, one[1:], other[1:])
    return any(is_within(edits - 1, *pair) for pair in ((one[1:], other), (one, other[1:]), (one[1:], other[1:])))


def parse_settings(values: Mapping[str, str]) -> Settings:
    """Settings from `values`, with the defaults of README.md. Raises ConfigError, which never shows a secret."""
    read = {each.name: read_setting(each, values) for each in fields(Settings)}
    has_key, is_pro = bool(read["coingecko_api_key"]), read["coingecko_api_plan"] == "pro"
    read["requests_per_minute"] = read["requests_per_minute"] or (5 if not has_key else 250 if is_pro else 30)
    read["coingecko_base_url"] = read["coingecko_base_url"] or (PRO_API if is_pro and has_key else PUBLIC_API)
    check_base_url(read["coingecko_base_url"], has_key)
    if not read["tier_large_cap_min"] > read["tier_mid_cap_min"] > read["tier_small_cap_min"]:
        bounds = ", ".join(f"{key.upper()}={read[key]:g}" for key in read if key.startswith("tier_"))
        raise ConfigError(f"{bounds} are not descending: set each below the last")
    return Settings(**read)


def read_setting(key_field: Field, values: Mapping[str, str]) -> Any:
    key = key_field.name.upper()
    text = values.get(key, key_field.metadata["default"])
    try:
        return None if text is None else key_field.metadata["read"](text)
    except BadValue as problem:
        wrong = problem if key_field.repr else "not usable (its value is not shown here)"
        raise ConfigError(f"{key} is {wrong}: correct it") from None


def check_base_url(url: str, has_key: bool) -> None:
    """Raise ConfigError for a COINGECKO_BASE_URL that is no address, or where a key would not be safe."""
    # Not shown when it holds one of @?#: there is probably a password or a key in it.
    shown = "more than an address (a key goes into COINGECKO_API_KEY)" if re.search("[@?#]", url) else quote(url)
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.port != 0 and parts.scheme in ("http", "https") else None
    except ValueError:
        host = None
    if not re.fullmatch(r"[\w.:-]+", host or "") or shown != quote(url):
        raise ConfigError(f"COINGECKO_BASE_URL is {shown}: set it to one such as {PUBLIC_API}, or leave it empty")
    if has_key and parts.scheme == "http" and not is_loopback(host):
        raise ConfigError(f"COINGECKO_BASE_URL is {shown}, which would send the key in the clear: use https")


# ----------------------------------------------------------------------------------------------------------- times

EPOCH = datetime(1970, 1, 1)  # times are naive UTC throughout, as DATETIME columns are
TIME = "%Y-%m-%d %H:%M:%S"  # in messages
MINUTES_PER_DAY = 1_440
CLOCK_TOLERANCE = timedelta(minutes=5)


def utc_now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def future() -> datetime:
    """What is dated from here on (UTC, naive) lies in the future; a little before may be another machine's clock."""
    return utc_now() + CLOCK_TOLERANCE


def floor_time(moment: datetime, minutes: int) -> datetime:
    """`moment` (UTC, naive) floored to a multiple of `minutes`."""
    return moment - (moment - EPOCH) % timedelta(minutes=minutes)


def duration(minutes: float) -> str:
    """`minutes` as 12 min, 3 h 20 min or 4 d 2 h."""
    whole = int(minutes)
    if whole < 60:
        return f"{whole} min"
    if whole < 2 * MINUTES_PER_DAY:
        return f"{whole // 60} h {whole % 60} min"
    return f"{whole // MINUTES_PER_DAY} d {whole % MINUTES_PER_DAY // 60} h"


BAR_WIDTH, SCREEN_WIDTH = 30, 79  # characters
LONG = 10  # seconds


def paced_seconds(calls: int, per_minute: int) -> float:
    """How long the rate limit makes `calls` take, at least: the first of each minute go at once."""
    return 60.0 * ((calls - 1) // per_minute)


class Progress:
    """How far a LONG job is, unless -q: a bar on a terminal, a line a minute in a log.

    `total` things of the kind `what` are to be done, in `seconds` at least.
    """

    def __init__(self, what: str, total: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.what = what
        self.total = max(total, 1)
        self.seconds_each = seconds / self.total
        self.is_shown = seconds > LONG and log.isEnabledFor(logging.INFO)
        self.clock = clock
        self.started = self.logged = clock()

    def update(self, done: int, note: str = "") -> None:
        if not self.is_shown:
            return
        now, total = self.clock(), max(self.total, done)
        left = (total - done) * max(self.seconds_each, (now - self.started) / max(done, 1))
        text = f"{done:,} of {total:,} {self.what}, {duration(math.ceil(left / 60))} left{note}"
        if sys.stderr.isatty():
            width = max(min(BAR_WIDTH, SCREEN_WIDTH - 3 - len(text)), 0)
            filled = width * done // total
            bar = f"[{'#' * filled}{'.' * (width - filled)}] {text}"
            # ends at its start, so that a log line overwrites it
            sys.stderr.write(f"\r{bar:{SCREEN_WIDTH}.{SCREEN_WIDTH}}\r")
            sys.stderr.flush()
        elif now - self.logged >= 60:
            self.logged = now
            log.info("%s", text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the bar."""
        if self.is_shown and sys.stderr.isatty():
            sys.stderr.write(f"\r{'':{SCREEN_WIDTH}}\r")
            sys.stderr.flush()


# ------------------------------------------------------------------------------------------------- fetch: CoinGecko

ALL_COINS = 17_500  # about, in 2026
PER_PAGE = 250  # its largest page; the same for every page, or page 2 would not begin where page 1 ended
MARKETS = f"/coins/markets?vs_currency=usd&order=market_cap_desc&per_page={PER_PAGE}"
CALLS_IN_FLIGHT = 4
LONGEST_BACKOFF = 60.0  # seconds; CoinGecko counts by the minute
RETRIES_OF_403 = 2  # without a reason in its body: some pass
MAX_ANSWER_BYTES = 20_000_000  # a page of 250 coins has 0.3 MB
MAX_DEPTH = 50  # of lists and objects in an answer; CoinGecko's has 3
HINTS_BY_API_ERROR = {
    10002: "set COINGECKO_API_KEY",
    10005: "this needs another plan: check COINGECKO_API_PLAN",
    10006: "this month's calls of the key are used up: wait for the next month, or take another key or plan",
    10010: "a Pro key needs COINGECKO_API_PLAN=pro",
    10011: "a Demo key needs COINGECKO_API_PLAN=demo",
    10012: "it reaches further back than the plan allows",
}
RUN_LATER = "see https://status.coingecko.com and run again later"
SAMPLE_COMMAND = (
    "MYSQL_DATABASE=crypto_sample bash sql/local_mysql.sh python pipeline_orchestrator.py --replay tests/data/*.json.gz"
)


class RetryableError(Exception):
    """A call that may succeed next time; not before `retry_after` seconds, if the API asked for that."""

    def __init__(
        self,
        problem: str,
        retry_after: float = 0.0,
        is_refusal: bool = False,
        was_sent: bool = True,
        is_rate_limit: bool = False,
    ) -> None:
        super().__init__(problem)
        self.retry_after = retry_after
        self.is_refusal = is_refusal
        self.was_sent = was_sent
        self.concerns_all = is_rate_limit or not was_sent  # whatever is asked for


class CoinGecko:
    """The API, under one run's rate limit and retry budget. `sleep` and `clock` are in seconds. To be closed.

    With `any_time`, a machine whose clock is wrong is warned of and not refused.
    """

    def __init__(
        self,
        settings: Settings,
        sleep: Callable = time.sleep,
        clock: Callable = time.monotonic,
        any_time: bool = False,
    ) -> None:
        with defer_signals():
            import requests  # here, as other large packages elsewhere: --help and a bad setting answer at once

        self.settings = settings
        self.sleep = sleep
        self.clock = clock
        self.timeout = settings.http_timeout_seconds  # for a whole answer
        self.budget = settings.retry_budget_seconds
        self.any_time = any_time
        self.time_is_checked = False
        self.has_waited = False
        self.pace_level = logging.INFO  # of the lines on waits for the rate limit; lower where Progress is shown
        self.calls = 0
        self.answered: deque[float] = deque()  # when the calls of the last minute were answered
        # More threads than calls: one whose answer trickles in keeps its thread after its time is up.
        self.threads = ThreadPoolExecutor(64)
        self.session = requests.Session()
        host = urlsplit(settings.coingecko_base_url).hostname or ""
        self.session.trust_env = not is_loopback(host)  # a proxy is for other machines
        self.session.auth = lambda request: request  # without one, a password of ~/.netrc would be sent
        # an empty one is answered 403
        self.session.headers["User-Agent"] = f"crypto-market-pipeline/{VERSION} (python-requests)"
        if settings.coingecko_api_key:
            self.session.headers[f"x-cg-{settings.coingecko_api_plan}-api-key"] = settings.coingecko_api_key

    def close(self) -> None:
        with defer_signals():  # what a handler raises in a finalizer, as urllib3 has for its connections, is lost
            self.threads.shutdown(wait=False, cancel_futures=True)
            self.session.close()

    def fetch_each(
        self, what: str, fetch: Fetch, keys: Iterable[Any], tries: int | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """Each of `keys`, in order, with what `fetch(key)`, one call, answers; four at a time.

        Transient failures are retried as long as the budget lasts. Raises DataError for any other failure. `what` names
        a key in messages: page or coin. With `tries`, a key that fails on its own, for good or so often, comes with its
        error in place of an answer; that spends no budget.
        """
        keys = iter(keys)
        while wave := list(islice(keys, CALLS_IN_FLIGHT)):
            yield from self.fetch_wave(what, fetch, wave, tries).items()

    def fetch_wave(self, what: str, fetch: Fetch, keys: list[Any], tries: int | None) -> dict[Any, Any]:
        """fetch_each() for as many keys as are called at a time: those that fail are waited for together."""
        answers: dict[Any, Any] = {}
        tries_left = dict.fromkeys(keys, tries or math.inf)
        rounds = refusals = 0
        while keys:
            for key, call in zip(keys, self.call_all(fetch, keys), strict=True):
                answers[key] = self.outcome(call, passes_over=bool(tries))
            problems = {key: answers[key] for key in keys if isinstance(answers[key], RetryableError)}
            for key, problem in problems.items():
                tries_left[key] -= not problem.concerns_all
            keys = [key for key in problems if tries_left[key] > 0]
            if keys:
                refusals += any(problem.is_refusal for problem in problems.values())
                self.wait_to_retry(what, {key: problems[key] for key in keys}, rounds, refusals, bool(tries))
                rounds = min(rounds + 1, 9)  # more make no difference
        return answers

    def outcome(self, call: Future, passes_over: bool) -> Any:
        """What a call answered, or why it may be retried, or with `passes_over` why not. Raises DataError."""
        try:
            return call.result(timeout=0)
        except TimeoutError:  # however the answer trickles in
            return RetryableError(f"no complete answer within {self.timeout:g} s")
        except RetryableError as problem:
            return problem
        except RejectedCallError as problem:
            if not passes_over:
                raise
            return problem

    def call_all(self, fetch: Fetch, keys: list[Any]) -> Iterator[Future]:
        """One call for each of `keys`, in parallel as far as the rate limit allows; one that is not done timed out."""
        while keys:
            allowed = self.wait_for_rate()
            calls = [self.threads.submit(fetch, key) for key in keys[:allowed]]
            keys = keys[allowed:]
            deadline = self.clock() + self.timeout
            while wait(calls, timeout=0.1).not_done and self.clock() < deadline:
                pass  # in short waits: on Windows a signal does not end a longer one
            # A call counts until a minute after its answer: whenever the API counts it, it was before that.
            not_sent = sum(not getattr(call.exception(), "was_sent", True) for call in calls if call.done())
            self.answered.extend([self.clock()] * (len(calls) - not_sent))
            self.calls += len(calls)
            yield from calls

    def wait_for_rate(self) -> int:
        """How many calls the rate limit allows now; waits until it is one at least."""
        limit = self.settings.requests_per_minute
        while True:
            while self.answered and self.answered[0] <= self.clock() - 60:
                self.answered.popleft()
            if len(self.answered) < limit:
                return limit - len(self.answered)
            pause = max(self.answered[0] + 60 - self.clock(), 0.01)
            if pause > 1:
                text = "%d calls made, %d a minute are allowed: waiting %.0f s"
                log.log(self.pace_level, text, self.calls, limit, pause)
            self.sleep(pause)

    def wait_to_retry(
        self, what: str, problems: dict[Any, RetryableError], rounds: int, refusals: int, has_tries: bool
    ) -> None:
        """Wait before calls that failed are made again; DataError when that is not worth it."""
        pause = max(min(2.0**rounds, LONGEST_BACKOFF), *(problem.retry_after for problem in problems.values()))
        (key, problem), *others = problems.items()
        failed = f"{what} {quote(key)}: {problem}" + (f" (and {len(others)} more)" if others else "")
        if refusals > RETRIES_OF_403 and not has_tries:
            raise DataError(f"CoinGecko, {failed}, again and again: {RUN_LATER}")
        if has_tries and not any(problem.concerns_all for problem in problems.values()):
            pause = min(pause, LONGEST_BACKOFF)
            log.warning("%s; trying again in %.0f s", failed, pause)
        elif pause > self.budget:
            raise DataError(
                f"CoinGecko, {failed}; the next try is due in {pause:.0f} s, and RETRY_BUDGET_SECONDS="
                f"{self.settings.retry_budget_seconds:g} has {self.budget:.0f} s left: {RUN_LATER}"
                + (f", or load the sample market: {SAMPLE_COMMAND}" if self.may_load_sample(what) else "")
            )
        else:
            log.warning("%s; trying again in %.0f s%s", failed, pause, self.outlook(what, problems.values()))
            self.budget -= pause
        self.sleep(pause)

    def outlook(self, what: str, problems: Iterable[RetryableError]) -> str:
        """For the first wait of a run: how long this can go on and, without network, how to load the sample."""
        if self.has_waited:
            return ""
        self.has_waited = True
        left = duration(self.budget / 60) if self.budget >= 60 else f"{self.budget:.0f} s"
        text = f", and so on for up to {left} (RETRY_BUDGET_SECONDS)"
        if not all(problem.was_sent for problem in problems):
            if self.may_load_sample(what):
                text += f"; without internet, load the sample market: {SAMPLE_COMMAND}"
            elif self.settings.mysql_secret_id:
                text += "; on Lambda, deploy with Egress=nat when this goes on"
        return text

    def may_load_sample(self, what: str) -> bool:
        return what == "page" and not self.settings.mysql_secret_id  # with one, this is no first try

    def fetch_page(self, page: int) -> list:
        """One call for one page of /coins/markets. Raises RetryableError or DataError."""
        answer = self.get(f"{MARKETS}&sparkline=false&price_change_percentage=1h,24h,7d&page={page}")
        if not isinstance(answer, list) or (answer and not any(isinstance(coin, dict) for coin in answer)):
            raise RetryableError(f"no list of coins: {quote(str(answer))}")
        return answer

    def get(self, path: str) -> Any:
        """The JSON that one call answers. Raises RetryableError or DataError."""
        import requests

        url = self.settings.coingecko_base_url.rstrip("/")
        body = bytearray()
        try:
            # no redirect is followed: requests would take the key along
            with self.session.get(url + path, timeout=self.timeout, allow_redirects=False, stream=True) as response:
                self.check_time(response.headers)
                for chunk in response.iter_content(65_536):
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise RetryableError(f"an answer of more than {MAX_ANSWER_BYTES // 1_000_000} MB")
        except requests.ReadTimeout as error:
            raise RetryableError(f"no answer within {self.timeout:g} s") from error
        except (requests.RequestException, ValueError) as error:  # requests lets some errors of parsing through
            cause = root_cause(error)
            reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
            if isinstance(cause, ssl.SSLCertVerificationError):
                trust = "behind a company's proxy, set REQUESTS_CA_BUNDLE to a file with its CA certificates (PEM)"
                raise DataError(
                    f"the certificate of {url} is not trusted ({quote(cause.verify_message)}): {trust}"
                ) from error
            was_sent = not isinstance(cause, OSError) or isinstance(cause, ConnectionResetError)  # else: no network
            by = " through the proxy of HTTP(S)_PROXY" if isinstance(error, requests.exceptions.ProxyError) else ""
            raise RetryableError(f"no answer from {url}{by} ({quote(reason)})", was_sent=was_sent) from error
        if key := self.settings.coingecko_api_key:  # whoever answers may send it back, and messages are cut anywhere
            body = body.replace(key.encode(), b"***")
        answer = None
        try:
            answer = parse_json(bytes(body))
        except ValueError:
            if response.status_code == 200:
                raise RetryableError(f"status 200, yet no JSON: {quote(body[:200].decode(errors='replace'))}") from None
        self.check(response, answer)
        return answer

    def check_time(self, headers: Mapping[str, str]) -> None:
        """Raise DataError when this machine's clock is wrong, by the first answer: it dates the snapshots."""
        here, there = utc_now(), to_date(headers.get("Date", ""))
        if self.time_is_checked or not there:
            return
        with suppress(ValueError, OverflowError):  # the seconds that it lay in a cache
            there += timedelta(seconds=max(int(headers.get("Age", "")), 0))
        minutes = abs(here - there) / timedelta(minutes=1)
        if minutes > CLOCK_TOLERANCE / timedelta(minutes=1):
            apart = f"{duration(minutes)} {'ahead of' if here > there else 'behind'} CoinGecko's"
            problem = f"this machine's clock is {apart}: set it ({here:{TIME}} here, {there:{TIME}} there, UTC)"
            if not self.any_time:
                raise DataError(f"{problem}, or use --force; nothing was written")
            log.warning("%s; --force goes on with the time here", problem)
        self.time_is_checked = True

    def check(self, response: Any, answer: Any) -> None:
        """Raise RetryableError or DataError for an answer that is an error, by its status or by its body."""
        status = response.status_code
        code, message = api_error(answer)
        if status == 200 and message is None:
            return
        answered = f"status {status}{f', error {code}' if code else ''}{f': {quote(message)}' if message else ''}"
        if code in HINTS_BY_API_ERROR or 401 in (status, code):
            hint = HINTS_BY_API_ERROR.get(code, "check COINGECKO_API_KEY and COINGECKO_API_PLAN")
            raise DataError(f"CoinGecko refused the call ({answered}): {hint}")
        if status == 404:
            raise NotFoundError(f"CoinGecko does not know it ({answered}): check COINGECKO_BASE_URL")
        if 403 in (status, code):
            raise RetryableError(answered, is_refusal=True)
        if 300 <= status < 500 and status not in (408, 429):
            kind = RejectedCallError if status >= 400 else DataError
            raise kind(f"CoinGecko rejected the call ({answered}): set COINGECKO_BASE_URL to its own address")
        retry_after = to_seconds(response.headers.get("Retry-After", ""))
        raise RetryableError(answered, retry_after, is_rate_limit=429 in (status, code))


def parse_json(text: bytes) -> Any:
    """JSON. An integer of 20 digits or more becomes a float: columns are DOUBLE. Raises ValueError.

    What is nested deeper than MAX_DEPTH becomes empty: Python could not write or print it.
    """
    loads = partial(json.loads, parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits))
    try:
        answer = loads(text)
    except RecursionError:
        answer = loads(cut_depth(text))
    level = containers_in([answer])
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in containers_in(outer)]
    for container in level:
        container.clear()
    return answer


def containers_in(outer: list | dict) -> list[list | dict]:
    return [inner for inner in (outer.values() if type(outer) is dict else outer) if type(inner) in (list, dict)]


def cut_depth(text: bytes) -> bytes:
    """JSON without what its lists and objects hold deeper than MAX_DEPTH."""
    depth = start = 0
    kept = []
    for token in re.finditer(rb'"(?:[^"\\]|\\.)*"|[][{}]', text):
        depth += (token[0] in (b"[", b"{")) - (token[0] in (b"]", b"}"))
        if depth == MAX_DEPTH and token[0] in (b"]", b"}"):
            start = token.start()
        elif depth == MAX_DEPTH + 1 and token[0] in (b"[", b"{"):
            kept.append(text[start : token.end()])
    return b"".join(kept if depth > MAX_DEPTH else [*kept, text[start:]])


def api_error(answer: Any) -> tuple[int | None, str | None]:
    """Error code and message of an error body, wherever CoinGecko puts them; (None, None) for anything else."""
    if not isinstance(answer, dict):
        return None, None
    codes = [str(code) for code in find_values(answer, "error_code")]
    texts = [text for text in find_values(answer, "error_message", "error") if isinstance(text, str)]
    code = next((int(code) for code in codes if code.isdecimal() and len(code) < 9), None)
    return code, next(iter(texts), "an error" if codes else None)


def find_values(answer: dict, *keys: str) -> list[Any]:
    """What stands under `keys` in `answer` and in the objects within, the outermost first."""
    places = [answer]
    for place in places:
        places += [inner for inner in place.values() if isinstance(inner, dict)]
    return [place[key] for place in places for key in keys if place.get(key)]


def to_seconds(retry_after: str) -> float:
    """Seconds that a Retry-After header asks for, from its number or its date; 0 when it holds neither."""
    with suppress(ValueError):
        seconds = float(retry_after)
        return seconds if 0 < seconds < math.inf else 0.0
    date = to_date(retry_after)
    return max((date - utc_now()).total_seconds(), 0.0) if date else 0.0


def to_date(http_date: str) -> datetime | None:
    """The time (UTC, naive) of a header such as Date; None for what is no time."""
    with suppress(ValueError, OverflowError):
        date = parsedate_to_datetime(http_date)
        return date.astimezone(UTC).replace(tzinfo=None) if date.tzinfo else date
    return None


def root_cause(error: BaseException) -> BaseException:
    """The innermost error of a chain of exceptions, the one that tells what happened."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return error


def fetch_coins(api: CoinGecko, limit: int | None) -> tuple[list, str]:
    """The market's first `limit` distinct coins (None: all), as sent, in the order of the pages, repeats included.

    And what shows that the answer is broken, if anything does. Raises DataError.
    """
    calls, per_minute = math.ceil((limit or ALL_COINS) / PER_PAGE), api.settings.requests_per_minute
    seconds = paced_seconds(calls, per_minute)
    with Progress("pages", calls, seconds, api.clock) as progress:
        if progress.is_shown:
            api.pace_level = logging.DEBUG
            time_needed = duration(seconds / 60)
            log.info(
                f"about {calls} calls are needed, and {per_minute} a minute allowed: this takes about {time_needed}"
            )
        pages = fetch_pages(api, limit, progress)
    coins = list(chain.from_iterable(pages))
    seen: set[str] = set()
    for position, coin in enumerate(coins, 1):
        seen |= to_ids([coin])
        if len(seen) == limit:
            return coins[:position], find_problem(pages)
    return coins, find_problem(pages)


def fetch_pages(api: CoinGecko, limit: int | None, progress: Progress) -> list[list]:
    """The first pages, as many as hold `limit` distinct coins, and the one after a page of other than PER_PAGE rows.

    A coin comes twice when the ranking moves between two calls. An odd page is requested again; if it stays odd, it is
    the last one when the next is empty. When not, the answer is broken, and no page is requested that a whole one has
    not. A page without a new coin ends the list, too.
    """
    pages: list[list] = []
    seen: set[str] = set()
    wanted = limit or math.inf
    was_odd = False
    while was_odd or len(seen) < wanted:
        # so many pages hold no more than what is missing: none is asked for in vain, unless the list ends
        missing = limit and max(math.ceil((limit - len(seen)) / PER_PAGE), 1)
        for page, answer in api.fetch_each("page", api.fetch_page, islice(count(len(pages) + 1), missing)):
            if len(answer) != PER_PAGE and not was_odd:
                answer = fetch_again(api, page, answer)
            new = to_ids(answer) - seen
            pages.append(answer)
            seen |= new
            if not new and (was_odd or len(answer) >= PER_PAGE):
                return pages
            was_odd = len(answer) != PER_PAGE
            if len(pages) % CALLS_IN_FLIGHT == 0:  # those of a wave come together
                progress.update(len(pages))
        log.info(f"pages 1 to {len(pages)}: {len(seen):,} coins")
        if len(pages) * PER_PAGE >= wanted and find_problem(pages):
            break
    return pages


def fetch_again(api: CoinGecko, page: int, answer: list) -> list:
    """Of two answers for a page, the one that is nearer to a whole page."""
    [(_, again)] = api.fetch_each("page", api.fetch_page, [page])
    return min(answer, again, key=lambda rows: abs(len(rows) - PER_PAGE))


def find_problem(pages: list[list]) -> str:
    """What shows that a page is broken; "" if nothing does. One that another page follows has PER_PAGE rows."""
    seen: set[str] = set()
    for page, (answer, following) in enumerate(zip(pages, [*pages[1:], []], strict=False), 1):
        if len(answer) != PER_PAGE and following:
            return f"page {page} has {len(answer)} rows and not {PER_PAGE}, though page {page + 1} follows"
        if len(answer) >= PER_PAGE and to_ids(answer) <= seen:
            return f"page {page} has no coin that the pages before it have not"
        seen |= to_ids(answer)
    return ""


def to_ids(coins: Iterable[Any]) -> set[str]:
    """The ids in what may be coins."""
    return {coin["id"] for coin in coins if isinstance(coin, dict) and isinstance(coin.get("id"), str)}


# -------------------------------------------------------------------------------------------- raw snapshots on disk

PENDING, LOADED, REJECTED = ".pending.json.gz", ".json.gz", ".rejected.jsonl"
LOADED_RE = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ(_\d+)?\.json\.gz")
UNFINISHED_RE = re.compile(r".+\.(json\.gz|jsonl)\.\w+\.tmp")
FILE_TIME = "%Y-%m-%dT%H-%M-%SZ"
MAX_FILE_BYTES = 64_000_000  # unpacked


class Snapshot(NamedTuple):
    """A market as CoinGecko sent it, unvalidated."""

    timestamp: datetime  # UTC, floored to SNAPSHOT_MINUTES
    coins: list  # as CoinGecko sent them; anything may be in it
    path: Path | None  # the file that it is kept in, or was read from
    calls: int = 0  # of the API
    is_whole: bool = True  # it replaces what the table has of its time; a plain list only adds and updates
    problem: str = ""  # what shows that the answer is broken


def fetch_snapshot(settings: Settings, api: CoinGecko, now: datetime, keep: bool) -> Snapshot:
    """The market from CoinGecko, taken at `now` (UTC, naive); with `keep`, it is on disk first."""
    timestamp = floor_time(now, settings.snapshot_minutes)
    coins, problem = fetch_coins(api, settings.coin_limit)
    folder, path = settings.snapshot_dir, None
    if keep and coins and folder:
        try:
            path = write_snapshot(folder, now, timestamp, coins, problem)
            log.info("raw snapshot kept in %s", path)
        except OSError as error:
            where = f"{folder} ({error.strerror})"
            log.warning("the raw snapshot cannot be kept in %s: free disk space or change SNAPSHOT_DIR", where)
    return Snapshot(timestamp, coins, path, api.calls, problem=problem)


def write_snapshot(folder: Path, now: datetime, timestamp: datetime, coins: list, problem: str = "") -> Path:
    """Keep a raw snapshot in `folder` as pending, under a name not taken yet. Raises OSError."""
    stem = now.strftime(FILE_TIME)
    for number in count(2):
        if not any(os.path.lexists(folder / f"{stem}{suffix}") for suffix in (PENDING, LOADED)):
            break
        stem = f"{now:{FILE_TIME}}_{number}"  # another pipeline of the same second
    path = folder / f"{stem}{PENDING}"
    answer = {"timestamp": f"{timestamp.isoformat()}Z", "coins": coins}
    write_json(path, answer | {"problem": problem} if problem else answer)
    return path


def write_json(path: Path, answer: object) -> None:
    """Write an answer to `path` as gzipped JSON, whole or not at all. Raises OSError."""
    write_file(path, gzip.compress(json.dumps(answer, separators=(",", ":")).encode(), compresslevel=1))


def write_file(path: Path, content: bytes) -> None:
    """Write `path`, whole or not at all; a link of this name is replaced, not followed. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The JSON in a regular file, plain or gzipped, of MAX_FILE_BYTES at most. Raises DataError, without the path."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError("it is no regular file: leave it out")
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        with (gzip.open if is_gzip else open)(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise DataError(f"it holds more than {MAX_FILE_BYTES // 1_000_000} MB, and all coins are 20: leave it out")
        return parse_json(content)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        problem = getattr(error, "strerror", None) or quote(str(error))
        raise DataError(f"cannot read JSON or gzip ({problem}): correct the path or leave it out") from error


def read_snapshot(settings: Settings, path: Path, is_forced: bool = False) -> Snapshot:
    """A raw snapshot, or a plain list as /coins/markets answers it. Raises DataError, which leaves the path out.

    A plain list is dated by its newest last_updated; times in the future are for `is_forced` alone.
    """
    if path.name.endswith(PENDING) and not os.path.lexists(path):  # loaded by now
        path = path.with_name(path.name.removesuffix(PENDING) + LOADED)
    answer = read_json(path)
    if isinstance(answer, dict) and isinstance(answer.get("coins"), list):
        coins, dates, problem = answer["coins"], [answer.get("timestamp")], str(answer.get("problem") or "")[:200]
    elif isinstance(answer, list):
        coins, problem = answer, ""
        dates = [coin.get("last_updated") for coin in coins if isinstance(coin, dict)]
    else:
        raise DataError("it holds no list of coins: give a raw snapshot, or an answer of /coins/markets")
    if not coins:
        raise DataError("it holds no coin: leave it out")
    newest, is_whole = to_newest(dates, is_forced), answer is not coins
    timestamp = newest.replace(microsecond=0) if is_whole else floor_time(newest, settings.snapshot_minutes)
    if timestamp >= future():
        log.warning("%s is dated %s UTC, in the future: it is left aside until then", path, timestamp)
    return Snapshot(timestamp, coins, path, is_whole=is_whole, problem=problem)


def to_newest(dates: list[Any], is_forced: bool) -> datetime:
    """The newest time in `dates` that is not in the future, or for `is_forced`, the newest. Raises DataError."""
    times = [time for time in map(to_time, dates) if time]
    if not times:
        raise DataError("it has no timestamp, nor last_updated in a plain list, that is a time: add it, in UTC")
    past = [time for time in times if time < future()]
    if not past and not is_forced:
        raise DataError(f"it is dated {max(times):{TIME}} UTC, in the future: correct its time, or use --force")
    return max(past or times)


def mark_loaded(settings: Settings, path: Path | None) -> None:
    """Take the mark "pending" from the name of a raw snapshot that lies in SNAPSHOT_DIR."""
    folder = settings.snapshot_dir
    if not folder or not path or not path.name.endswith(PENDING) or path.parent.resolve() != folder.resolve():
        return
    try:
        path.replace(path.with_name(path.name.removesuffix(PENDING) + LOADED))
    except OSError as error:
        log.warning("%s was loaded, yet stays pending (%s): rename or delete it", path, error.strerror)


def prune_snapshots(settings: Settings) -> None:
    """Delete the loaded raw snapshots but the newest SNAPSHOT_KEEP, each with the rejected rows of its fetch."""
    folder = settings.snapshot_dir
    if not folder:
        return
    with suppress(OSError):
        for path in (*folder.glob("*.tmp"), *folder.glob("history/*.tmp")):  # of runs that were killed
            if UNFINISHED_RE.fullmatch(path.name) and path.lstat().st_mtime < time.time() - 3600:
                path.unlink()
    paths = [path for path in folder.glob(f"*{LOADED}") if LOADED_RE.fullmatch(path.name) and not path.is_symlink()]
    loaded = sorted(paths)
    for path in loaded[: max(len(loaded) - settings.snapshot_keep, 0)]:
        with suppress(OSError):
            path.chmod(0o600)  # the first edition made them read-only, and Windows deletes no such file
        try:
            path.unlink(missing_ok=True)
            path.with_name(path.name.removesuffix(LOADED) + REJECTED).unlink(missing_ok=True)
        except OSError as error:
            log.warning("the old raw snapshot %s cannot be deleted: %s", path, error.strerror)


# ------------------------------------------------------------------------------------------- transform: coin to row

# The field of /coins/markets for each column; those for 1h and 7d are named ..._in_currency.
FIELDS = {column: column for column in FIGURES} | {
    "price_change_percentage_1h": "price_change_percentage_1h_in_currency",
    "price_change_percentage_7d": "price_change_percentage_7d_in_currency",
}


class Batch(NamedTuple):
    """A snapshot as rows."""

    timestamp: datetime  # UTC
    rows: list[tuple]  # in the order of sql.crypto_prices.COLUMNS, one per coin, by coin_id
    rejected: list[tuple[str, Any]]  # the reason, and the row as sent
    path: Path | None  # this and the others as in Snapshot
    calls: int
    is_whole: bool
    problem: str


def to_time(value: Any) -> datetime | None:
    """A naive UTC time, cut to milliseconds, from ISO 8601 with or without an offset; None for what is no time."""
    try:
        moment = datetime.fromisoformat(value)
        # MySQL would drop an offset silently, and rounds what it cannot hold where MariaDB cuts
        moment = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (TypeError, ValueError, OverflowError):
        return None
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000) if moment.year >= 1000 else None


def to_text(coin: Mapping, key: str, longest: int) -> str:
    """The text under `key`, unchanged. ValueError says why it cannot be stored."""
    text = coin.get(key)
    if not isinstance(text, str):
        raise ValueError(f"{key} is {quote(text)}, not a string")
    if len(text) > longest:
        raise ValueError(f"{key} has {len(text)} characters, more than {longest}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key} is {quote(text)}, not valid Unicode") from None
    return text


def to_figure(coin: Mapping, key: str) -> float | None:
    """The figure under `key`, exactly as sent; None when it is null or missing. ValueError for anything else."""
    figure = coin.get(key)
    if figure is None:
        return None
    if type(figure) not in (int, float):  # bool is a subclass of int
        raise ValueError(f"{key} is {quote(figure)}, not a number")
    if not math.isfinite(figure):
        raise ValueError(f"{key} is {figure}, not a finite number")
    return float(figure)


def to_row(coin: Any, timestamp: datetime) -> tuple:
    """The row of `coin` in the order of COLUMNS. ValueError says why it has none."""
    if not isinstance(coin, dict):
        raise ValueError(f"{quote(coin)} is no coin")
    coin_id = to_text(coin, "id", TEXT_LENGTHS["coin_id"])
    symbol, name = (to_text(coin, key, TEXT_LENGTHS[key]) for key in ("symbol", "name"))
    if not coin_id or coin_id != coin_id.strip():
        # the key's collation takes 'x' and 'x ' for one
        raise ValueError(f"id is {quote(coin_id)}: empty, or with white space at an end")
    rank = to_figure(coin, "market_cap_rank")
    if rank is not None and not (rank.is_integer() and 1 <= rank < 2**31):
        raise ValueError(f"market_cap_rank is {rank:g}, not a positive 32-bit integer")
    rank = None if rank is None else int(rank)
    figures = (to_figure(coin, key) for key in FIELDS.values())
    return (timestamp, coin_id, symbol, name, rank, *figures, to_time(coin.get("last_updated")))


def transform(snapshot: Snapshot) -> Batch:
    """The usable rows of a snapshot, one per coin, the first one wins; and the rejected ones, with the reason."""
    rows: dict[str, tuple] = {}
    rejected: dict[Any, tuple[str, Any]] = {}  # by content if there is an id: repeats count once
    repeats = 0
    for position, coin in enumerate(snapshot.coins):
        try:
            row = to_row(coin, snapshot.timestamp)
        except ValueError as reason:
            has_id = isinstance(coin, dict) and isinstance(coin.get("id"), str)
            rejected.setdefault(json.dumps(coin) if has_id else position, (str(reason), coin))
            continue
        repeats += row[1] in rows
        rows.setdefault(row[1], row)
    if repeats:
        log.info(f"{repeats:,} rows repeat a coin and were skipped: the ranking moved between two pages")
    undated = [coin_id for coin_id, row in rows.items() if row[-1] is None]
    if undated:
        log.warning(f"last_updated of {len(undated):,} coins is no time and becomes NULL: {join_quoted(undated)}")
    sorted_rows = [rows[coin_id] for coin_id in sorted(rows)]
    return Batch(snapshot.timestamp, sorted_rows, list(rejected.values()), *snapshot[2:])


# ---------------------------------------------------------------------------------------------------------- checks

MAX_REJECTED_SHARE, MIN_REJECTED_ROWS, MIN_COMPLETE_SHARE, MAX_MISSING_SHARE = 0.05, 5, 0.9, 0.05
COIN_ID, MARKET_CAP = COLUMNS.index("coin_id"), COLUMNS.index("market_cap")
STALE_AFTER = timedelta(minutes=15)
REJECTED_ROWS_LOGGED = 100


def keep_rejected(settings: Settings, options: Namespace, batch: Batch) -> None:
    """Log the rejected rows, and keep each with its reason as a line of a file beside the raw snapshots."""
    for reason, coin in batch.rejected[:REJECTED_ROWS_LOGGED]:
        log.warning("row rejected: %s (coin %s)", reason, quote(coin.get("id") if isinstance(coin, dict) else coin))
    where = ""
    if settings.snapshot_dir and not options.dry_run:
        is_replay = options.replay or not batch.path
        stem = batch.timestamp.strftime(FILE_TIME) if is_replay else batch.path.name.removesuffix(PENDING)
        path = settings.snapshot_dir / f"{stem}{REJECTED}"
        lines = [json.dumps({"reason": reason, "row": coin}) for reason, coin in batch.rejected]
        try:
            # A file that is replayed again adds nothing; two files of one time both do.
            is_kept = path.is_file() and not path.is_symlink()
            kept = path.read_text(encoding="utf-8", errors="replace").splitlines() if is_kept else []
            write_file(path, "".join(f"{line}\n" for line in dict.fromkeys([*kept, *lines])).encode())
            where = f"; kept in {path}"
        except OSError as error:
            log.warning("rejected rows cannot be kept in %s (%s): change SNAPSHOT_DIR", path, error.strerror)
    log.warning(f"{len(batch.rejected):,} rows rejected{where}")


def check_usable(batch: Batch, options: Namespace) -> None:
    """Raise DataError for a batch without a row, or (without --force) a broken one or one with many rejected rows."""
    rejected, received = len(batch.rejected), len(batch.rejected) + len(batch.rows)
    share = f"{rejected:,} of the {received:,} coins of {batch.timestamp} UTC are unusable, so nothing was written"
    if not batch.rows:
        raise DataError(f"{share if rejected else 'the list of coins is empty, so nothing was written'}: {RUN_LATER}")
    if batch.problem and options.force:
        log.warning("CoinGecko's answer is broken, and loaded because of --force: %s", batch.problem)
    if options.force:
        return
    if batch.problem:
        broken = f"CoinGecko's answer is broken, so nothing was written: {batch.problem}"
        raise DataError(f"{broken}; run again later, or load what came{replay_hint(batch, options, '--force')}")
    if rejected >= MIN_REJECTED_ROWS and rejected > MAX_REJECTED_SHARE * received:
        raise DataError(f"{share}: run again later, or load the others{replay_hint(batch, options, '--force')}")


def check_size(settings: Settings, batch: Batch, expected: int) -> None:
    """Raise DataError for a list of much fewer coins than `expected` (0: nobody knows); warn of one that has fewer."""
    received = len(batch.rejected) + len(batch.rows)
    if received < MIN_COMPLETE_SHARE * expected:
        raise DataError(
            f"the list ended early, so nothing was written: {received:,} coins came where {expected:,} were expected;"
            " run again later, or use --force"
        )
    if received < expected:
        log.warning(f"{received:,} coins came where {expected:,} were expected: {expected - received:,} are missing")
    if not expected and settings.coin_limit and received < settings.coin_limit:
        log.warning(f"the list ends with {received:,} coins, before COIN_LIMIT={settings.coin_limit}")


def check_missing(batch: Batch, before: datetime, market_caps: dict[str, float]) -> None:
    """Raise DataError when coins are missing that held much of the market cap of the snapshot `before`.

    `market_caps` (USD, by coin_id, the largest first) are those of its COIN_LIMIT largest coins. A rejected coin is not
    missing: it is kept, and a warning is enough.
    """
    absent, rejected = find_absent(batch, market_caps), to_ids(coin for _, coin in batch.rejected)
    if held := describe_share([coin for coin in absent if coin in rejected], market_caps):
        log.warning("rejected: %s of %s UTC; the totals lack them", held, before)
    if held := describe_share([coin for coin in absent if coin not in rejected], market_caps):
        raise DataError(f"missing: {held} of {before} UTC; nothing was written: run again later, or use --force once")


def find_absent(batch: Batch, market_caps: dict[str, float]) -> list[str]:
    """The coins that have no row, but those that may have fallen below COIN_LIMIT."""
    loaded = {row[COIN_ID]: row[MARKET_CAP] or 0.0 for row in batch.rows}
    smallest = min((market_cap for market_cap in loaded.values() if market_cap > 0), default=0.0)
    return [coin for coin, market_cap in market_caps.items() if coin not in loaded and market_cap > 2 * smallest]


def describe_share(coins: list[str], market_caps: dict[str, float]) -> str:
    """How much of the market cap `coins` held, the largest first; "" if that is not much."""
    share = sum(market_caps[coin] for coin in coins) / sum(market_caps.values()) if coins else 0.0
    if share <= MAX_MISSING_SHARE:
        return ""
    return f"{len(coins):,} coins, the largest {quote(coins[0])}, which held {share:.1%} of the market cap"


def warn_of_future(cursor: Any, options: Namespace) -> None:
    """Warn of a newest snapshot in the future: readers take it for the newest until then."""
    newest = crypto_prices.read_newest(cursor)
    if newest and newest >= future():
        log.warning(
            "the newest snapshot, of %s UTC, lies in the future and is left aside: if this machine's clock is right,"
            " delete it with: %s",
            newest,
            pipeline_command(options, "--delete-snapshot", f"{newest:{TIME}}"),
        )


def warn_if_stale(batch: Batch, now: datetime) -> None:
    """Warn when CoinGecko's figures were already old when fetched."""
    newest = max((row[-1] for row in batch.rows if row[-1] and row[-1] <= now), default=now)
    if now - newest > STALE_AFTER:
        when = f"{newest:%Y-%m-%d %H:%M} UTC, {(now - newest) // timedelta(minutes=1):,} minutes before the fetch"
        log.warning("the newest figure is from %s: see https://status.coingecko.com", when)


def pipeline_command(options: Namespace, *arguments: str) -> str:
    """What runs the pipeline with `arguments` and the settings of this run: a command line, or on Lambda an event."""
    if options.is_event:
        return json.dumps({"arguments": arguments})
    env_file = ["--env-file", str(options.env_file)] if options.env_file else []
    command = ["python", "pipeline_orchestrator.py", *env_file, *arguments]
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)


def replay_hint(batch: Batch, options: Namespace, *flags: str) -> str:
    """How to load a raw snapshot that was not loaded, for the end of a message."""
    if not batch.path:
        return f" with {' '.join(flags)}" if flags else ""
    command = pipeline_command(options, *flags, "--replay", str(batch.path))
    return f"; the raw snapshot is kept, load it the way this run was started, with: {command}"


# ------------------------------------------------------------------------------------------------------------ load


Write = Callable[[Any, Batch], None]
MAX_DELETE_SECONDS = 300  # in a run, which others wait for; what is left is for the next


def batches(settings: Settings, options: Namespace) -> Iterator[Batch]:
    """What there is to load: the market as it is now, or the files of --replay. A dry run writes no file.

    Raises DataError for a market that cannot be used; files that cannot are logged and skipped, and raise at the end.
    """

    def check(batch: Batch) -> Batch:
        if batch.rejected:
            keep_rejected(settings, options, batch)
        check_usable(batch, options)
        return batch

    if not options.replay:
        now = utc_now()
        with closing(CoinGecko(settings, any_time=options.force)) as api:
            batch = transform(fetch_snapshot(settings, api, now, keep=not options.dry_run))
        warn_if_stale(batch, now)
        yield check(batch)
        return
    paths: list[str] = []  # with the patterns expanded that the shell left alone, as Windows shells do
    for path in map(os.path.expanduser, options.replay):
        paths += [path] if os.path.lexists(path) else sorted(glob.glob(path)) or [path]  # noqa: PTH207
    unusable = []
    for path in map(Path, paths):
        try:
            batch = check(transform(read_snapshot(settings, path, options.force)))
        except DataError as error:
            log.error("%s: %s", path, error)
            unusable.append(path.name)
        else:
            log.info(f"{path}: {len(batch.rows):,} coins of {batch.timestamp} UTC")
            yield batch
    if unusable:
        names = join_quoted(unusable)
        raise DataError(f"{len(unusable)} of {len(paths)} files were not loaded (why, see above): fix or omit {names}")


def load(settings: Settings, options: Namespace, database: Database, batch: Batch, write: Write) -> None:
    """Load a batch in one transaction, by `write(cursor, batch)`. One that was fetched must be complete.

    Raises DataError, DatabaseError and AlreadyRunningError, with the command that loads the raw snapshot later.
    """
    try:
        if not options.replay and not options.force:
            database.transaction(partial(check_complete, settings=settings, batch=batch))
        database.transaction(lambda cursor: write(cursor, batch))
    except PipelineError as error:
        error.args = (f"{error}{replay_hint(batch, options)}",)
        raise
    mark_loaded(settings, batch.path)
    if not options.replay:
        prune_snapshots(settings)


def check_complete(cursor: Any, settings: Settings, batch: Batch) -> None:
    """Raise DataError when the table says that much of the market is missing. Snapshots in the future say nothing."""
    sizes = crypto_prices.read_recent_sizes(cursor, future())
    largest = max(sizes.values(), default=0)
    expected = min(settings.coin_limit or largest, largest)
    check_size(settings, batch, expected)
    if sizes:  # the newest, but no small one between larger ones, such as a plain list
        before = next(time for time, size in sizes.items() if 2 * size >= expected)
        check_missing(batch, before, crypto_prices.read_market_caps(cursor, before, settings.coin_limit))


def write_rows(cursor: Any, batch: Batch) -> None:
    """Write a batch without its tiers: a whole snapshot in place of what the table has of its time."""
    if batch.is_whole:
        crypto_prices.replace_snapshot(cursor, batch.timestamp, batch.rows)
    else:
        crypto_prices.upsert(cursor, batch.rows)


@contextmanager
def open_for_load(server: Server | None, options: Namespace) -> Iterator[Database | None]:
    """The database, under the run lock, with a warning of a snapshot in the future; None without a server."""
    if server is None:
        yield None
        return
    with open_database(server) as database:
        database.transaction(partial(warn_of_future, options=options))
        yield database


def delete_old_rows(settings: Settings, database: Database) -> int:
    """Delete the rows older than RETENTION_DAYS before the newest snapshot, and return how many these are.

    In short transactions, for MAX_DELETE_SECONDS at most: safe to interrupt and repeat. Raises DatabaseError.
    """
    if not settings.retention_days:
        return 0
    newest = database.transaction(partial(crypto_prices.read_newest, before=future()))
    before = newest - timedelta(days=settings.retention_days)
    deleted, since = 0, datetime.min
    started = logged = time.monotonic()
    while time.monotonic() - started < MAX_DELETE_SECONDS:
        step = partial(crypto_prices.delete_oldest, since=since, before=before)
        try:
            since, rows = database.transaction(step)
        except DatabaseError as error:
            error.args = (f"the market is loaded, yet rows older than RETENTION_DAYS are still there: {error}",)
            raise
        if since is None:
            break
        deleted += rows
        if time.monotonic() - logged >= 60:
            logged = time.monotonic()
            log.info(f"{deleted:,} rows older than {settings.retention_days} days deleted, up to {since} UTC")
    return deleted


# --------------------------------------------------------------------------------------------- the frame of a script


Run = Callable[[Settings, Namespace], None]  # a script's work


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a run the way Ctrl-C does, with an exit code of its own."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors: one line, without argparse's eight lines of usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def make_parser(prog: str, description: str) -> Parser:
    """A parser with the options that all scripts have. `description` is the script's docstring."""
    formatter = partial(argparse.RawDescriptionHelpFormatter, max_help_position=28)
    parser = Parser(prog=prog, description=description, formatter_class=formatter, allow_abbrev=False)
    parser.usage = "%(prog)s [option ...]"
    parser.set_defaults(is_event=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}", help="show the version and exit")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, write nothing")
    env_file = partial(to_path, folder=Path())
    parser.add_argument("--env-file", metavar="PATH", type=env_file, help="read the settings here, not in .env")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only (for cron)")
    volume.add_argument("-v", "--verbose", action="store_true", help="more, and tracebacks of errors")
    return parser


def add_extract_options(parser: argparse.ArgumentParser) -> Any:
    """Add the options of the two scripts that fetch; returns the mutually exclusive group."""
    source = parser.add_mutually_exclusive_group()
    help_text = "how many, or all, in place of COIN_LIMIT"
    source.add_argument("--coins", metavar="N", type=to_coin_limit, default=argparse.SUPPRESS, help=help_text)
    help_text = "load raw snapshots, fetch nothing"
    source.add_argument("--replay", metavar="FILE", nargs="+", help=help_text)
    help_text = "load what is incomplete, broken or misdated"
    parser.add_argument("--force", action="store_true", help=help_text)
    return source


class LogFormatter(logging.Formatter):
    """Time in UTC, level, script and message; no control character and no `secret`, not even in tracebacks."""

    converter = time.gmtime
    secret = ""

    def format(self, record: logging.LogRecord) -> str:
        return self.clean(super().format(record), "\n" if record.exc_info else "")  # a traceback has several lines

    def clean(self, text: str, kept: str = "") -> str:
        """`text` without the secret, and without control characters but those `kept`."""
        text = text.replace(self.secret, "***") if self.secret else text
        return "".join(char if char.isprintable() or char in kept else ascii(char)[1:-1] for char in text)


def start_log() -> LogFormatter:
    """Log on stderr, warnings and errors at first."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    return handler.formatter


def set_log_level(level: int) -> None:
    for name in ("sql", "etl_crypto", "segment_and_load", "pipeline_orchestrator"):
        logging.getLogger(name).setLevel(level)
    for name in ("urllib3", "botocore"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters of them comes as an exception


def terminate(signal_number: int, frame: object) -> NoReturn:
    raise Terminated


def execute(parser: Parser, argv: list[str] | None, run: Run, formatter: LogFormatter) -> None:
    """Read options and settings, and `run(settings, options)`. `formatter` learns the secret that it has to hide.

    Raises PipelineError, SystemExit after --help, and KeyboardInterrupt.
    """
    options = parser.parse_args(argv)
    set_log_level(logging.INFO + 10 * (options.quiet - options.verbose))  # or WARNING, or DEBUG
    values = add_secrets(read_environment(options.env_file))
    formatter.secret = values.get("COINGECKO_API_KEY", "").strip()
    settings = parse_settings(values)
    run(replace(settings, coin_limit=options.coins) if "coins" in options else settings, options)


def run_script(parser: Parser, argv: list[str] | None, run: Run, requirements: str = "requirements.txt") -> int:
    """The exit code of `run(settings, options)`. An expected failure is one line in the log, a bug a traceback."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # under pythonw, or after >&-
            setattr(sys, stream, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - stays open
    formatter = start_log()
    script_log = logging.getLogger(parser.prog.removesuffix(".py"))
    in_main_thread = threading.current_thread() is threading.main_thread()  # which alone signals reach
    before = signal.signal(signal.SIGTERM, terminate) if in_main_thread else None
    try:
        execute(parser, argv, run, formatter)
        return 0
    except SystemExit as done:  # of --help and --version
        return done.code
    except PipelineError as error:
        script_log.error("%s", error, exc_info=script_log.isEnabledFor(logging.DEBUG))
        return error.exit_code
    except ModuleNotFoundError as error:
        script_log.error("the module %s is missing: %s -m pip install -r %s", error.name, sys.executable, requirements)
        return ConfigError.exit_code
    except KeyboardInterrupt as error:
        by, exit_code = ("SIGTERM", 143) if isinstance(error, Terminated) else ("Ctrl-C", 130)
        script_log.error("stopped by %s: nothing is half written, run it again", by)
        return exit_code
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def end_process(exit_code: int) -> NoReturn:
    """Exit at once: Python's own shutdown waits for API calls in flight, and a signal would change the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(exit_code)


def print_result(text: str) -> None:
    """Print on stdout; a closed pipe (| head) is no error. Raises PipelineError for others, such as a full disk."""
    try:
        print(text, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EINVAL):  # EINVAL is a closed pipe on Windows
            raise PipelineError(f"the result cannot be written ({error.strerror}): free disk space") from error


def say(options: Namespace, line: str) -> None:
    """Print a line about work that is done, unless -q."""
    try:
        if not options.quiet:
            print_result(line)
    except PipelineError as error:
        log.warning("%s", error)


def run(settings: Settings, options: Namespace) -> None:
    """Load the market, or the files of --replay, and print what was written."""
    with open_for_load(None if options.dry_run else settings.server, options) as database:
        for batch in batches(settings, options):
            if database:
                load(settings, options, database, batch, write_rows)
            done = "written" if database else "would be written (dry run)"
            say(options, f"{batch.timestamp} UTC: {len(batch.rows):,} coins {done}, {len(batch.rejected):,} rejected")
        if database and not options.replay and (deleted := delete_old_rows(settings, database)):
            say(options, f"{deleted:,} rows older than {settings.retention_days} days deleted")


def main(argv: list[str] | None = None) -> int:
    """Command line in, exit code out."""
    parser = make_parser("etl_crypto.py", __doc__)
    add_extract_options(parser)
    return run_script(parser, argv, run)


if __name__ == "__main__":
    end_process(main())
