"""Give the rows of crypto_prices their market_cap_tier.

  python segment_and_load.py                  the rows that have none yet
  python segment_and_load.py --all            every row again, after a change of TIER_..._MIN

Tiers, by market cap in USD: Large Cap from TIER_LARGE_CAP_MIN, Mid Cap from TIER_MID_CAP_MIN, Small Cap from
TIER_SMALL_CAP_MIN, Micro/Nano Cap below; Unknown when the market cap is NULL or 0, which is how CoinGecko says so.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any

from etl_crypto import (
    Settings,
    connect,
    end_process,
    in_transaction,
    make_parser,
    parse_options,
    run_script,
    say,
    signals_held,
    transaction,
    writing_connection,
)

# pandas is imported where it is used: it takes longer than all the rest, and --help does not need it.
if TYPE_CHECKING:
    import pandas as pd
    from mysql.connector.abstracts import MySQLConnectionAbstract as Connection

log = logging.getLogger("segment_and_load")

TIERS = ("Large Cap", "Mid Cap", "Small Cap", "Micro/Nano Cap", "Unknown")
CHUNK_ROWS = 20_000  # read at a time: memory stays flat, and --all holds its locks for a moment only
BATCH_IDS = 1_000  # coins named in one UPDATE
PROGRESS_SECONDS = 5


def assign_tiers(market_caps: pd.Series, settings: Settings) -> pd.Series:
    """The tier of each market cap (USD, NaN for NULL), with the index of `market_caps`. Lower bounds are inclusive."""
    with signals_held():
        import pandas as pd

    bounds = [0.0, settings.tier_small_cap_min, settings.tier_mid_cap_min, settings.tier_large_cap_min, float("inf")]
    known = market_caps.where(market_caps > 0)
    tiers = pd.cut(known, bounds, right=False, labels=["Micro/Nano Cap", "Small Cap", "Mid Cap", "Large Cap"])
    return tiers.astype("object").fillna("Unknown")


def read_rows(cursor: Any, condition: str, parameters: tuple = ()) -> pd.DataFrame:
    """Rows as timestamp, coin_id, market_cap (USD, NaN for NULL), market_cap_tier (None for NULL)."""
    with signals_held():
        import pandas as pd

    columns = ["timestamp", "coin_id", "market_cap", "market_cap_tier"]
    cursor.execute(f"SELECT {', '.join(columns)} FROM crypto_prices WHERE {condition}", parameters)
    rows = pd.DataFrame(cursor.fetchall(), columns=columns, dtype="object")
    return rows.astype({"market_cap": "float64"})


def write_tiers(cursor: Any, rows: pd.DataFrame) -> None:
    """Write the column `tier` of `rows` to the table: a few statements for each snapshot."""
    for (timestamp, tier), group in rows.groupby(["timestamp", "tier"]):
        for start in range(0, len(group), BATCH_IDS):
            ids = group["coin_id"].iloc[start : start + BATCH_IDS].tolist()
            with signals_held():
                cursor.execute(
                    "UPDATE crypto_prices SET market_cap_tier = %s"
                    f" WHERE timestamp = %s AND coin_id IN ({', '.join(['%s'] * len(ids))})",
                    (tier, timestamp, *ids),
                )


def segment(cursor: Any, settings: Settings, dry_run: bool = False) -> Counter[str]:
    """Give every row without a tier its tier, within the transaction of `cursor`. Returns the rows of each tier.

    The cost is that of the rows without a tier, however long the history: an index finds them.
    """
    tiered: Counter[str] = Counter()
    newest = None
    while True:
        # FOR UPDATE: as the rows are now. Those that others delete meanwhile would stay in the transaction's old view,
        # pending for ever.
        chunk = "" if dry_run else f" LIMIT {CHUNK_ROWS} FOR UPDATE"
        pending = read_rows(cursor, f"market_cap_tier IS NULL{chunk}")
        if pending.empty:
            break
        pending["tier"] = assign_tiers(pending["market_cap"], settings)
        tiered.update(pending["tier"])
        newest = max(filter(None, (newest, pending["timestamp"].max())))
        if dry_run:
            break
        write_tiers(cursor, pending)
    warn_of_other_bounds(cursor, settings, newest)
    return tiered


def warn_of_other_bounds(cursor: Any, settings: Settings, newest: datetime | None) -> None:
    """Say so when the snapshot before `newest` (None: the last one) was tiered with other bounds than the present."""
    before = "WHERE timestamp < %s" if newest else ""
    cursor.execute(f"SELECT MAX(timestamp) FROM crypto_prices {before}", (newest,) if newest else ())
    (timestamp,) = cursor.fetchone()
    if timestamp is None:
        return
    rows = read_rows(cursor, "timestamp = %s AND market_cap_tier IS NOT NULL", (timestamp,))
    changed = int((assign_tiers(rows["market_cap"], settings) != rows["market_cap_tier"]).sum())
    if changed:
        log.warning(
            "with the present TIER_..._MIN, %d of the %d coins of %s UTC would be in another tier:"
            " python segment_and_load.py --all brings the whole history in line",
            changed,
            len(rows),
            timestamp,
        )


def segment_all(settings: Settings, connection: Connection, dry_run: bool) -> tuple[int, Counter[str]]:
    """Give every row the tier of the present bounds. Returns the rows read, and the rows changed to each tier.

    It goes along the primary key, a short transaction for each chunk, and writes only rows that change: it may be ended
    at any moment and run again.
    """
    with transaction(settings, connection) as cursor:
        cursor.execute("SELECT COUNT(*) FROM crypto_prices")
        (total,) = cursor.fetchone()
    read = 0
    changed: Counter[str] = Counter()
    last = (datetime.min, "")
    begun = said = time.monotonic()

    def work(cursor: Any) -> pd.DataFrame:
        rows = read_rows(
            cursor,
            f"timestamp >= %s AND (timestamp > %s OR coin_id > %s) ORDER BY timestamp, coin_id LIMIT {CHUNK_ROWS}",
            (last[0], *last),
        )
        rows["tier"] = assign_tiers(rows["market_cap"], settings)
        if not dry_run:
            write_tiers(cursor, rows[rows["tier"] != rows["market_cap_tier"]])
        return rows

    while True:
        rows = in_transaction(settings, connection, work)
        if rows.empty:
            return read, changed
        read += len(rows)
        changed.update(rows["tier"][rows["tier"] != rows["market_cap_tier"]])
        last = tuple(rows[["timestamp", "coin_id"]].iloc[-1])
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
        dry = " (dry run: nothing was written)" if options.dry_run else ""
        with closing(connect(settings)) if options.dry_run else writing_connection(settings) as connection:
            if options.all:
                read, changed = segment_all(settings, connection, options.dry_run)
                say(options, f"{read} rows read, {describe(changed, 'changed')}{dry}")
            else:
                if options.dry_run:
                    with transaction(settings, connection) as cursor:
                        tiered = segment(cursor, settings, dry_run=True)
                else:
                    tiered = in_transaction(settings, connection, lambda cursor: segment(cursor, settings))
                say(options, describe(tiered, "rows tiered") + dry)
        return 0

    return run_script(log, options, work)


if __name__ == "__main__":
    end_process(main())
