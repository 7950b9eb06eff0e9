"""Give the rows of crypto_prices their market_cap_tier.

  python segment_and_load.py                  the rows that have none yet
  python segment_and_load.py --all            every row again, after a change of TIER_..._MIN

Tiers, by market cap in USD: Large Cap from TIER_LARGE_CAP_MIN, Mid Cap from TIER_MID_CAP_MIN, Small Cap from
TIER_SMALL_CAP_MIN, Micro/Nano Cap below; Unknown when the market cap is NULL or 0, which is how CoinGecko says so.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from etl_crypto import (
    Settings,
    connect,
    end_process,
    in_one_transaction,
    in_transaction,
    make_parser,
    parse_options,
    run_script,
    say,
    signals_held,
    writing_connection,
)

# pandas is imported where it is used: it takes longer than all the rest, and --help does not need it.
if TYPE_CHECKING:
    import pandas as pd
    from mysql.connector.abstracts import MySQLConnectionAbstract as Connection

log = logging.getLogger("segment_and_load")

TIERS = ("Large Cap", "Mid Cap", "Small Cap", "Micro/Nano Cap", "Unknown")
CHUNK_ROWS = 20_000  # read at a time: memory stays flat
BATCH_IDS = 1_000  # coins named in one UPDATE
COMMIT_ROWS = 2_000  # changed by --all in one transaction: others that write wait for its locks 0.1 s at most
PROGRESS_SECONDS = 5
COUNTED_ROWS = 1_500_000  # more are estimated: to count them takes longer than a user waits, or the connection


def assign_tiers(market_caps: pd.Series, settings: Settings) -> pd.Series:
    """The tier of each market cap (USD, NaN for NULL), with the index of `market_caps`. Lower bounds are inclusive."""
    with signals_held():
        import pandas as pd

    above_zero = math.ulp(0.0)
    tiers = (settings.tier_small_cap_min, settings.tier_mid_cap_min, settings.tier_large_cap_min)
    bounds = [-math.inf, above_zero, *tiers, math.inf]
    return pd.cut(market_caps.fillna(0.0), bounds, right=False, labels=TIERS[::-1])


class Row(NamedTuple):
    """The tier of a coin in a snapshot: the one it has, and the one that is due by the present bounds."""

    timestamp: datetime
    coin_id: str
    present: str | None
    due: str


def read_tiers(cursor: Any, settings: Settings, condition: str, parameters: tuple = ()) -> list[Row]:
    """The rows of crypto_prices that meet `condition`, with the tiers they have and should have."""
    with signals_held():
        import pandas as pd

    cursor.execute(
        f"SELECT timestamp, coin_id, market_cap, market_cap_tier FROM crypto_prices WHERE {condition}", parameters
    )
    rows = cursor.fetchall()
    due = assign_tiers(pd.Series([market_cap for _, _, market_cap, _ in rows], dtype="float64"), settings)
    return [Row(timestamp, coin_id, tier, new) for (timestamp, coin_id, _, tier), new in zip(rows, due, strict=True)]


def write_tiers(cursor: Any, rows: Iterable[Row]) -> None:
    """Give `rows` the tiers that are due: a few statements for each snapshot."""
    coins: dict[tuple[datetime, str], list[str]] = defaultdict(list)
    for row in rows:
        coins[row.timestamp, row.due].append(row.coin_id)
    for (timestamp, tier), ids in coins.items():
        for start in range(0, len(ids), BATCH_IDS):
            batch = ids[start : start + BATCH_IDS]
            cursor.execute(
                "UPDATE crypto_prices SET market_cap_tier = %s"
                f" WHERE timestamp = %s AND coin_id IN ({', '.join(['%s'] * len(batch))})",
                (tier, timestamp, *batch),
            )


class Tiered(NamedTuple):
    """What was given a tier: the rows of each tier, and the newest snapshot among them (UTC; None: there were none)."""

    rows: Counter[str]
    newest: datetime | None


def segment(cursor: Any, settings: Settings, dry_run: bool = False) -> Tiered:
    """Give every row without a tier its tier, within the transaction of `cursor`.

    The cost is that of the rows without a tier, however long the history: an index finds them.
    """
    tiered: Counter[str] = Counter()
    newest = None
    # FOR UPDATE: as the rows are now. Those that others delete meanwhile would stay in the transaction's old view,
    # pending for ever.
    chunk = "" if dry_run else f" LIMIT {CHUNK_ROWS} FOR UPDATE"
    while True:
        pending = read_tiers(cursor, settings, f"market_cap_tier IS NULL{chunk}")
        tiered.update(row.due for row in pending)
        newest = max(filter(None, (newest, *(row.timestamp for row in pending))), default=None)
        if not dry_run:
            write_tiers(cursor, pending)
        if dry_run or len(pending) < CHUNK_ROWS:
            return Tiered(tiered, newest)


def warn_of_other_bounds(cursor: Any, settings: Settings, newest: datetime | None) -> None:
    """Say so when the snapshot before `newest` (None: the last one) was tiered with other bounds than the present."""
    before = "WHERE timestamp < %s" if newest else ""
    cursor.execute(f"SELECT MAX(timestamp) FROM crypto_prices {before}", (newest,) if newest else ())
    (timestamp,) = cursor.fetchone()
    if timestamp is None:
        return
    rows = read_tiers(cursor, settings, "timestamp = %s AND market_cap_tier IS NOT NULL", (timestamp,))
    changed = sum(row.present != row.due for row in rows)
    if changed:
        log.warning(
            "with the present TIER_..._MIN, %d of the %d coins of %s UTC would be in another tier:"
            " python segment_and_load.py --all brings the whole history in line",
            changed,
            len(rows),
            timestamp,
        )


def count_rows(cursor: Any) -> tuple[int, bool]:
    """The rows of the table, and whether that is the server's estimate: to count millions takes it seconds."""
    cursor.execute(
        "SELECT table_rows FROM information_schema.tables WHERE table_schema = DATABASE()"
        " AND table_name = 'crypto_prices'"
    )
    (estimate,) = cursor.fetchone()
    if (estimate or 0) > COUNTED_ROWS:
        return estimate, True
    cursor.execute("SELECT COUNT(*) FROM crypto_prices")
    return cursor.fetchone()[0], False


def segment_all(settings: Settings, connection: Connection, dry_run: bool) -> tuple[int, Counter[str]]:
    """Give every row the tier of the present bounds. Returns the rows read, and the rows changed to each tier.

    It goes along the primary key, chunk by chunk, and writes only rows that change, in short transactions: it may be
    ended at any moment and run again.
    """
    transact = in_one_transaction if dry_run else in_transaction  # a dry run has no lock to take anew
    total, _ = transact(settings, connection, count_rows)
    read = 0
    changed: Counter[str] = Counter()
    last = (datetime.min, "")
    begun = said = time.monotonic()

    def read_chunk(cursor: Any) -> list[Row]:
        return read_tiers(
            cursor,
            settings,
            f"timestamp >= %s AND (timestamp > %s OR coin_id > %s) ORDER BY timestamp, coin_id LIMIT {CHUNK_ROWS}",
            (last[0], *last),
        )

    while True:
        rows = transact(settings, connection, read_chunk)
        if not rows:
            return read, changed
        misfits = [row for row in rows if row.present != row.due]
        for start in range(0, 0 if dry_run else len(misfits), COMMIT_ROWS):
            in_transaction(settings, connection, partial(write_tiers, rows=misfits[start : start + COMMIT_ROWS]))
        read += len(rows)
        changed.update(row.due for row in misfits)
        last = (rows[-1].timestamp, rows[-1].coin_id)
        now = time.monotonic()
        if now - said >= PROGRESS_SECONDS:
            said = now
            rate = read / (now - begun)
            log.info(
                "%d of %d rows, %d changed; %.0f rows/s, %.0f s left",
                read,
                total,
                changed.total(),
                rate,
                max(total - read, 0) / rate,
            )


def describe(tiered: Counter[str], done: str) -> str:
    """Rows in all and per tier, such as "63 tiered: 11 Large Cap, 52 Mid Cap"; tiers without rows are left out."""
    per_tier = ", ".join(f"{tiered[tier]} {tier}" for tier in TIERS if tiered[tier])
    return f"{tiered.total()} {done}" + (f": {per_tier}" if per_tier else "")


def main(argv: list[str] | None = None) -> int:
    """Command line in, exit code out."""
    parser = make_parser("segment_and_load.py", __doc__)
    parser.add_argument("--all", action="store_true", help="every row again, not only those without a tier")
    options = parse_options(parser, argv)

    def work(settings: Settings) -> int:
        def tier_pending(cursor: Any) -> Tiered:
            tiered = segment(cursor, settings, options.dry_run)
            warn_of_other_bounds(cursor, settings, tiered.newest)
            return tiered

        dry = " (dry run: nothing was written)" if options.dry_run else ""
        with closing(connect(settings)) if options.dry_run else writing_connection(settings) as connection:
            if options.all:
                read, changed = segment_all(settings, connection, options.dry_run)
                say(options, f"{read} rows read, {describe(changed, 'changed')}{dry}")
            else:
                transact = in_one_transaction if options.dry_run else in_transaction
                tiered = transact(settings, connection, tier_pending)
                say(options, describe(tiered.rows, "rows tiered") + dry)
        return 0

    return run_script(log, options, work)


if __name__ == "__main__":
    end_process(main())
