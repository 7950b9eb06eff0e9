"""Give the rows of crypto_prices their market_cap_tier.

  python segment_and_load.py             the rows that have none yet
  python segment_and_load.py --all       every row, once TIER_..._MIN changed
  python segment_and_load.py --dry-run   how many rows have none

Tiers, by market cap in USD: Large Cap from TIER_LARGE_CAP_MIN, Mid Cap from
TIER_MID_CAP_MIN, Small Cap from TIER_SMALL_CAP_MIN, Micro/Nano Cap below;
Unknown when it is NULL or not above 0 (CoinGecko sends 0 for unknown).
Settings come from .env (see .env.example); exit codes are in README.md.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from etl_crypto import Progress, Settings, duration, end_process, make_parser, run_script, say, warn_of_future
from sql import crypto_prices
from sql.connection import Database, defer_signals
from sql.crypto_prices import TierRow, open_database, write_tiers

# pandas is imported where it is used: it takes longer than all the rest, and --help does not need it.
if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("segment_and_load")

TIERS = ("Large Cap", "Mid Cap", "Small Cap", "Micro/Nano Cap", "Unknown")
CHUNK_ROWS = 20_000  # read at a time: memory stays flat
ROWS_PER_SECOND = 200_000  # that --all reads on two cores; about
COMMIT_ROWS = 2_000  # changed by --all in one transaction: other writers wait for its locks 0.1 s at most


# ----------------------------------------------------------------------------------------------------------- tiers


def assign_tiers(market_caps: Iterable[float | None], settings: Settings) -> pd.Series:
    """The tier of each market cap (USD), with the index of `market_caps`, if any. Lower bounds are inclusive."""
    with defer_signals():
        import pandas as pd

    above_zero = math.ulp(0.0)
    bounds = (settings.tier_small_cap_min, settings.tier_mid_cap_min, settings.tier_large_cap_min)
    edges = [-math.inf, above_zero, *bounds, math.inf]
    return pd.cut(pd.Series(market_caps, dtype="float64").fillna(0.0), edges, right=False, labels=TIERS[::-1])


def expected_tiers(rows: list[TierRow], settings: Settings) -> list[str]:
    """The tier that each of `rows` should have by the current bounds."""
    return assign_tiers([row.market_cap for row in rows], settings).tolist()


# ------------------------------------------------------------------------------------------------ rows without a tier


class Segmented(NamedTuple):
    """What was given a tier: the rows of each tier, and the newest snapshot among them (UTC; None: there were none)."""

    tiers: Counter[str]
    newest: datetime | None


def segment(cursor: Any, settings: Settings, one_chunk: bool = False, dry_run: bool = False) -> Segmented:
    """Give every row without a tier its tier, or those of one chunk; with `dry_run`, only count them.

    The cost depends on the rows without a tier, not on the history: an index finds them.
    """
    tiers: Counter[str] = Counter()
    newest = None
    while True:
        rows = crypto_prices.read_untiered(cursor, None if dry_run else CHUNK_ROWS)
        expected = expected_tiers(rows, settings)
        tiers.update(expected)
        newest = max(filter(None, (newest, *(row.timestamp for row in rows))), default=None)
        if not dry_run:
            write_tiers(cursor, ((row.timestamp, row.coin_id, tier) for row, tier in zip(rows, expected, strict=True)))
        if one_chunk or dry_run or len(rows) < CHUNK_ROWS:
            return Segmented(tiers, newest)


def warn_if_bounds_changed(cursor: Any, settings: Settings, before: datetime | None) -> None:
    """Warn when the newest snapshot (before `before`, if given) was tiered by other bounds than the current."""
    timestamp = crypto_prices.read_newest(cursor, before)
    if timestamp is None:
        return
    rows = crypto_prices.read_tiered(cursor, timestamp)
    changed = sum(row.tier != tier for row, tier in zip(rows, expected_tiers(rows, settings), strict=True))
    if changed:
        share = f"{changed:,} of the {len(rows):,} coins of {timestamp} UTC would be in another tier"
        hint = "python segment_and_load.py --all updates the whole history"
        log.warning("with the current TIER_..._MIN, %s: %s", share, hint)


# ---------------------------------------------------------------------------------------------------------- every row


def segment_all(settings: Settings, database: Database, dry_run: bool) -> tuple[int, Counter[str]]:
    """Give every row the tier of the current bounds. Returns the rows read, and the rows changed to each tier.

    It walks the primary key in chunks and writes only rows that change, in short transactions: it may be
    interrupted at any moment and run again.
    """
    total, _ = database.transaction(crypto_prices.count_rows)
    read = 0
    tiers: Counter[str] = Counter()
    last = (datetime.min, "")
    started = time.monotonic()
    with Progress("rows", total, total / ROWS_PER_SECOND) as progress:
        if progress.is_shown:
            minutes = math.ceil(total / ROWS_PER_SECOND / 60)
            log.info(f"about {total:,} rows to read: this takes about {duration(minutes)}")
        while True:
            chunk = partial(crypto_prices.read_rows_after, timestamp=last[0], coin_id=last[1], limit=CHUNK_ROWS)
            rows = database.transaction(chunk)
            if not rows:
                return read, tiers
            expected = zip(rows, expected_tiers(rows, settings), strict=True)
            changed = [(row.timestamp, row.coin_id, tier) for row, tier in expected if row.tier != tier]
            for start in range(0, 0 if dry_run else len(changed), COMMIT_ROWS):
                database.transaction(partial(write_tiers, tiers=changed[start : start + COMMIT_ROWS]))
            read += len(rows)
            tiers.update(tier for _, _, tier in changed)
            last = (rows[-1].timestamp, rows[-1].coin_id)
            rate = read / (time.monotonic() - started)
            progress.update(read, f", {rate:,.0f}/s, {tiers.total():,} changed")


# -------------------------------------------------------------------------------------------------------------- script


def count_by_tier(tiers: Counter[str], done: str) -> str:
    """Rows in all and per tier, such as "63 rows tiered: 11 Large Cap, 52 Mid Cap"; tiers without rows are left out."""
    per_tier = ", ".join(f"{tiers[tier]:,} {tier}" for tier in TIERS if tiers[tier])
    return f"{tiers.total():,} {done}" + (f": {per_tier}" if per_tier else "")


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Give the rows without a tier theirs, or with --all every row, and print what was done."""

    def segment_chunk(cursor: Any) -> Counter[str]:
        segmented = segment(cursor, settings, one_chunk=True, dry_run=options.dry_run)
        warn_if_bounds_changed(cursor, settings, segmented.newest)
        return segmented.tiers

    with closing(Database(settings.server)) if options.dry_run else open_database(settings.server) as database:
        database.transaction(partial(warn_of_future, options=options))
        if options.all:
            read, tiers = segment_all(settings, database, options.dry_run)
            result = f"{read:,} rows read, {count_by_tier(tiers, 'changed')}"
        else:
            tiers: Counter[str] = Counter()
            while chunk := database.transaction(segment_chunk):  # each is committed: a signal ends it after one
                tiers += chunk
                if options.dry_run:
                    break
            result = count_by_tier(tiers, "rows tiered")
    say(options, result + (" (dry run: nothing was written)" if options.dry_run else ""))


def main(argv: list[str] | None = None) -> int:
    """Command line in, exit code out."""
    parser = make_parser("segment_and_load.py", __doc__)
    parser.add_argument("--all", action="store_true", help="every row, not only those without a tier")
    return run_script(parser, argv, run)


if __name__ == "__main__":
    end_process(main())
