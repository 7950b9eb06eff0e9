"""Run the pipeline: CoinGecko's market into MySQL, with its tiers.

  python pipeline_orchestrator.py                         the market as it is
  python pipeline_orchestrator.py --backfill 90           the 90 days before
  python pipeline_orchestrator.py --status --max-age 60   what is in the table

Load and tiers are one transaction: nobody sees a snapshot without its tiers.
Settings come from .env (see .env.example); exit codes are in README.md.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, redirect_stdout, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from importlib import import_module
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote as quote_url

import etl_crypto
import segment_and_load
from etl_crypto import (
    MINUTES_PER_DAY,
    TIME,
    Batch,
    ConfigError,
    DataError,
    Progress,
    Settings,
    duration,
    floor_time,
    future,
    print_result,
    say,
    warn_of_future,
)
from sql import crypto_prices
from sql.connection import Database, PipelineError, Server, defer_signals, join_quoted, quote
from sql.crypto_prices import BACKFILL_LOCK, COLUMNS, STALE_COIN_AGE, Coin, Status, open_database

log = logging.getLogger("pipeline_orchestrator")


class StaleDataError(PipelineError):
    """The table is empty, or its newest snapshot is too old."""

    exit_code = 6


# --------------------------------------------------------------------------------------------------------- summary


LARGEST_CHANGES = 3  # that the summary shows, gains and losses each


@dataclass
class Step:
    """A line of the summary."""

    name: str
    state: str = "not run"
    seconds: float = 0.0
    detail: str = ""

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the block's time to this step and set its state: done, or failed when it raises."""
        started = time.monotonic()
        try:
            yield
            self.state = "done"
        except BaseException:
            self.state = "failed"
            raise
        finally:
            self.seconds += time.monotonic() - started

    def timed_each(self, items: Iterator[Batch]) -> Iterator[Batch]:
        """`items`; the wait for each counts as this step's time."""
        while True:
            with self.timed():
                item = next(items, None)
            if item is None:
                return
            yield item

    def __str__(self) -> str:
        return f"{self.name:20} {self.state:11} {self.seconds:7.1f}   {self.detail}".rstrip()


@contextmanager
def summarized(options: Namespace, *steps: Step, result: Callable[[], Iterable[str]] = tuple) -> Iterator[None]:
    """Print the steps and the lines of `result()` at the end: after a failure always, else unless -q."""

    def lines() -> str:
        return "\n".join((f"{'step':20} {'state':11} {'seconds':>7}   detail", *map(str, steps), *result()))

    try:
        yield
    except BaseException:
        with suppress(PipelineError):
            print_result(lines())
        raise
    if not options.quiet:
        say(options, lines())


def describe_snapshot(batch: Batch | None, settings: Settings) -> Iterator[str]:
    """Time, coins and market cap of a snapshot, in all and by tier; nothing when there is none."""
    if batch is None:
        return
    with defer_signals():  # pandas imports more of itself when it is first used
        import pandas as pd

        caps = pd.Series([row[COLUMNS.index("market_cap")] for row in batch.rows], dtype="float64")
        by_tier = caps.groupby(segment_and_load.assign_tiers(caps, settings), observed=False)
        total, coins, totals = float(caps.sum()), by_tier.size().to_dict(), by_tier.sum().to_dict()
    yield f"snapshot {batch.timestamp:%Y-%m-%d %H:%M} UTC: {len(caps):,} coins, total market cap {dollars(total)}"
    for tier in segment_and_load.TIERS:
        money = f"{dollars(totals[tier]):>8} {totals[tier] / total:6.1%}" if totals[tier] else ""
        yield f"  {tier:18} {coins[tier]:6,} coins {money}".rstrip()
    yield from describe_changes(batch)
    if stale := to_stale_coins(batch):
        yield f"stale coins: {describe_stale(len(stale), stale[0])}"


def dollars(amount: float) -> str:
    """`amount` (USD) in three digits, such as $3.41T, $48.2B or $208M; below a million as $12,345 or $1.50."""
    for size, unit in ((1e6, "M"), (1e9, "B"), (1e12, "T")):
        figure = amount / size
        if figure >= 0.9995 and (figure < 999.5 or unit == "T"):
            return f"${figure:,.{2 if figure < 9.995 else 1 if figure < 99.95 else 0}f}{unit}"
    return f"${amount:,.{0 if amount >= 1000 else 2}f}"


def describe_changes(batch: Batch) -> Iterator[str]:
    """The coins with the largest gains and losses in 24 hours, side by side in lines of less than 100 characters."""
    percentage = COLUMNS.index("price_change_percentage_24h")
    changes = sorted((row[percentage], row[etl_crypto.COIN_ID]) for row in batch.rows if row[percentage])
    losses = [change for change in changes[:LARGEST_CHANGES] if change[0] < 0]
    gains = [change for change in changes[: -LARGEST_CHANGES - 1 : -1] if change[0] > 0]
    if changes:
        yield f"{'largest gains in 24 h':48}largest losses in 24 h"
    for pair in zip_longest(gains, losses):
        yield "".join(f"{describe_change(*change) if change else '':48}" for change in pair).rstrip()


def describe_change(percentage: float, coin_id: str) -> str:
    return f"{percentage:+9,.1f}%  {quote(coin_id, 30)}"


def to_stale_coins(batch: Batch) -> list[str]:
    """The coins whose figures are older than the snapshot by STALE_COIN_AGE, the largest first."""
    coin_id, market_cap, last_updated = map(COLUMNS.index, ("coin_id", "market_cap", "last_updated"))
    stale = [row for row in batch.rows if row[last_updated] and batch.timestamp - row[last_updated] > STALE_COIN_AGE]
    return [row[coin_id] for row in sorted(stale, key=lambda row: row[market_cap] or 0, reverse=True)]


def describe_stale(coins: int, largest: str) -> str:
    hours = STALE_COIN_AGE // timedelta(hours=1)
    return f"{coins:,} over {hours} h older than the snapshot, the largest {quote(largest, 20)}"


# ------------------------------------------------------------------------------------------------ fetch, load, segment


def run_pipeline(settings: Settings, options: Namespace) -> None:
    """The market, or the files of --replay, into the table with their tiers: one transaction for each snapshot."""
    server = None if options.dry_run else settings.server
    reading = Step("read files" if options.replay else "fetch")
    loading = Step("load and segment", "dry run" if options.dry_run else "not run")
    deletes = settings.retention_days and server and not options.replay
    deleting = [Step("delete old rows")] if deletes else []
    write = partial(load_and_segment, settings=settings, options=options)
    newest: Batch | None = None
    snapshots = calls = coins = rejected = 0
    with (
        summarized(options, reading, loading, *deleting, result=lambda: describe_snapshot(newest, settings)),
        etl_crypto.open_for_load(server, options) as database,
    ):
        # The import takes as long as fetching a page: ready when tiers are computed.
        ThreadPoolExecutor(1).submit(import_module, "pandas")
        for batch in reading.timed_each(etl_crypto.batches(settings, options)):
            snapshots, calls = snapshots + 1, calls + batch.calls
            coins, rejected = coins + len(batch.rows), rejected + len(batch.rejected)
            source = f"{snapshots:,} snapshots" if options.replay else f"{calls:,} calls"
            reading.detail = f"{source}, {coins + rejected:,} coins"
            if database:
                with loading.timed():
                    etl_crypto.load(settings, options, database, batch, write)
            loading.detail = f"{coins:,} coins, {rejected:,} rejected"
            newest = max(batch, newest or batch, key=lambda each: each.timestamp)  # of equal times, the last
        for step in deleting:
            with step.timed():
                deleted = etl_crypto.delete_old_rows(settings, database)
                step.detail = f"{deleted:,} rows older than {settings.retention_days} days"


def load_and_segment(cursor: Any, batch: Batch, settings: Settings, options: Namespace) -> None:
    """Within one transaction: a reader sees the snapshot with its tiers, or not at all."""
    etl_crypto.write_rows(cursor, batch)
    segment_and_load.segment(cursor, settings)
    if not options.replay:
        segment_and_load.warn_if_bounds_changed(cursor, settings, batch.timestamp)


# -------------------------------------------------------------------------------------------------------- backfill

MAX_HISTORY_DAYS = 365  # back, without a key and with a Demo key
LATEST_POINT = timedelta(minutes=5)  # after 00:00: some days' points come late
TRIES = 4  # of a coin's history
MAX_FAILED_IN_A_ROW = 10  # coins; then it is not the coins
DEMO_CALLS_PER_MONTH = 10_000
HISTORY_FILE = re.compile(r"(?P<name>.+\.[0-9a-f]{16})\.(?P<asked>\d{4}-\d\d-\d\d)\.(?P<days>\d+)\.json\.gz")
RUN_LOCK_TIMEOUT = 1_800  # seconds for a run that is going on: without a key one may wait for the API for minutes


@dataclass
class Backfill:
    """The history that is wanted before the newest snapshot, and what exists of it."""

    newest: datetime  # UTC, the newest snapshot
    coins: list[Coin]  # of that snapshot, the largest first
    days: list[datetime]  # 00:00 UTC, the oldest first, all before the newest snapshot's own date
    days_left_out: int  # which RETENTION_DAYS would delete again
    existing: dict[datetime, set[str]]  # the coins that have a row on each of these days
    kept: dict[Coin, Path]  # reusable answers of an earlier backfill
    missing: list[Coin]  # the coins to ask for

    @property
    def rows(self) -> int:
        """How many rows are missing; days before a coin existed count too."""
        return len(self.coins) * len(self.days) - sum(map(len, self.existing.values()))


class Point(NamedTuple):
    """A coin at the beginning of a day. Figures in USD; None: not known."""

    price: float
    market_cap: float | None
    volume: float | None


def read_backfill(cursor: Any, settings: Settings, options: Namespace) -> Backfill:
    """What a backfill of `options.backfill` days has to do. Raises DataError when the table is empty."""
    newest = crypto_prices.read_newest(cursor, future())
    if newest is None:
        raise DataError(
            f"{settings.mysql_database}.crypto_prices is empty, and a backfill is for the coins of its newest snapshot:"
            f" run {etl_crypto.pipeline_command(options)} first"
        )
    coins = crypto_prices.read_coins(cursor, newest)
    wanted = days_before(newest, options.backfill, settings.retention_days)
    ids = {coin.coin_id for coin in coins}
    present = {day: found & ids for day, found in crypto_prices.read_ids(cursor, wanted).items()}
    complete = set.intersection(*present.values())
    incomplete = [coin for coin in coins if coin.coin_id not in complete]
    found = find_histories(settings, wanted)
    kept = {coin: found[history_name(coin)] for coin in incomplete if history_name(coin) in found}
    missing = [coin for coin in incomplete if coin not in kept]
    return Backfill(newest, coins, wanted, options.backfill - len(wanted), present, kept, missing)


def days_before(newest: datetime, days: int, retention_days: int | None) -> list[datetime]:
    """The days before `newest`, without those that RETENTION_DAYS would delete again. Raises ConfigError if all are."""
    today = floor_time(newest, MINUTES_PER_DAY)
    first = newest - timedelta(days=retention_days or days + 1)
    wanted = [day for day in (today - timedelta(days=ago) for ago in range(days, 0, -1)) if day >= first]
    if not wanted:
        raise ConfigError(f"the next run would delete these days: raise RETENTION_DAYS={retention_days}")
    return wanted


def days_to_ask(settings: Settings, first: datetime, today: datetime) -> int:
    """How many days back a call must reach for the days from `first`: one more, for the first day's change."""
    days = (today - first).days + 1
    is_pro = settings.coingecko_api_plan == "pro" and settings.coingecko_api_key
    return days if is_pro else min(days, MAX_HISTORY_DAYS)


def history_name(coin: Coin) -> str:
    """The prefix of the file names of `coin`'s history, valid on every file system whatever its id holds."""
    readable = re.sub("[^a-z0-9-]", "_", coin.coin_id.lower())[:40]
    return f"{readable}.{sha256(coin.coin_id.encode()).hexdigest()[:16]}"


def find_histories(settings: Settings, days: list[datetime]) -> dict[str, Path]:
    """The kept histories of an earlier backfill that cover `days`, by `history_name`."""
    found = {}
    for path in (settings.snapshot_dir / "history").glob("*.json.gz") if settings.snapshot_dir else ():
        if match := HISTORY_FILE.fullmatch(path.name):
            asked = datetime.strptime(match["asked"], "%Y-%m-%d")  # naive: UTC throughout
            # asked for when all of `days` were over, and as far back as it could be
            if asked > days[-1] and int(match["days"]) >= days_to_ask(settings, days[0], asked):
                found[match["name"]] = path
    return found


def keep_history(settings: Settings, coin: Coin, asked: datetime, days: int, answer: dict | None) -> None:
    """Keep the raw history of `coin` in place of older ones; a warning when that cannot be done."""
    if not settings.snapshot_dir:
        return
    folder = settings.snapshot_dir / "history"
    path = folder / f"{history_name(coin)}.{asked:%Y-%m-%d}.{days}.json.gz"
    try:
        etl_crypto.write_json(path, answer)
        for older in set(folder.glob(f"{history_name(coin)}.*.json.gz")) - {path}:
            older.unlink(missing_ok=True)
    except OSError as error:
        log.warning("the history of %s cannot be kept in %s (%s)", quote(coin.coin_id), folder, error.strerror)


def read_history(path: Path) -> dict | None:
    """A kept history; None: the coin was gone. Raises DataError."""
    try:
        return etl_crypto.read_json(path)
    except DataError as error:
        raise DataError(f"{path}: {error}: delete it and run again") from error


def describe_backfill(settings: Settings, backfill: Backfill) -> Iterator[str]:
    """What a backfill will cost, in lines."""
    calls, days = len(backfill.missing), backfill.days
    yield (
        f"backfill of {len(days)} days, {days[0]:%Y-%m-%d} to {days[-1]:%Y-%m-%d}, for the"
        f" {len(backfill.coins):,} coins of the snapshot of {backfill.newest:%Y-%m-%d %H:%M} UTC"
    )
    if backfill.days_left_out:
        retention = f"RETENTION_DAYS={settings.retention_days}"
        yield f"  left out  {backfill.days_left_out} days before that, which {retention} would delete again"
    kept = f"{len(backfill.kept):,} answers are kept already" if backfill.kept else "no answer is kept yet"
    if calls:
        pace = f"{duration(math.ceil(calls / settings.requests_per_minute))} at {settings.requests_per_minute} a minute"
        share = f"{calls / DEMO_CALLS_PER_MONTH:.1%} of the {DEMO_CALLS_PER_MONTH:,} calls a month of a Demo key"
        yield f"  to fetch  {calls:,} coins, a call each: {pace}, {share}; {kept}"
    else:
        yield "  to fetch  nothing: every day is there, or its answer kept"
    to_write = sum(len(ids) < len(backfill.coins) for ids in backfill.existing.values())
    yield f"  to write  up to {backfill.rows:,} rows on {to_write} days; days before a coin existed have none"


def fetch_history(api: etl_crypto.CoinGecko, coin_id: str, days: int) -> dict | None:
    """One call: daily points of the last `days` days and now, as lists of [ms since 1970, figure] by kind.

    Source: /coins/{id}/market_chart. None for a coin that is gone. Raises etl_crypto.RetryableError or DataError.
    """
    coin = quote_url(coin_id, safe="")
    try:
        answer = api.get(f"/coins/{coin}/market_chart?vs_currency=usd&days={days}&interval=daily")
    except etl_crypto.NotFoundError:
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("prices"), list):
        raise etl_crypto.RetryableError(f"no history: {quote(str(answer))}")
    return answer


def fetch_histories(
    settings: Settings, options: Namespace, backfill: Backfill, now: datetime
) -> Iterator[tuple[Coin, dict | Exception | None]]:
    """The answer for each coin to ask for, which is kept as it comes; None for one that is gone, or why there is none.

    Raises DataError, which says how to go on, for what concerns all coins.
    """
    days = days_to_ask(settings, backfill.days[0], floor_time(now, MINUTES_PER_DAY))
    coins = {coin.coin_id: coin for coin in backfill.missing}
    seconds = etl_crypto.paced_seconds(len(coins), settings.requests_per_minute)
    kept_ids: list[str] = []
    with (
        closing(etl_crypto.CoinGecko(settings, any_time=options.force)) as api,
        Progress("coins", len(coins), seconds) as progress,
    ):
        if progress.is_shown:
            api.pace_level = logging.DEBUG

        def fetch(coin_id: str) -> dict | None:
            answer = fetch_history(api, coin_id, days)
            keep_history(settings, coins[coin_id], now, days, answer)  # at once: those before it may wait for a retry
            kept_ids.append(coin_id)
            return answer

        failed = 0
        try:
            for done, (coin_id, answer) in enumerate(api.fetch_each("coin", fetch, coins, TRIES), 1):
                failed = failed + 1 if isinstance(answer, Exception) else failed if answer is None else 0
                if failed == MAX_FAILED_IN_A_ROW:
                    raise DataError(f"CoinGecko, coin {quote(coin_id)} and the {failed - 1} before it: {answer}")
                progress.update(done)
                yield coins[coin_id], answer
        except DataError as error:
            if settings.snapshot_dir:
                kept = f"{len(kept_ids):,} of {len(coins):,} answers are kept"
                error.args = (f"{error}; {kept}: run the same command to go on",)
            raise


@dataclass
class History:
    """The rows from the answers, by day, and the coins that have none, by reason."""

    rows: dict[datetime, list[tuple]]
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    failed: list[str] = field(default_factory=list)  # coins whose history could not be had

    def add(self, coin: Coin, answer: dict | Exception | None) -> None:
        if isinstance(answer, Exception):
            log.warning("coin %s has no history now: %s", quote(coin.coin_id), answer)
            self.failed.append(coin.coin_id)
            return
        rows = list(to_history_rows(coin, to_points(answer or {}), self.rows))
        for row in rows:
            self.rows[row[0]].append(row)
        if not rows:
            reason = "no history in these days" if answer else "gone from CoinGecko"
            self.skipped[reason].append(coin.coin_id)


def to_points(answer: dict) -> dict[datetime, Point]:
    """The days of an answer, by their 00:00 UTC. Points within a day, as the last one, are left out."""
    prices, market_caps, volumes = (to_days(answer.get(kind)) for kind in ("prices", "market_caps", "total_volumes"))
    return {
        # CoinGecko sends a market cap of 0 for unknown
        day: Point(price, max(market_caps.get(day, 0.0), 0.0) or None, volumes.get(day))
        for day, price in prices.items()
    }


def to_days(points: Any) -> dict[datetime, float]:
    """The figures at 00:00 UTC of a list of [ms since 1970, figure]; anything else is skipped."""
    days: dict[datetime, float] = {}
    for point in points if isinstance(points, list) else ():
        with suppress(TypeError, ValueError, OverflowError):
            milliseconds, figure = point
            moment = etl_crypto.EPOCH + timedelta(milliseconds=milliseconds)
            day = floor_time(moment, MINUTES_PER_DAY)
            if type(figure) in (int, float) and math.isfinite(figure) and moment - day <= LATEST_POINT:
                days.setdefault(day, float(figure))
    return days


def to_history_rows(coin: Coin, points: Mapping[datetime, Point], days: Iterable[datetime]) -> Iterator[tuple]:
    """A row, in the order of COLUMNS, for each of `days` that has a point; its change is from the day before."""
    for day in days:
        point = points.get(day)
        if not point:
            continue
        before = points.get(day - timedelta(days=1))
        change = point.price - before.price if before else None
        percentage = change / before.price * 100 if before and before.price > 0 else math.nan
        figures = {
            "timestamp": day,
            **coin._asdict(),
            "current_price": point.price,
            "market_cap": point.market_cap,
            "total_volume": point.volume,
            "price_change_24h": change,
            "price_change_percentage_24h": percentage if math.isfinite(percentage) else None,
        }
        yield tuple(figures.get(column) for column in COLUMNS)


def write_day(cursor: Any, settings: Settings, day: datetime, rows: Iterable[tuple]) -> int:
    """Write the rows of a day that are not there yet, with their tiers. Returns how many these are."""
    present = crypto_prices.read_ids(cursor, [day])[day]
    new = sorted(row for row in rows if row[1] not in present)
    crypto_prices.upsert(cursor, new)
    segment_and_load.segment(cursor, settings)
    return len(new)


def run_backfill(settings: Settings, options: Namespace) -> None:
    """Fetch the history of the newest snapshot's coins and write the days that are missing, or say what that costs.

    Raises DataError, DatabaseError and AlreadyRunningError; what was fetched by then is kept, and not asked for again.
    """
    server = settings.server
    now = etl_crypto.utc_now()
    with closing(Database(server)) if options.dry_run else open_database(server, BACKFILL_LOCK) as database:
        database.transaction(partial(warn_of_future, options=options))
        backfill = database.transaction(partial(read_backfill, settings=settings, options=options))
        for line in describe_backfill(settings, backfill):
            say(options, line)
        if options.dry_run:
            return
        history = History({day: [] for day in backfill.days})
        fetching, writing = Step("fetch history"), Step("write days")
        with summarized(options, fetching, writing):
            with fetching.timed():
                fetching.detail = f"nothing to ask for, {len(backfill.kept):,} coins kept before"
                for coin, path in backfill.kept.items():
                    history.add(coin, read_history(path))
                try:
                    for asked, (coin, answer) in enumerate(fetch_histories(settings, options, backfill, now), 1):
                        history.add(coin, answer)
                        database.keepalive()
                        fetching.detail = f"{asked:,} coins asked for, {len(backfill.kept):,} kept before"
                except KeyboardInterrupt:
                    if settings.snapshot_dir:
                        log.warning("the answers that came are kept: run the same command to go on")
                    raise
            with writing.timed():
                write_days(settings, history.rows, writing)
        for reason, coins in history.skipped.items():
            log.warning(f"skipped, {reason}: {len(coins):,} coins, {join_quoted(coins)}")
        if history.failed:
            names = f"{len(history.failed):,} coins ({join_quoted(history.failed)})"
            raise DataError(f"{names} could not be had (why, see above): run the same command to ask for them again")


def write_days(settings: Settings, rows: Mapping[datetime, list[tuple]], step: Step) -> None:
    """Write each day in a transaction of its own, under the run lock, waited for and held only here."""
    written = days = 0
    if not any(rows.values()):
        step.detail = "nothing to write"
        return
    with open_database(settings.server, lock_timeout=RUN_LOCK_TIMEOUT) as database:
        for day, day_rows in rows.items():
            new = database.transaction(partial(write_day, settings=settings, day=day, rows=day_rows))
            written += new
            days += bool(new)
            step.detail = f"{written:,} rows on {days} days"


# ---------------------------------------------------------------------------------------------------------- status


def show_status(settings: Settings, options: Namespace) -> None:
    """Print the status of the table. Raises StaleDataError when it is empty, or older than --max-age minutes."""
    retention = timedelta(days=settings.retention_days) if settings.retention_days else None
    with closing(Database(settings.server)) as database:
        database.transaction(partial(warn_of_future, options=options))
        read = partial(crypto_prices.read_status, now=etl_crypto.utc_now(), future=future(), retention=retention)
        status = database.transaction(read)
    table, age = f"{settings.mysql_database}.crypto_prices", status.age_minutes
    if options.json:
        facts = {"table": table, **status._asdict(), "age_minutes": age and round(age, 1)}
        print_result(json.dumps(facts, indent=2, default=lambda time: f"{time.isoformat(timespec='seconds')}Z"))
    elif age is not None and not options.quiet:
        print_result("\n".join(status_lines(status, settings)))
    if age is None:
        but = " but for snapshots in the future" if status.future_snapshots else ""
        raise StaleDataError(f"{table} is empty{but}: run {etl_crypto.pipeline_command(options)}")
    if options.max_age is not None and age > options.max_age:
        starter = "EventBridge Scheduler" if options.is_event else "cron or Task Scheduler"
        raise StaleDataError(
            f"{table} is {duration(age)} old, more than --max-age {options.max_age:g}: see the log of the last runs,"
            f" and whether {starter} starts them"
        )


def status_lines(status: Status, settings: Settings) -> Iterator[str]:
    """The status as text; what is out of the ordinary comes last, and only then."""
    newest, oldest, as_of = status.newest_snapshot, status.oldest_snapshot, status.newest_figure
    known = [tier for tier in segment_and_load.TIERS if tier in status.coins_by_tier]
    tiers = ", ".join(f"{status.coins_by_tier[tier]:,} {tier.removesuffix(' Cap').lower()}" for tier in known)
    total = "not known" if status.market_cap is None else dollars(status.market_cap)
    largest = ", ".join(
        f"{quote(coin, 15)} {cap / status.market_cap:.1%}" for coin, cap in status.largest_coins.items()
    )
    gaps = f"{status.days_without_snapshot or 'none'} without a snapshot"
    yield f"table                {settings.mysql_database}.crypto_prices at {settings.server.address}"
    yield f"newest snapshot      {newest:%Y-%m-%d %H:%M} UTC, {status.coins:,} coins"
    yield f"age                  {duration(status.age_minutes)} (newest figure {as_of or newest:{TIME}} UTC)"
    yield f"total market cap     {total}"
    yield f"largest coins        {largest or 'not known'}"
    yield f"tiers                {tiers or 'none yet'}"
    yield f"history              {oldest:%Y-%m-%d} to {newest:%Y-%m-%d}: {status.days:,} days, {gaps}"
    yield f"rows in all          {'about ' if status.rows_are_estimated else ''}{status.rows:,}"
    yield f"rows without a tier  {status.rows_without_tier:,}"
    yield from unusual_lines(status, settings)


def unusual_lines(status: Status, settings: Settings) -> Iterator[str]:
    """What is not in every status, as text."""
    if status.rows_past_retention is not None:
        yield f"rows to be deleted   {status.rows_past_retention:,}, by RETENTION_DAYS={settings.retention_days}"
    if status.stale_coins:
        yield f"stale coins          {describe_stale(status.stale_coins, status.largest_stale_coin)}"
    if fewer := status.days_with_fewer_coins:
        more = f" and {len(fewer) - 5:,} days before" if len(fewer) > 5 else ""
        yield f"fewer coins          on {', '.join(fewer[:5])}{more}"
    if status.future_snapshots:
        yield f"future snapshots     {status.future_snapshots:,}, left aside here"


# ------------------------------------------------------------------------------------------------- delete a snapshot


def delete_snapshot(settings: Settings, options: Namespace) -> None:
    """Delete the snapshot of --delete-snapshot, once its rows were counted and someone has agreed.

    Raises ConfigError when there is none, or nobody to ask and no --force.
    """
    taken_at = options.delete_snapshot
    with closing(Database(settings.server)) as database:
        rows = len(database.transaction(partial(crypto_prices.read_ids, timestamps=[taken_at]))[taken_at])
    if not rows:
        raise ConfigError(f"there is no snapshot of {taken_at} UTC: give its time to the second, as the table has it")
    dry_run = " (dry run: nothing was deleted)" if options.dry_run else ""
    say(options, f"the snapshot of {taken_at} UTC has {rows:,} rows{dry_run}")
    if options.dry_run:
        return
    if not options.force:
        if not (sys.stdin and sys.stdin.isatty()):
            raise ConfigError(f"nothing was deleted: to delete the snapshot of {taken_at} UTC, add --force")
        answer = ""
        with suppress(EOFError):
            answer = input(f"delete its {rows:,} rows? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            say(options, "nothing was deleted")
            return
    with open_database(settings.server) as database:
        deleted = database.transaction(partial(crypto_prices.delete_snapshot, timestamp=taken_at))
    say(options, f"{deleted:,} rows deleted")


# -------------------------------------------------------------------------------------------------------------- script


def to_snapshot_time(text: str) -> datetime:
    """A time as --status prints it, with or without --json."""
    taken_at = etl_crypto.to_time(text.removesuffix(" UTC"))
    if taken_at is None or taken_at.microsecond:
        raise etl_crypto.BadValue(f"{quote(text)}, not a time such as '2040-01-01 00:00:00'")
    return taken_at


def check_options(options: Namespace) -> None:
    """Raise ConfigError for options that do not go together."""
    for is_wrong, problem in (
        (options.max_age is not None and not options.status, "--max-age goes with --status"),
        (options.json and not options.status, "--json goes with --status"),
        (
            options.status and (options.dry_run or options.force),
            "--status writes nothing: leave --dry-run, --force out",
        ),
    ):
        if is_wrong:
            raise ConfigError(f"{problem}; see pipeline_orchestrator.py --help")


def run(settings: Settings, options: Namespace) -> None:
    check_options(options)
    if options.status:
        show_status(settings, options)
    elif options.delete_snapshot:
        delete_snapshot(settings, options)
    elif options.backfill:
        run_backfill(settings, options)
    else:
        run_pipeline(settings, options)


def make_parser() -> etl_crypto.Parser:
    parser = etl_crypto.make_parser("pipeline_orchestrator.py", __doc__)
    source = etl_crypto.add_extract_options(parser)
    source.add_argument("--status", action="store_true", help="what is in the table; exit code 6 when it is empty")
    days = partial(etl_crypto.to_number, int, 1, MAX_HISTORY_DAYS)
    minutes = partial(etl_crypto.to_number, float, 0, 1e9)
    help_text = f"fetch the daily history before (1 to {MAX_HISTORY_DAYS} days)"
    source.add_argument("--backfill", metavar="DAYS", type=days, help=help_text)
    help_text = "delete one, such as '2040-01-01 00:00:00'"
    source.add_argument("--delete-snapshot", metavar="TIME", type=to_snapshot_time, help=help_text)
    help_text = "with --status: exit code 6 when it is older"
    parser.add_argument("--max-age", metavar="MINUTES", type=minutes, help=help_text)
    parser.add_argument("--json", action="store_true", help="with --status: for programs")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line in, exit code out."""
    return etl_crypto.run_script(make_parser(), argv, run)


# ---------------------------------------------------------------------------------------------------------- AWS Lambda

ENDING_SECONDS = 20  # before Lambda would end a run: to roll back, free the lock and say so
SETUP_SECRETS = ("MYSQL_SECRET_ID", "MASTER_SECRET_ID", "READER_SECRET_ID")  # crypto_etl, RDS's master, crypto_reader
LOADING_SECONDS = 60  # more than loading takes: what is left for it when no more retries are made


class FailedRunError(Exception):
    """A failure as Lambda counts, retries and mails it: "exit code N: " and the line of the failure."""


class LambdaLog(logging.Handler):
    """Hands records to Lambda's own handler, whose format it leaves alone: each in one line, without the secret."""

    def __init__(self, handler: logging.Handler, formatter: etl_crypto.LogFormatter) -> None:
        super().__init__()
        self.handler = handler
        self.formatter = formatter
        self.stdout = sys.stdout  # Lambda's handler may write there, and a run redirects it

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record).replace("\n", "\r")  # of a traceback; Lambda, too, takes that for one event
        cleaned = copy(record)
        cleaned.msg, cleaned.args, cleaned.exc_info, cleaned.exc_text = text, None, None, None
        with redirect_stdout(self.stdout):
            self.handler.handle(cleaned)


@contextmanager
def lambda_log() -> Iterator[etl_crypto.LogFormatter]:
    """Log through Lambda's own handlers, which know the request; yields the formatter that hides a secret."""
    root, formatter = logging.getLogger(), etl_crypto.LogFormatter("%(message)s")
    handlers = root.handlers
    root.handlers = [LambdaLog(handler, formatter) for handler in handlers]
    try:
        yield formatter
    finally:
        root.handlers = handlers


@contextmanager
def ended_early(context: Any) -> Iterator[None]:
    """Raise Terminated in the block ENDING_SECONDS before Lambda would end it without a word to MySQL.

    Between two statements: one that a mute server does not answer holds it up for ANSWER_TIMEOUT.
    """
    # by way of SIGTERM, which defer_signals() defers
    alarm = signal.signal(signal.SIGALRM, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, etl_crypto.terminate)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds_left(context) - ENDING_SECONDS, 0.001))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGALRM, alarm)


def seconds_left(context: Any) -> float:
    return context.get_remaining_time_in_millis() / 1000


def check_ca(settings: Settings) -> None:
    if settings.mysql_ssl_ca in (None, etl_crypto.NO_CA):
        raise ConfigError(
            "MYSQL_SSL_CA is empty or none, and whoever answers would get the password: set it to RDS's CA file,"
            " sql/aws-rds-ca.pem in the package of sql/aws_mysql.sh"
        )


def answer_lambda(context: Any, work: Callable[[etl_crypto.LogFormatter], None]) -> dict[str, str]:
    """{"result": what `work(formatter)` prints}. Raises FailedRunError, for a bug whatever it raised.

    Only an exception is a failure to Lambda; one that is no Exception, such as SystemExit, would end its process.
    """
    printed, failure = StringIO(), None
    with lambda_log() as formatter:
        try:
            with ended_early(context), redirect_stdout(printed):
                work(formatter)
        except SystemExit as done:  # 0 of --help and --version
            failure = FailedRunError(f"exit code {done.code}: ended by Python's sys.exit") if done.code else None
        except PipelineError as error:
            failure = FailedRunError(formatter.clean(f"exit code {error.exit_code}: {error}"))
            log.debug("where it failed", exc_info=True)
        except KeyboardInterrupt:
            failure = FailedRunError(
                f"exit code 143: stopped {ENDING_SECONDS} s before the time limit of this function: invoke it again (a"
                " backfill goes on where it stopped), or raise its Timeout"
            )
        finally:
            if text := " | ".join(" ".join(line.split()) for line in printed.getvalue().splitlines()):
                log.log(logging.ERROR if failure else logging.INFO, "%s", text)
    if failure:
        raise failure
    return {"result": printed.getvalue()}


def lambda_handler(event: Any, context: Any) -> dict[str, str]:
    """Run the pipeline on AWS Lambda, with the command line {"arguments": [...]}; any other event is a plain run.

    Returns {"result": what stdout would hold}, and raises FailedRunError where the script would exit with a code.
    """
    arguments = event.get("arguments", []) if isinstance(event, dict) else []

    def run_here(settings: Settings, options: Namespace) -> None:
        check_ca(settings)
        budget = max(round(seconds_left(context)) - ENDING_SECONDS - LOADING_SECONDS, 0)
        run(replace(settings, retry_budget_seconds=min(settings.retry_budget_seconds, budget)), options)

    def work(formatter: etl_crypto.LogFormatter) -> None:
        if not isinstance(arguments, list) or not all(isinstance(each, str) for each in arguments):
            raise ConfigError(
                f'"arguments" of the event is {quote(arguments)}: make it a list of texts, such as'
                ' {"arguments": ["--status", "--max-age", "90"]}'
            )
        parser = make_parser()
        parser.set_defaults(is_event=True)
        etl_crypto.execute(parser, arguments, run_here, formatter)

    return answer_lambda(context, work)


def with_account(server: Server, key: str) -> Server:
    """`server`, with the account in the secret that the variable `key` names. Raises ConfigError."""
    secret = etl_crypto.fetch_secret(key, os.environ[key])
    if not secret.keys() >= {"username", "password"}:
        raise ConfigError(f"the secret of {key} holds no username and password: put them there")
    return replace(server, user=secret["username"], password=secret["password"])


def setup_handler(event: Any, context: Any) -> dict[str, str]:
    """Create database, table and accounts on AWS Lambda, the accounts with the passwords in their secrets.

    The event does not matter. The environment names the secrets of SETUP_SECRETS; only the first holds host and port.
    Idempotent. Returns and raises as lambda_handler does.
    """

    def work(formatter: etl_crypto.LogFormatter) -> None:
        from sql import create_database

        etl_crypto.set_log_level(logging.INFO)
        for key in SETUP_SECRETS:
            if not os.environ.get(key):
                raise ConfigError(f"{key} is not set: deploy with sql/aws_mysql.yaml, which sets it")
        settings = etl_crypto.parse_settings(etl_crypto.add_secrets(os.environ))
        check_ca(settings)
        etl = settings.server
        master, reader = (with_account(etl, key) for key in SETUP_SECRETS[1:])
        accounts = dict(zip(create_database.ACCOUNTS, (etl, reader), strict=True))
        for name, account in accounts.items():
            if account.user != name:
                raise ConfigError(f"the secret of {name} holds {quote(account.user)} as its username: correct that")
        print("\n".join(create_database.set_up_cloud(master, accounts)))

    return answer_lambda(context, work)


if __name__ == "__main__":
    etl_crypto.end_process(main())
