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

from sql.connection import OTHER_TABLE, Database, DatabaseError, Lock, Server, join_quoted, mysql_errors

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


def replace_snapshot(cursor: Any, timestamp: datetime, rows: list[tuple]) -> None:
    """Make `rows`, as for upsert(), the whole snapshot of `timestamp`: what else it holds is deleted."""
    outdated = sorted(read_ids(cursor, [timestamp])[timestamp].difference(row[1] for row in rows))
    for start in range(0, len(outdated), BATCH_ROWS):
        ids = outdated[start : start + BATCH_ROWS]
        delete(cursor, f"timestamp = %s AND coin_id IN ({', '.join(['%s'] * len(ids))})", timestamp, *ids)
    upsert(cursor, rows)


def read_recent_sizes(cursor: Any, now: datetime) -> dict[datetime, int]:
    """How many coins the last five snapshots before `now` have, the newest first, and the newest of 24 hours before."""
    sizes = {}
    for before, limit in ((now, 5), (now - timedelta(hours=24), 1)):
        condition = f"timestamp < %s GROUP BY timestamp ORDER BY timestamp DESC LIMIT {limit}"
        cursor.execute(f"SELECT timestamp, COUNT(*) FROM crypto_prices WHERE {condition}", (before,))
        sizes |= dict(cursor.fetchall())
    return sizes


# ---------------------------------------------------------------------------------------------------------- delete

DELETED_ROWS = 2_000  # in a transaction: whoever wants one of these rows waits 0.1 s at most


def delete(cursor: Any, condition: str, *parameters: object) -> int:
    """Delete rows; returns how many. Raises DatabaseError with the GRANT to run, as old accounts lack the right."""
    try:
        cursor.execute(f"DELETE FROM crypto_prices WHERE {condition}", parameters)
    except mysql_errors() as error:
        if error.errno != 1142:
            raise
        user, _, host = read_column(cursor, "SELECT CURRENT_USER()")[0].rpartition("@")
        grant = f"GRANT DELETE ON `{read_column(cursor, 'SELECT DATABASE()')[0]}`.crypto_prices TO '{user}'@'{host}'"
        raise DatabaseError(f"{user} may not delete rows, as this needs: run as root: {grant}", error.errno) from error
    return cursor.rowcount


def delete_snapshot(cursor: Any, timestamp: datetime) -> int:
    """Delete a whole snapshot; returns how many rows that were."""
    return delete(cursor, "timestamp = %s", timestamp)


def delete_oldest(cursor: Any, since: datetime, before: datetime) -> tuple[datetime | None, int]:
    """Delete the oldest snapshot from `since` on and `before`, or DELETED_ROWS of it: its time, and how many rows.

    Its time is None when there is none. Searching from the last one on skips the rows that the server has yet to purge.
    """
    statement = "SELECT MIN(timestamp) FROM crypto_prices WHERE timestamp >= %s AND timestamp < %s"
    [oldest] = read_column(cursor, statement, (since, before))
    if oldest is None:
        return None, 0
    return oldest, delete(cursor, f"timestamp = %s ORDER BY coin_id LIMIT {DELETED_ROWS}", oldest)


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
    """How up to date the table is, and how far back it reaches. Times are UTC; None where the table is empty.

    Snapshots in the future count in `rows`, `rows_without_tier` and `future_snapshots` alone.
    """

    newest_snapshot: datetime | None
    coins: int  # of that snapshot
    market_cap: float | None  # USD, of its coins in all; None: of none it is known
    coins_by_tier: dict[str, int]  # of these coins, those that have a tier
    largest_coins: dict[str, float]  # the three with the largest market cap (USD)
    newest_figure: datetime | None  # the latest last_updated of its coins
    age_minutes: float | None  # of the newest figure
    stale_coins: int  # of that snapshot, whose figures are older than it by STALE_COIN_AGE
    largest_stale_coin: str | None
    oldest_snapshot: datetime | None
    days: int  # from the oldest snapshot to the newest
    days_without_snapshot: int  # of these
    days_with_fewer_coins: list[str]  # of these, as 2026-11-24: days in a dip of the number of coins
    rows: int
    rows_are_estimated: bool
    rows_without_tier: int
    rows_past_retention: int | None  # older than RETENTION_DAYS; None: not set
    future_snapshots: int


STALE_COIN_AGE = timedelta(hours=3)


def count_rows(cursor: Any) -> tuple[int, bool]:
    """The rows of the table, and whether that is the server's estimate."""
    [estimate] = read_column(cursor, f"SELECT table_rows FROM information_schema.tables {THIS_TABLE}")
    if (estimate or 0) > COUNTED_ROWS:
        return estimate, True
    return read_column(cursor, "SELECT COUNT(*) FROM crypto_prices")[0], False


def read_newest(cursor: Any, before: datetime | None = None) -> datetime | None:
    """The time of the newest snapshot, or of the newest one before `before`; None when there is none."""
    # no far time in place of None: for one that DATETIME cannot hold, as datetime.max, MySQL reads all rows
    condition, parameters = ("timestamp < %s", (before,)) if before else ("TRUE", ())
    return read_column(cursor, f"SELECT MAX(timestamp) FROM crypto_prices WHERE {condition}", parameters)[0]


def read_status(cursor: Any, now: datetime, future: datetime, retention: timedelta | None) -> Status:
    """The status at `now` (UTC). Figures dated later are ignored, and snapshots from `future` on."""
    newest = read_newest(cursor, future)
    statement = "SELECT market_cap_tier, COUNT(*), SUM(market_cap) FROM crypto_prices WHERE timestamp = %s GROUP BY 1"
    cursor.execute(statement, (newest,))
    tiers = cursor.fetchall()
    coins = sum(count for _, count, _ in tiers)
    market_caps = [market_cap for _, _, market_cap in tiers if market_cap is not None]
    coins_by_tier = {tier: count for tier, count, _ in tiers if tier}
    largest = read_market_caps(cursor, newest, limit=3)
    statement = "SELECT MAX(last_updated) FROM crypto_prices WHERE timestamp = %s AND last_updated <= %s"
    [newest_figure] = read_column(cursor, statement, (newest, now))
    as_of = newest_figure or newest
    age = max((now - as_of).total_seconds(), 0) / 60 if as_of else None
    stale = read_stale(cursor, newest) if newest else []
    [oldest] = read_column(cursor, "SELECT MIN(timestamp) FROM crypto_prices WHERE timestamp < %s", (future,))
    days = (newest.date() - oldest.date()).days + 1 if newest and oldest else 0
    last_of_days = read_last_of_days(cursor, newest)
    fewer = [f"{day:%Y-%m-%d}" for day in find_dips(cursor, last_of_days, coins)]
    statement = "SELECT COUNT(*) FROM crypto_prices WHERE "
    [untiered] = read_column(cursor, f"{statement} market_cap_tier IS NULL")
    [expired] = read_column(cursor, f"{statement} timestamp < %s", (newest and retention and newest - retention,))
    statement = "SELECT COUNT(DISTINCT timestamp) FROM crypto_prices WHERE timestamp >= %s"
    [in_future] = read_column(cursor, statement, (future,))
    return Status(
        newest, coins, sum(market_caps) if market_caps else None, coins_by_tier, largest, newest_figure, age,
        len(stale), stale[0] if stale else None, oldest, days, days - len(last_of_days), fewer,
        *count_rows(cursor), untiered, expired if retention else None, in_future,
    )  # fmt: skip


def read_stale(cursor: Any, timestamp: datetime) -> list[str]:
    """The coins of a snapshot whose figures are older than it by STALE_COIN_AGE, the largest first."""
    condition = "timestamp = %s AND last_updated < %s ORDER BY market_cap DESC, coin_id"
    statement = f"SELECT coin_id FROM crypto_prices WHERE {condition}"
    return read_column(cursor, statement, (timestamp, timestamp - STALE_COIN_AGE))


def read_last_of_days(cursor: Any, newest: datetime | None) -> list[datetime]:
    """The last snapshot of each day up to `newest`, the newest first. Jumps by the key and reads no row in between."""
    times = []
    while newest:
        times.append(newest)
        newest = read_newest(cursor, datetime(newest.year, newest.month, newest.day))
    return times


def find_dips(cursor: Any, times: list[datetime], coins: int) -> list[datetime]:
    """Those of `times`, the newest first, with fewer than 90 % of the coins of one of the 7 before and of the 7 after.

    A lasting step is no dip, which nobody knows yet of the newest 7. `coins` is how many the newest has: no more times
    are looked at than hold COUNTED_ROWS rows.
    """
    statement = "SELECT COUNT(*) FROM crypto_prices WHERE timestamp = %s"
    counts = [read_column(cursor, statement, (time,))[0] for time in times[: COUNTED_ROWS // max(coins, 1)]]
    return [
        times[at]
        for at, count in enumerate(counts)
        if count < 0.9 * max(counts[at + 1 : at + 8], default=0) and (at < 7 or count < 0.9 * max(counts[at - 7 : at]))
    ]


class Coin(NamedTuple):
    """A coin of a snapshot."""

    coin_id: str
    symbol: str
    name: str


def read_coins(cursor: Any, timestamp: datetime) -> list[Coin]:
    """The coins of a snapshot, the largest first."""
    order = "market_cap IS NULL, market_cap DESC, coin_id"
    statement = f"SELECT {', '.join(Coin._fields)} FROM crypto_prices WHERE timestamp = %s ORDER BY {order}"
    cursor.execute(statement, (timestamp,))
    return list(map(Coin._make, cursor.fetchall()))


def read_market_caps(cursor: Any, timestamp: datetime, limit: int | None) -> dict[str, float]:
    """The market caps above 0 (USD) of the `limit` largest coins of a snapshot, by coin_id."""
    condition = "timestamp = %s AND market_cap > 0 ORDER BY market_cap DESC LIMIT %s"
    cursor.execute(f"SELECT coin_id, market_cap FROM crypto_prices WHERE {condition}", (timestamp, limit or 2**62))
    return dict(cursor.fetchall())


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
