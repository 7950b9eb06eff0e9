"""What Python knows of the table crypto_prices, beside sql/crypto_prices.sql: all statements that touch it.

Functions take a cursor of an open transaction and leave the commit to it. Times are naive UTC, as in the table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from sql.connection import OTHER_TABLE, Database, DatabaseError, Lock, Server, join_quoted

RUN_LOCK = Lock("crypto_prices", "run is writing to")
BACKFILL_LOCK = Lock("crypto_prices.backfill", "backfill is going on for")

# The columns that are written, in the order of the table; market_cap_tier is filled in afterwards.
TEXT_LENGTHS = {"coin_id": 128, "symbol": 255, "name": 255}  # characters
FIGURES = (  # each a DOUBLE, which holds every figure that CoinGecko sends
    "current_price", "market_cap", "fully_diluted_valuation", "total_volume", "high_24h", "low_24h", "price_change_24h",
    "price_change_percentage_1h", "price_change_percentage_24h", "price_change_percentage_7d", "market_cap_change_24h",
    "market_cap_change_percentage_24h", "circulating_supply", "total_supply", "max_supply", "ath", "atl",
)  # fmt: skip
LONGEST_TIER = len("Micro/Nano Cap")
COLUMNS = ("timestamp", *TEXT_LENGTHS, "market_cap_rank", *FIGURES, "last_updated")


# -------------------------------------------------------------------------------------------------- open and check


@contextmanager
def open_database(server: Server, lock: Lock = RUN_LOCK, lock_timeout: float = 0) -> Iterator[Database]:
    """A session that holds `lock` and may write the table; closed at the end, which frees the lock.

    Raises AlreadyRunningError, and DatabaseError when the table or a right is missing.
    """
    with closing(Database(server, lock, lock_timeout)) as database:
        database.transaction(partial(check_table, database=server.database))
        yield database


THIS_TABLE = "WHERE table_schema = DATABASE() AND table_name = 'crypto_prices'"
MISMATCHED_COLUMNS = f"""
SELECT column_name FROM information_schema.columns {THIS_TABLE} AND NOT COALESCE(CASE
  WHEN column_name IN ('{"', '".join(FIGURES)}') THEN data_type = 'double' AND is_nullable = 'YES'
  WHEN column_name = 'timestamp' THEN data_type = 'datetime'
  WHEN column_name = 'coin_id' THEN character_maximum_length >= {TEXT_LENGTHS["coin_id"]}
  WHEN column_name IN ('symbol', 'name') THEN character_maximum_length >= {TEXT_LENGTHS["name"]}
  WHEN column_name = 'market_cap_rank' THEN data_type IN ('int', 'bigint') AND is_nullable = 'YES'
  WHEN column_name = 'last_updated' THEN data_type = 'datetime' AND datetime_precision >= 3 AND is_nullable = 'YES'
  WHEN column_name = 'market_cap_tier'
    THEN data_type <> 'enum' AND character_maximum_length >= {LONGEST_TIER} AND is_nullable = 'YES'
  ELSE is_nullable = 'YES' OR column_default IS NOT NULL OR extra <> '' END, FALSE)
ORDER BY column_name
"""


def check_table(cursor: Any, database: str) -> None:
    """Raise DatabaseError unless the table is the one of sql/crypto_prices.sql and this account may write it."""
    columns = ", ".join((*COLUMNS, "market_cap_tier"))
    # Statements that touch no row still need the rights, the columns and a server that takes writes.
    cursor.execute(f"INSERT INTO crypto_prices ({columns}) SELECT {columns} FROM crypto_prices WHERE FALSE")
    cursor.execute("UPDATE crypto_prices SET market_cap_tier = NULL WHERE FALSE")
    facts = f"FROM information_schema.columns {THIS_TABLE}"
    key = read_column(cursor, f"SELECT LOWER(column_name) {facts} AND column_key = 'PRI' ORDER BY 1")
    mismatched = read_column(cursor, MISMATCHED_COLUMNS)
    [collation] = read_column(cursor, f"SELECT collation_name {facts} AND column_name = 'coin_id'")
    [engine] = read_column(cursor, f"SELECT engine FROM information_schema.tables {THIS_TABLE}")
    if key != ["coin_id", "timestamp"]:
        problem = f"its primary key is {', '.join(key) or 'missing'}, not timestamp and coin_id"
    elif mismatched:
        problem = f"{join_quoted(mismatched)} cannot hold what is written there"
    elif not collation.endswith("_bin"):
        problem = f"coin_id has the collation {collation}, which treats different coins as one"
    elif engine != "InnoDB":
        problem = f"its engine is {engine}, which has no transactions"
    else:
        return
    raise DatabaseError(OTHER_TABLE.format(database=database, error=problem))


def read_column(cursor: Any, statement: str, parameters: tuple = ()) -> list:
    """The first column of what a statement finds."""
    cursor.execute(statement, parameters)
    return [row[0] for row in cursor.fetchall()]


# ------------------------------------------------------------------------------------------------------------ load

BATCH_ROWS = 1_000  # 330 KB a statement: well below every server's max_allowed_packet


def upsert(cursor: Any, rows: list[tuple]) -> None:
    """Insert `rows` (values as in COLUMNS, sorted by primary key), or update those that exist.

    Their tier becomes NULL. Sorted rows take half the space on disk and do not deadlock with those of another run.
    """
    insert = f"INSERT INTO crypto_prices ({', '.join(COLUMNS)}) VALUES "
    values = f"({', '.join(['%s'] * len(COLUMNS))})"
    # MySQL deprecates VALUES(), MariaDB does not know the alias: each executes its own kind of comment.
    updates = ", ".join(f"{column} = /*!80019 new.{column} */ /*M! VALUES({column}) */" for column in COLUMNS[2:])
    update = f" /*!80019 AS new */ ON DUPLICATE KEY UPDATE {updates}, market_cap_tier = NULL"
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        # Positional parameters: named ones are replaced one after another, and a coin may be called %(symbol)s. No
        # executemany: parsing the statement each time is half of its time for a hundred rows. No prepared statement:
        # the connector binds figures as FLOAT, with seven digits.
        cursor.execute(insert + ", ".join([values] * len(batch)) + update, tuple(chain.from_iterable(batch)))


def read_recent_sizes(cursor: Any) -> list[int]:
    """How many coins each of the last five snapshots has, the newest first."""
    return read_column(cursor, "SELECT COUNT(*) FROM crypto_prices GROUP BY timestamp ORDER BY timestamp DESC LIMIT 5")


# ----------------------------------------------------------------------------------------------------------- tiers


class TierRow(NamedTuple):
    """What the tier of a row depends on, and the tier it has."""

    timestamp: datetime
    coin_id: str
    market_cap: float | None  # USD
    tier: str | None


def read_tier_rows(cursor: Any, condition: str, parameters: tuple = ()) -> list[TierRow]:
    what = "timestamp, coin_id, market_cap, market_cap_tier"
    cursor.execute(f"SELECT {what} FROM crypto_prices WHERE {condition}", parameters)
    return list(map(TierRow._make, cursor.fetchall()))


def read_untiered(cursor: Any, limit: int | None) -> list[TierRow]:
    """Up to `limit` rows without a tier, locked until the transaction ends; with None all of them, not locked.

    FOR UPDATE reads current rows: in the transaction's old view, rows deleted meanwhile would stay untiered, and the
    loop of the caller would not end.
    """
    return read_tier_rows(cursor, "market_cap_tier IS NULL" + (f" LIMIT {limit} FOR UPDATE" if limit else ""))


def read_tiered(cursor: Any, timestamp: datetime) -> list[TierRow]:
    """The rows of one snapshot that have a tier."""
    return read_tier_rows(cursor, "timestamp = %s AND market_cap_tier IS NOT NULL", (timestamp,))


def read_rows_after(cursor: Any, timestamp: datetime, coin_id: str, limit: int) -> list[TierRow]:
    """The next `limit` rows after a primary key, in its order."""
    condition = f"timestamp >= %s AND (timestamp > %s OR coin_id > %s) ORDER BY timestamp, coin_id LIMIT {limit}"
    return read_tier_rows(cursor, condition, (timestamp, timestamp, coin_id))


def write_tiers(cursor: Any, tiers: Iterable[tuple[datetime, str, str]]) -> None:
    """Write tiers, each a (timestamp, coin_id, tier): a few statements for each snapshot."""
    coins: dict[tuple[datetime, str], list[str]] = defaultdict(list)
    for timestamp, coin_id, tier in tiers:
        coins[timestamp, tier].append(coin_id)
    for (timestamp, tier), ids in coins.items():
        for start in range(0, len(ids), BATCH_ROWS):
            batch = ids[start : start + BATCH_ROWS]
            among = ", ".join(["%s"] * len(batch))
            update = f"UPDATE crypto_prices SET market_cap_tier = %s WHERE timestamp = %s AND coin_id IN ({among})"
            cursor.execute(update, (tier, timestamp, *batch))


# ---------------------------------------------------------------------------------------------- status and history

COUNTED_ROWS = 1_500_000  # above it, an estimate: counting takes longer than a user or ANSWER_TIMEOUT waits


class Status(NamedTuple):
    """How up to date the table is, and how far back it reaches. Times are UTC; None where the table is empty."""

    newest_snapshot: datetime | None
    coins: int  # of that snapshot
    newest_figure: datetime | None  # the latest last_updated of its coins
    age_minutes: float | None  # of the newest figure
    oldest_snapshot: datetime | None
    days: int  # from the oldest snapshot to the newest
    days_without_snapshot: int  # of these
    rows: int
    rows_are_estimated: bool
    rows_without_tier: int


def count_rows(cursor: Any) -> tuple[int, bool]:
    """The rows of the table, and whether that is the server's estimate."""
    [estimate] = read_column(cursor, f"SELECT table_rows FROM information_schema.tables {THIS_TABLE}")
    if (estimate or 0) > COUNTED_ROWS:
        return estimate, True
    return read_column(cursor, "SELECT COUNT(*) FROM crypto_prices")[0], False


def read_newest(cursor: Any, before: datetime = datetime.max) -> datetime | None:
    """The time of the newest snapshot, or of the newest one before `before`; None when there is none."""
    return read_column(cursor, "SELECT MAX(timestamp) FROM crypto_prices WHERE timestamp < %s", (before,))[0]


def read_status(cursor: Any, now: datetime) -> Status:
    """The status at `now` (UTC). Figures dated later are ignored."""
    newest = read_newest(cursor)
    [coins] = read_column(cursor, "SELECT COUNT(*) FROM crypto_prices WHERE timestamp = %s", (newest,))
    statement = "SELECT MAX(last_updated) FROM crypto_prices WHERE timestamp = %s AND last_updated <= %s"
    [newest_figure] = read_column(cursor, statement, (newest, now))
    as_of = newest_figure or newest
    age = max((now - as_of).total_seconds(), 0) / 60 if as_of else None
    [oldest] = read_column(cursor, "SELECT MIN(timestamp) FROM crypto_prices")
    days = (newest.date() - oldest.date()).days + 1 if newest and oldest else 0
    empty_days = days - count_days(cursor, oldest)
    [untiered] = read_column(cursor, "SELECT COUNT(*) FROM crypto_prices WHERE market_cap_tier IS NULL")
    return Status(newest, coins, newest_figure, age, oldest, days, empty_days, *count_rows(cursor), untiered)


def count_days(cursor: Any, oldest: datetime | None) -> int:
    """The days that have a snapshot. Jumps from day to day by the key and reads no row in between."""
    days, day = 0, oldest
    while day:
        days += 1
        following = datetime(day.year, day.month, day.day) + timedelta(days=1)
        [day] = read_column(cursor, "SELECT MIN(timestamp) FROM crypto_prices WHERE timestamp >= %s", (following,))
    return days


def read_coins(cursor: Any, timestamp: datetime) -> list[tuple[str, str, str]]:
    """Coin_id, symbol and name of the coins of a snapshot, the largest first."""
    order = "market_cap IS NULL, market_cap DESC, coin_id"
    cursor.execute(
        f"SELECT coin_id, symbol, name FROM crypto_prices WHERE timestamp = %s ORDER BY {order}", (timestamp,)
    )
    return cursor.fetchall()


def read_ids(cursor: Any, timestamps: list[datetime]) -> dict[datetime, set[str]]:
    """The coins that have a row at each of `timestamps`."""
    among = ", ".join(["%s"] * len(timestamps))
    cursor.execute(f"SELECT timestamp, coin_id FROM crypto_prices WHERE timestamp IN ({among})", tuple(timestamps))
    ids: dict[datetime, set[str]] = {timestamp: set() for timestamp in timestamps}
    for timestamp, coin_id in cursor.fetchall():
        ids[timestamp].add(coin_id)
    return ids


def read_last_days(cursor: Any, columns: list[str], days: float) -> list[tuple]:
    """`columns` of the rows of the last `days` (0: all), by primary key."""
    newest = "(SELECT MAX(timestamp) FROM crypto_prices)"
    since = f"timestamp > {newest} - INTERVAL {round(days * 86400)} SECOND" if days > 0 else "TRUE"
    cursor.execute(f"SELECT {', '.join(columns)} FROM crypto_prices WHERE {since} ORDER BY timestamp, coin_id")
    return cursor.fetchall()
