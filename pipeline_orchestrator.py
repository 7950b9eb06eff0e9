"""Run the pipeline: CoinGecko's market into MySQL, with its tiers, by hand or from cron.

  python pipeline_orchestrator.py                            the COIN_LIMIT largest coins, as they are now
  python pipeline_orchestrator.py --replay snapshots/*.gz    kept answers again
  python pipeline_orchestrator.py --backfill 90              the daily history of these coins before
  python pipeline_orchestrator.py --status --max-age 60      is the table up to date?

Load and tiers are one transaction: whoever reads the table never sees a snapshot without its tiers.
Settings come from .env (see .env.example); exit codes are in README.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from etl_crypto import (
    BACKFILL_LOCK,
    COLUMNS,
    EPOCH,
    CoinGecko,
    DatabaseError,
    DataError,
    Market,
    Settings,
    StaleError,
    add_extract_options,
    connect,
    end_process,
    floor_time,
    in_background,
    in_one_transaction,
    in_transaction,
    keep_answer,
    listed,
    make_parser,
    mysql_errors,
    parse_options,
    print_result,
    read_answer,
    run,
    run_script,
    say,
    shown,
    signals_held,
    take_lock,
    upsert,
    writing_connection,
)
from segment_and_load import TIERS, assign_tiers, count_rows, describe, segment, warn_of_other_bounds

if TYPE_CHECKING:
    from mysql.connector.abstracts import MySQLConnectionAbstract as Connection

log = logging.getLogger("pipeline_orchestrator")

MINUTES_A_DAY = 1_440

# Backfill.
DAYS_IN_REACH = 365  # back, without a key and with a Demo key
DEMO_CALLS_A_MONTH = 10_000
HISTORY_FILE = re.compile(r"(?P<name>.+\.[0-9a-f]{16})\.(?P<asked>\d{4}-\d\d-\d\d)\.(?P<days>\d+)\.json\.gz")
BACKFILL_PATIENCE = 1_800  # seconds for a run that is going on: without a key one may wait for the API for minutes
BAR_WIDTH = 30


# --------------------------------------------------------------------------------------------------------- summary


@dataclass
class Step:
    """A line of the summary."""

    name: str
    state: str = "not run"
    seconds: float = 0.0
    detail: str = ""

    @contextmanager
    def timed(self) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
            self.state = "done"
        except BaseException:
            self.state = "failed"
            raise
        finally:
            self.seconds += time.monotonic() - begun


def table_of(steps: Iterable[Step]) -> Iterator[str]:
    yield f"{'step':20} {'state':11} {'seconds':>7}   detail"
    for step in steps:
        yield f"{step.name:20} {step.state:11} {step.seconds:7.1f}   {step.detail}".rstrip()


class TierTotal(NamedTuple):
    """The coins of one tier in a snapshot."""

    coins: int
    market_cap: float  # USD, of those that have one


@dataclass
class Summary:
    """What a run came to: its steps, and the newest snapshot that it wrote."""

    extract: Step = field(default_factory=lambda: Step("extract and load"))
    segment: Step = field(default_factory=lambda: Step("segment"))
    timestamp: datetime | None = None  # UTC
    totals: dict[str, TierTotal] = field(default_factory=dict)  # by tier

    def lines(self) -> Iterator[str]:
        yield from table_of((self.extract, self.segment))
        if not self.totals:
            return
        coins = sum(total.coins for total in self.totals.values())
        market_cap = sum(total.market_cap for total in self.totals.values())
        yield f"snapshot {self.timestamp:%Y-%m-%d %H:%M} UTC: {coins} coins, total market cap {dollars(market_cap)}"
        for tier in TIERS:
            total = self.totals.get(tier, TierTotal(0, 0.0))
            share = f"{total.market_cap / market_cap:6.1%}" if market_cap else ""
            yield f"  {tier:18} {total.coins:5} coins {dollars(total.market_cap):>11} {share}".rstrip()


def dollars(amount: float) -> str:
    """`amount` (USD) as $3.41T, $250.00M or $12.50."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if amount >= size:
            return f"${amount / size:.2f}{unit}"
    return f"${amount:.2f}"


def total_by_tier(market: Market, settings: Settings) -> dict[str, TierTotal]:
    """What `read_totals` would give once `market` is in the table."""
    with signals_held():
        import pandas as pd

    market_cap = COLUMNS.index("market_cap")
    coins = pd.DataFrame({"market_cap": [row[market_cap] for row in market.rows]}, dtype="float64")
    coins["tier"] = assign_tiers(coins["market_cap"], settings)
    return {tier: TierTotal(len(caps), float(caps.sum())) for tier, caps in coins.groupby("tier")["market_cap"]}


def read_totals(cursor: Any, timestamp: datetime) -> dict[str, TierTotal]:
    """Coins and market cap of each tier in the snapshot of `timestamp`."""
    cursor.execute(
        "SELECT market_cap_tier, COUNT(*), SUM(market_cap) FROM crypto_prices WHERE timestamp = %s"
        " GROUP BY market_cap_tier",
        (timestamp,),
    )
    return {tier: TierTotal(coins, market_cap or 0.0) for tier, coins, market_cap in cursor.fetchall()}


# ------------------------------------------------------------------------------------------------------------- run


def run_pipeline(settings: Settings, options: argparse.Namespace, summary: Summary) -> None:
    """The two steps in order, each snapshot and its tiers in one transaction. `summary` tells of a failure too."""
    extract, tiering = summary.extract, summary.segment
    extract.detail = "nothing written"
    in_background(import_module, "pandas")  # which takes as long as a page: it is there when the tiers are due
    snapshots = coins = rejected = 0
    tiered: Counter[str] = Counter()

    def write(cursor: Any, market: Market) -> tuple[Counter[str], dict[str, TierTotal]]:
        upsert(cursor, market.rows)
        with tiering.timed():
            tiers = segment(cursor, settings).rows
            if not options.replay:
                warn_of_other_bounds(cursor, settings, market.snapshot.timestamp)
        return tiers, read_totals(cursor, market.snapshot.timestamp)

    try:
        with extract.timed(), nullcontext() if options.dry_run else writing_connection(settings) as connection:
            for market, result in run(settings, options, connection, write):
                tiers, totals = result or (Counter(), total_by_tier(market, settings))
                snapshots += 1
                coins += len(market.rows)
                rejected += len(market.rejected)
                tiered += tiers
                several = f"{snapshots} snapshots, " if snapshots > 1 else ""
                extract.detail = f"{several}{coins} coins, {rejected} rejected"
                tiering.detail = describe(tiered, "tiered")
                if summary.timestamp is None or market.snapshot.timestamp >= summary.timestamp:
                    summary.timestamp, summary.totals = market.snapshot.timestamp, totals
    except BaseException:
        if tiering.state == "failed":
            extract.state = "rolled back"
        elif snapshots:
            extract.state = "incomplete"
        elif tiering.state == "done":
            tiering.state = "rolled back"
        raise
    finally:
        extract.seconds -= tiering.seconds
        if options.dry_run:
            tiering.detail = ""
    if options.dry_run:
        extract.state, tiering.state = "dry run", "dry run"


# -------------------------------------------------------------------------------------------------------- backfill


class Coin(NamedTuple):
    """A coin of the newest snapshot."""

    coin_id: str
    symbol: str
    name: str


@dataclass
class Backfill:
    """What is wanted of the history before the newest snapshot, and what is there of it."""

    newest: datetime  # UTC, the newest snapshot
    coins: list[Coin]  # of that snapshot, the largest first
    days: list[datetime]  # 00:00 UTC, the oldest first, all before the newest snapshot's own date
    present: dict[datetime, set[str]]  # the coins that have a row on each of these days
    kept: dict[Coin, Path]  # answers of an earlier backfill that will do
    missing: list[Coin]  # the coins to ask for

    @property
    def rows(self) -> int:
        """How many rows are missing; days before a coin existed count too."""
        return len(self.coins) * len(self.days) - sum(map(len, self.present.values()))


class Point(NamedTuple):
    """A coin at the beginning of a day. Figures in USD; None: not known."""

    price: float
    market_cap: float | None
    volume: float | None


def read_backfill(cursor: Any, settings: Settings, days: int) -> Backfill:
    """What a backfill of `days` days has to do. Raises DataError when the table is empty."""
    cursor.execute("SELECT MAX(timestamp) FROM crypto_prices")
    (newest,) = cursor.fetchone()
    if newest is None:
        raise DataError(
            f"{settings.mysql_database}.crypto_prices is empty, and a backfill is for the coins of its newest snapshot:"
            " run python pipeline_orchestrator.py first"
        )
    cursor.execute(
        "SELECT coin_id, symbol, name FROM crypto_prices WHERE timestamp = %s"
        " ORDER BY market_cap IS NULL, market_cap DESC, coin_id",
        (newest,),
    )
    coins = [Coin(*row) for row in cursor.fetchall()]
    first = floor_time(newest, MINUTES_A_DAY) - timedelta(days=days)
    wanted = [first + timedelta(days=day) for day in range(days)]
    cursor.execute(
        f"SELECT timestamp, coin_id FROM crypto_prices WHERE timestamp IN ({', '.join(['%s'] * days)})", tuple(wanted)
    )
    ids = {coin.coin_id for coin in coins}
    present: dict[datetime, set[str]] = {day: set() for day in wanted}
    for day, coin_id in cursor.fetchall():
        if coin_id in ids:
            present[day].add(coin_id)
    complete = set.intersection(*present.values())
    histories = find_histories(settings.snapshot_dir / "history") if settings.snapshot_dir else {}
    kept, missing = {}, []
    for coin in coins:
        if coin.coin_id in complete:
            continue
        for history in histories.get(history_name(coin), ()):
            # asked for when all wanted days were over, and as far back as it could be
            if history.asked > wanted[-1] and history.days >= days_to_ask(settings, first, history.asked):
                kept[coin] = history.path
        if coin not in kept:
            missing.append(coin)
    return Backfill(newest, coins, wanted, present, kept, missing)


def days_to_ask(settings: Settings, first: datetime, today: datetime) -> int:
    """How many days back a call must reach for the days from `first`: one more, for the first day's change."""
    days = (today - first).days + 1
    is_pro = settings.coingecko_api_plan == "pro" and settings.coingecko_api_key
    return days if is_pro else min(days, DAYS_IN_REACH)


class KeptHistory(NamedTuple):
    """A kept answer of /coins/{id}/market_chart: the day it was asked for on, and how many days back it reaches."""

    asked: datetime
    days: int
    path: Path


def history_name(coin: Coin) -> str:
    """What the files with the history of `coin` begin with: whatever its id is made of, every system takes it."""
    readable = re.sub("[^a-z0-9-]", "_", coin.coin_id.lower())[:40]
    return f"{readable}.{sha256(coin.coin_id.encode()).hexdigest()[:16]}"


def find_histories(folder: Path) -> dict[str, list[KeptHistory]]:
    """The kept answers in `folder`, by `history_name`."""
    found: dict[str, list[KeptHistory]] = defaultdict(list)
    for path in folder.glob("*.json.gz"):
        match = HISTORY_FILE.fullmatch(path.name)
        if match:
            asked = datetime.strptime(match["asked"], "%Y-%m-%d")  # naive: UTC throughout
            found[match["name"]].append(KeptHistory(asked, int(match["days"]), path))
    return found


def keep_history(settings: Settings, coin: Coin, asked: datetime, days: int, answer: dict | None) -> None:
    """Keep the raw answer for `coin` in place of older ones; a warning when that cannot be done."""
    if not settings.snapshot_dir:
        return
    folder = settings.snapshot_dir / "history"
    path = folder / f"{history_name(coin)}.{asked:%Y-%m-%d}.{days}.json.gz"
    try:
        keep_answer(path, answer)
        for older in set(folder.glob(f"{history_name(coin)}.*.json.gz")) - {path}:
            older.unlink()
    except OSError as error:
        log.warning("the history of %s cannot be kept in %s (%s)", shown(coin.coin_id), folder, error.strerror)


def read_history(path: Path) -> dict | None:
    """A kept answer; None: the coin was gone. Raises DataError."""
    try:
        return read_answer(path)
    except DataError as error:
        raise DataError(f"{path}: {error}: remove it and start the same command again") from error


def estimate(settings: Settings, backfill: Backfill) -> Iterator[str]:
    """What a backfill will cost, in lines."""
    calls, days = len(backfill.missing), backfill.days
    yield (
        f"backfill of {len(days)} days, {days[0]:%Y-%m-%d} to {days[-1]:%Y-%m-%d}, for the {len(backfill.coins)} coins"
        f" of the snapshot of {backfill.newest:%Y-%m-%d %H:%M} UTC"
    )
    kept = f"{len(backfill.kept)} answers are kept already" if backfill.kept else "no answer is kept yet"
    if calls:
        pace = f"{duration(math.ceil(calls / settings.requests_per_minute))} at {settings.requests_per_minute} a minute"
        share = f"{calls / DEMO_CALLS_A_MONTH:.1%} of the {DEMO_CALLS_A_MONTH:,} calls a month of a Demo key"
        yield f"  to fetch  {calls} coins, a call each: {pace}, {share}; {kept}"
    else:
        yield "  to fetch  nothing: every day is there, or its answer kept"
    to_write = sum(len(present) < len(backfill.coins) for present in backfill.present.values())
    yield f"  to write  up to {backfill.rows:,} rows on {to_write} days; days before a coin existed have none"


class Progress:
    """How far a long job is: a bar on a terminal, a line a minute in a log."""

    def __init__(
        self, what: str, total: int, seconds_each: float, quiet: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.what = what
        self.total = total
        self.seconds_each = seconds_each  # at least
        self.quiet = quiet
        self.clock = clock
        self.begun = self.said = clock()

    def tell(self, done: int) -> None:
        now = self.clock()
        left = (self.total - done) * max(self.seconds_each, (now - self.begun) / max(done, 1))
        text = f"{done} of {self.total} {self.what}, {duration(math.ceil(left / 60))} left"
        if sys.stderr.isatty() and not self.quiet:
            filled = BAR_WIDTH * done // self.total
            # ends where it began, so that a line of the log takes its place
            sys.stderr.write(f"\r[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {text:40}\r")
            sys.stderr.flush()
        elif now - self.said >= 60:
            self.said = now
            log.info("%s", text)

    def end(self) -> None:
        """Take the bar away."""
        if sys.stderr.isatty() and not self.quiet:
            sys.stderr.write(f"\r{'':{BAR_WIDTH + 43}}\r")
            sys.stderr.flush()


def fetch_histories(
    settings: Settings, options: argparse.Namespace, backfill: Backfill, now: datetime, still_here: Callable[[], None]
) -> Iterator[tuple[Coin, dict | None]]:
    """The answer for each coin to ask for, which is kept as it comes; None for one that is gone.

    `still_here` is called after each. Raises DataError, which says how to go on.
    """
    api = CoinGecko(settings)
    days = days_to_ask(settings, backfill.days[0], floor_time(now, MINUTES_A_DAY))
    coins = {coin.coin_id: coin for coin in backfill.missing}
    progress = Progress("coins", len(coins), 60 / settings.requests_per_minute, options.quiet)
    answered: list[str] = []

    def fetch(coin_id: str) -> dict | None:
        answer = api.fetch_history(coin_id, days)
        keep_history(settings, coins[coin_id], now, days, answer)  # at once: its turn comes after those before it
        answered.append(coin_id)
        return answer

    try:
        for done, (coin_id, answer) in enumerate(api.fetch_in_order("coin", fetch, coins), 1):
            api.budget = settings.retry_budget_seconds  # each coin has its own
            progress.tell(done)
            still_here()
            yield coins[coin_id], answer
    except DataError as error:
        if settings.snapshot_dir:
            kept = f"{len(answered)} of {len(coins)} answers are kept"
            error.args = (f"{error}; {kept}: the same command goes on from there",)
        raise
    finally:
        progress.end()


@dataclass
class History:
    """The rows that answers come to, by their day, and the coins that have none, by the reason."""

    rows: dict[datetime, list[tuple]]
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, coin: Coin, answer: dict | None) -> None:
        rows = list(to_history_rows(coin, read_points(answer or {}), self.rows))
        for row in rows:
            self.rows[row[0]].append(row)
        if not rows:
            reason = "CoinGecko has no history of them in these days" if answer else "they are gone from CoinGecko"
            self.skipped[reason].append(coin.coin_id)


def read_points(answer: dict) -> dict[datetime, Point]:
    """The days of an answer, by their 00:00 UTC. The unfinished last point, and any other in mid-day, is none."""
    prices, market_caps, volumes = (read_days(answer.get(kind)) for kind in ("prices", "market_caps", "total_volumes"))
    return {
        # a market cap of 0 is how CoinGecko says that it knows none
        day: Point(price, max(market_caps.get(day, 0.0), 0.0) or None, volumes.get(day))
        for day, price in prices.items()
    }


def read_days(points: Any) -> dict[datetime, float]:
    """The figures at 00:00 UTC of a list of [ms since 1970, figure]; whatever else is in it is passed over."""
    days: dict[datetime, float] = {}
    for point in points if isinstance(points, list) else ():
        with suppress(TypeError, ValueError, OverflowError):
            milliseconds, figure = point
            moment = EPOCH + timedelta(milliseconds=milliseconds)
            day = floor_time(moment, MINUTES_A_DAY)
            if type(figure) in (int, float) and math.isfinite(figure) and moment - day < timedelta(minutes=1):
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
    cursor.execute("SELECT coin_id FROM crypto_prices WHERE timestamp = %s", (day,))
    present = {coin_id for (coin_id,) in cursor.fetchall()}
    new = sorted(row for row in rows if row[1] not in present)
    upsert(cursor, new)
    segment(cursor, settings)
    return len(new)


def run_backfill(settings: Settings, options: argparse.Namespace) -> None:
    """Fetch the history of the newest snapshot's coins and write the days that are missing, or say what that costs.

    Raises DataError, DatabaseError and BusyError; what was fetched by then is kept, and not asked for again.
    """
    now = datetime.now(UTC).replace(tzinfo=None)
    fetching, writing = Step("fetch history"), Step("write days")
    with backfill_connection(settings, options) as connection:
        backfill = in_one_transaction(
            settings, connection, partial(read_backfill, settings=settings, days=options.backfill)
        )
        for line in estimate(settings, backfill):
            say(options, line)
        if options.dry_run:
            return
        history = History({day: [] for day in backfill.days})
        try:
            with fetching.timed():
                fetching.detail = f"nothing to ask for, {len(backfill.kept)} coins kept before"
                for coin, path in backfill.kept.items():
                    history.add(coin, read_history(path))
                answers = fetch_histories(settings, options, backfill, now, lambda: keep_lock(settings, connection))
                for asked, (coin, answer) in enumerate(answers, 1):
                    history.add(coin, answer)
                    fetching.detail = f"{asked} coins asked for, {len(backfill.kept)} kept before"
            with writing.timed():
                write_days(settings, history.rows, writing)
        except BaseException:
            print_result("\n".join(table_of((fetching, writing))))
            raise
        say(options, "\n".join(table_of((fetching, writing))))
        for reason, coins in history.skipped.items():
            log.warning("passed over, for %s: %d coins, %s", reason, len(coins), listed(coins))


def write_days(settings: Settings, rows: Mapping[datetime, list[tuple]], step: Step) -> None:
    """Write each day in a transaction of its own, under the run lock, which is waited for and held for this alone."""
    written = days = 0
    if not any(rows.values()):
        step.detail = "nothing to write"
        return
    with writing_connection(settings, patience=BACKFILL_PATIENCE) as connection:
        for day, day_rows in rows.items():
            new = in_transaction(settings, connection, partial(write_day, settings=settings, day=day, rows=day_rows))
            written += new
            days += bool(new)
            step.detail = f"{written:,} rows on {days} days"


@contextmanager
def backfill_connection(settings: Settings, options: argparse.Namespace) -> Iterator[Connection]:
    """A connection; unless it is for a dry run, it holds the lock that keeps backfills of this database apart."""
    if options.dry_run:
        with closing(connect(settings)) as connection:
            yield connection
    else:
        with writing_connection(settings, BACKFILL_LOCK) as connection:
            yield connection


def keep_lock(settings: Settings, connection: Connection) -> None:
    """Keep an idle connection awake, and take its lock anew when it was lost all the same."""
    with suppress(DatabaseError, *mysql_errors()):
        if not connection.is_connected():
            connection.reconnect()
            take_lock(settings, connection, BACKFILL_LOCK)


# ---------------------------------------------------------------------------------------------------------- status


class Status(NamedTuple):
    """How up to date the table is, and how far back it reaches."""

    rows: int
    rows_are_estimated: bool
    untiered: int
    newest: datetime | None  # UTC, the newest snapshot; None: the table is empty
    coins: int  # of that snapshot
    last_updated: datetime | None  # UTC, of the coin that CoinGecko renewed last
    oldest: datetime | None  # UTC, the oldest snapshot
    days: int  # from the oldest snapshot's to the newest's
    empty_days: int  # of these, without any snapshot


def read_status(cursor: Any, now: datetime) -> Status:
    """The status at `now` (UTC, naive). A figure dated later is no sign of life and is left aside."""
    rows, are_estimated = count_rows(cursor)
    cursor.execute("SELECT MIN(timestamp), MAX(timestamp) FROM crypto_prices")
    oldest, newest = cursor.fetchone()
    cursor.execute("SELECT COUNT(*) FROM crypto_prices WHERE market_cap_tier IS NULL")
    (untiered,) = cursor.fetchone()
    cursor.execute("SELECT COUNT(*) FROM crypto_prices WHERE timestamp = %s", (newest,))
    (coins,) = cursor.fetchone()
    cursor.execute(
        "SELECT MAX(last_updated) FROM crypto_prices WHERE timestamp = %s AND last_updated <= %s", (newest, now)
    )
    (last_updated,) = cursor.fetchone()
    days, filled = (newest.date() - oldest.date()).days + 1 if newest else 0, 0
    day = oldest
    while day:
        # from day to day by the key: what lies between two of them is not read
        filled += 1
        cursor.execute(
            "SELECT MIN(timestamp) FROM crypto_prices WHERE timestamp >= %s",
            (floor_time(day, MINUTES_A_DAY) + timedelta(days=1),),
        )
        (day,) = cursor.fetchone()
    return Status(rows, are_estimated, untiered, newest, coins, last_updated, oldest, days, days - filled)


def show_status(settings: Settings, options: argparse.Namespace) -> None:
    """Print the status of the table. Raises StaleError when it is empty, or older than --max-age minutes."""
    now = datetime.now(UTC).replace(tzinfo=None)
    with closing(connect(settings)) as connection:
        status = in_one_transaction(settings, connection, partial(read_status, now=now))
    table = f"{settings.mysql_database}.crypto_prices"
    as_of = status.last_updated or status.newest
    age = max((now - as_of).total_seconds(), 0) / 60 if as_of else None
    if options.json:
        print_result(json.dumps(status_facts(status, table, age), indent=2))
    elif age is not None:
        for line in status_lines(status, age):
            say(options, line)
    if age is None:
        raise StaleError(f"{table} is empty: run python pipeline_orchestrator.py")
    if options.max_age is not None and age > options.max_age:
        raise StaleError(
            f"{table} is {duration(age)} old, more than --max-age {options.max_age:g}: see the log of the last runs,"
            " and whether cron or Task Scheduler starts them"
        )


def status_lines(status: Status, age: float) -> Iterator[str]:
    """The status for people; `age` in minutes."""
    as_of = status.last_updated or status.newest
    about = "about " if status.rows_are_estimated else ""
    gaps = f"{status.empty_days} without a snapshot" if status.empty_days else "none without a snapshot"
    yield f"newest snapshot      {status.newest:%Y-%m-%d %H:%M} UTC, {status.coins} coins"
    yield f"age                  {duration(age)} (newest figure {as_of:%Y-%m-%d %H:%M:%S} UTC)"
    yield f"history              {status.oldest:%Y-%m-%d} to {status.newest:%Y-%m-%d}: {status.days} days, {gaps}"
    yield f"rows in all          {about}{status.rows}"
    yield f"rows without a tier  {status.untiered}"


def status_facts(status: Status, table: str, age: float | None) -> dict[str, Any]:
    """The status for programs: times in ISO 8601, UTC; null where the table is empty."""

    def at(moment: datetime | None) -> str | None:
        return f"{moment.isoformat(timespec='seconds')}Z" if moment else None

    return {
        "table": table,
        "newest_snapshot": at(status.newest),
        "coins": status.coins,
        "newest_figure": at(status.last_updated),
        "age_minutes": None if age is None else round(age, 1),
        "oldest_snapshot": at(status.oldest),
        "days": status.days,
        "days_without_snapshot": status.empty_days,
        "rows": status.rows,
        "rows_are_estimated": status.rows_are_estimated,
        "rows_without_tier": status.untiered,
    }


def duration(minutes: float) -> str:
    """`minutes` as 12 min, 3 h 20 min or 4 d 2 h."""
    whole = int(minutes)
    if whole < 60:
        return f"{whole} min"
    if whole < 48 * 60:
        return f"{whole // 60} h {whole % 60} min"
    return f"{whole // 1440} d {whole % 1440 // 60} h"


def minutes_option(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{shown(text)} is no number of minutes")


def days_option(text: str) -> int:
    with suppress(ValueError):
        if 1 <= int(text) <= DAYS_IN_REACH:
            return int(text)
    raise argparse.ArgumentTypeError(
        f"{shown(text)} is no number of days from 1 to {DAYS_IN_REACH}: CoinGecko's free plans reach no further back"
    )


def main(argv: list[str] | None = None) -> int:
    """Command line in, exit code out."""
    parser = make_parser("pipeline_orchestrator.py", __doc__)
    source = add_extract_options(parser)
    source.add_argument("--status", action="store_true", help="how up to date the table is; exit code 6 when it is not")
    source.add_argument(
        "--backfill", metavar="DAYS", type=days_option, help="daily history of the newest snapshot's coins (1 to 365)"
    )
    parser.add_argument("--json", action="store_true", help="with --status: for programs")
    parser.add_argument("--max-age", metavar="MINUTES", type=minutes_option, help="with --status: older is too old")
    options = parse_options(parser, argv)
    if options.max_age is not None and not options.status:
        parser.error("--max-age goes with --status")
    if options.json and not options.status:
        parser.error("--json goes with --status")
    if options.backfill and options.force:
        parser.error("--backfill refuses no snapshot: leave --force out")
    if options.status and (options.dry_run or options.force):
        parser.error("--status writes nothing: leave --dry-run and --force out")

    def work(settings: Settings) -> int:
        if options.status:
            show_status(settings, options)
            return 0
        if options.backfill:
            run_backfill(settings, options)
            return 0
        summary = Summary()
        try:
            run_pipeline(settings, options, summary)
        except BaseException:
            print_result("\n".join(summary.lines()))
            raise
        say(options, "\n".join(summary.lines()))
        return 0

    return run_script(log, options, work, needs_database=bool(options.backfill) or not options.dry_run)


if __name__ == "__main__":
    end_process(main())
