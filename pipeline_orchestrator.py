"""Run the pipeline: CoinGecko's market into MySQL, with its tiers, by hand or from cron.

  python pipeline_orchestrator.py                            the COIN_LIMIT largest coins, as they are now
  python pipeline_orchestrator.py --replay snapshots/*.gz    kept answers again
  python pipeline_orchestrator.py --status --max-age 60      is the table up to date?

Load and tiers are one transaction: whoever reads the table never sees a snapshot without its tiers.
Settings come from .env (see .env.example); exit codes are in README.md.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from etl_crypto import (
    COLUMNS,
    Market,
    Settings,
    StaleError,
    add_extract_options,
    connect,
    end_process,
    in_background,
    make_parser,
    parse_options,
    print_result,
    run,
    run_script,
    say,
    shown,
    signals_held,
    transaction,
    upsert,
    writing_connection,
)
from segment_and_load import TIERS, assign_tiers, describe, segment, warn_of_other_bounds

if TYPE_CHECKING:
    pass

log = logging.getLogger("pipeline_orchestrator")


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
        yield f"{'step':20} {'state':11} {'seconds':>7}   detail"
        for step in (self.extract, self.segment):
            yield f"{step.name:20} {step.state:11} {step.seconds:7.1f}   {step.detail}".rstrip()
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


# ---------------------------------------------------------------------------------------------------------- status


class Status(NamedTuple):
    """How up to date the table is."""

    rows: int
    untiered: int
    newest: datetime | None  # UTC, the newest snapshot; None: the table is empty
    coins: int  # of that snapshot
    last_updated: datetime | None  # UTC, of the coin that CoinGecko renewed last


def read_status(cursor: Any, now: datetime) -> Status:
    """The status at `now` (UTC, naive). A figure dated later is no sign of life and is left aside."""
    cursor.execute("SELECT COUNT(*), MAX(timestamp) FROM crypto_prices")
    rows, newest = cursor.fetchone()
    cursor.execute("SELECT COUNT(*) FROM crypto_prices WHERE market_cap_tier IS NULL")
    (untiered,) = cursor.fetchone()
    cursor.execute("SELECT COUNT(*) FROM crypto_prices WHERE timestamp = %s", (newest,))
    (coins,) = cursor.fetchone()
    cursor.execute(
        "SELECT MAX(last_updated) FROM crypto_prices WHERE timestamp = %s AND last_updated <= %s", (newest, now)
    )
    (last_updated,) = cursor.fetchone()
    return Status(rows, untiered, newest, coins, last_updated)


def show_status(settings: Settings, options: argparse.Namespace) -> None:
    """Print the status of the table. Raises StaleError when it is empty, or older than --max-age minutes."""
    now = datetime.now(UTC).replace(tzinfo=None)
    with closing(connect(settings)) as connection, transaction(settings, connection) as cursor:
        status = read_status(cursor, now)
    table = f"{settings.mysql_database}.crypto_prices"
    if not status.newest:
        raise StaleError(f"{table} is empty: run python pipeline_orchestrator.py")
    as_of = status.last_updated or status.newest
    age = max((now - as_of).total_seconds(), 0) / 60
    say(options, f"newest snapshot      {status.newest:%Y-%m-%d %H:%M} UTC, {status.coins} coins")
    say(options, f"age                  {duration(age)} (newest figure {as_of:%Y-%m-%d %H:%M:%S} UTC)")
    say(options, f"rows in all          {status.rows}")
    say(options, f"rows without a tier  {status.untiered}")
    if options.max_age is not None and age > options.max_age:
        raise StaleError(
            f"{table} is {duration(age)} old, more than --max-age {options.max_age:g}: see the log of the last runs,"
            " and whether cron or Task Scheduler starts them"
        )


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


def main(argv: list[str] | None = None) -> int:
    """Command line in, exit code out."""
    parser = make_parser("pipeline_orchestrator.py", __doc__)
    source = add_extract_options(parser)
    source.add_argument("--status", action="store_true", help="how up to date the table is; exit code 6 when it is not")
    parser.add_argument("--max-age", metavar="MINUTES", type=minutes_option, help="with --status: older is too old")
    options = parse_options(parser, argv)
    if options.max_age is not None and not options.status:
        parser.error("--max-age goes with --status")
    if options.status and (options.dry_run or options.force):
        parser.error("--status writes nothing: leave --dry-run and --force out")

    def work(settings: Settings) -> int:
        if options.status:
            show_status(settings, options)
            return 0
        summary = Summary()
        try:
            run_pipeline(settings, options, summary)
        except BaseException:
            print_result("\n".join(summary.lines()))
            raise
        say(options, "\n".join(summary.lines()))
        return 0

    return run_script(log, options, work, needs_database=not options.dry_run)


if __name__ == "__main__":
    end_process(main())
