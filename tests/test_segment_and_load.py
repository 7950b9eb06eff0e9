"""Tiers: the rule itself, and which rows of the table it is put to."""

from __future__ import annotations

import signal
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
import pytest

from segment_and_load import Segmented, assign_tiers, segment
from sql.connection import Database as Session
from tests.conftest import NOON, Database, Scripts, last_line, make_settings, posix_only

OTHER_BOUNDS = {"TIER_LARGE_CAP_MIN": "5e9", "TIER_MID_CAP_MIN": "5e8", "TIER_SMALL_CAP_MIN": "5e7"}


def insert(database: Database, caps: list[float | None], timestamp: datetime = NOON, tier: str | None = None) -> None:
    rows = [(timestamp, f"coin-{number:05}", "s", "n", cap, tier) for number, cap in enumerate(caps)]
    with database.server.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO crypto_prices (timestamp, coin_id, symbol, name, market_cap, market_cap_tier)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            rows,
        )


def tiers(database: Database, timestamp: datetime = NOON) -> list[str | None]:
    rows = database.execute(
        "SELECT market_cap_tier FROM crypto_prices WHERE timestamp = %s ORDER BY coin_id", (timestamp,)
    )
    return [tier for (tier,) in rows]


# ------------------------------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("market_cap", "tier"),
    [
        (2.5e12, "Large Cap"),
        (10e9, "Large Cap"),
        (9_999_999_999.999998, "Mid Cap"),
        (1e9, "Mid Cap"),
        (999_999_999.9999999, "Small Cap"),
        (100e6, "Small Cap"),
        (99_999_999.99999999, "Micro/Nano Cap"),
        (5e-324, "Micro/Nano Cap"),
        (0.0, "Unknown"),
        (-1.0, "Unknown"),
        (None, "Unknown"),
    ],
)
def test_the_lower_bound_of_a_tier_belongs_to_it(market_cap: float | None, tier: str):
    assert assign_tiers(pd.Series([market_cap], dtype="float64"), make_settings()).tolist() == [tier]


# -------------------------------------------------------------------------------------------------- rows without a tier


def test_rows_without_a_tier_get_one_and_the_others_keep_theirs(scripts: Scripts, database: Database):
    insert(database, [2e10, 2e9, None])
    insert(database, [2e10], NOON - timedelta(days=1), tier="set by hand")

    result = scripts.run("segment_and_load.py")

    assert result.returncode == 0, result.stderr
    assert last_line(result.stdout) == "3 rows tiered: 1 Large Cap, 1 Mid Cap, 1 Unknown"
    assert tiers(database) == ["Large Cap", "Mid Cap", "Unknown"]
    assert tiers(database, NOON - timedelta(days=1)) == ["set by hand"]


def test_more_rows_than_are_read_at_a_time_are_all_tiered(scripts: Scripts, database: Database):
    for day in range(3):
        insert(database, [2e10, 2e9] * 4_500, NOON - timedelta(days=day))

    assert scripts.run("segment_and_load.py").returncode == 0
    assert database.execute("SELECT market_cap_tier, COUNT(*) FROM crypto_prices GROUP BY 1 ORDER BY 1") == [
        ("Large Cap", 13_500),
        ("Mid Cap", 13_500),
    ]


def test_rows_that_are_deleted_meanwhile_are_not_waited_for(scripts: Scripts, database: Database):
    insert(database, [2e10] * 100)
    settings = make_settings(**{key: value for key, value in scripts.settings.items() if key.startswith("MYSQL_")})

    def work(cursor: Any) -> Segmented:
        cursor.execute("SELECT COUNT(*) FROM crypto_prices")  # from here on the transaction has its view of the table
        cursor.fetchall()
        database.execute("DELETE FROM crypto_prices WHERE coin_id < 'coin-00010'")
        return segment(cursor, settings)

    with closing(Session(settings.server)) as session:
        # MariaDB 11.6.2 and newer: error 1020, and the transaction is retried
        segmented = session.transaction(work)

    assert segmented.tiers.total() == 90
    assert database.execute("SELECT COUNT(*), COUNT(market_cap_tier) FROM crypto_prices") == [(90, 90)]


def test_its_cost_does_not_grow_with_the_history(scripts: Scripts, database: Database):
    for day in range(1, 11):
        insert(database, [2e10] * 2_000, NOON - timedelta(days=day), tier="Large Cap")
    insert(database, [2e9] * 50)
    settings = make_settings(**{key: value for key, value in scripts.settings.items() if key.startswith("MYSQL_")})

    def work(cursor: Any) -> int:
        segment(cursor, settings)
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
        return sum(int(value) for _, value in cursor.fetchall())

    with closing(Session(settings.server)) as session:
        rows_read = session.transaction(work)

    # the 50 new rows a few times, and the 2,000 of the snapshot before them once
    assert rows_read < 3_000


@posix_only
def test_a_large_backlog_is_committed_in_parts_and_a_signal_ends_it(scripts: Scripts, database: Database):
    for day in range(6):
        insert(database, [7e9] * 17_000, NOON - timedelta(days=day))
    process = scripts.start("segment_and_load.py")
    tiered = "SELECT COUNT(*) FROM crypto_prices WHERE market_cap_tier = 'Mid Cap'"
    while database.execute(tiered) == [(0,)]:
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)

    assert scripts.finish(process).returncode == 143
    assert 0 < database.execute(tiered)[0][0] < 6 * 17_000
    assert scripts.run("segment_and_load.py").returncode == 0
    assert database.execute(tiered) == [(6 * 17_000,)]


# ------------------------------------------------------------------------------------------------------------ every row


def test_all_gives_every_row_the_tier_of_the_present_bounds(scripts: Scripts, database: Database):
    insert(database, [7e9, 7e8, 7e7, 7e6, 0])
    insert(database, [7e9, 2e10], NOON - timedelta(days=400), tier="nan")
    scripts.run("segment_and_load.py")

    result = scripts.run("segment_and_load.py", "--all", **OTHER_BOUNDS)

    assert result.returncode == 0, result.stderr
    assert tiers(database) == ["Large Cap", "Mid Cap", "Small Cap", "Micro/Nano Cap", "Unknown"]
    assert tiers(database, NOON - timedelta(days=400)) == ["Large Cap", "Large Cap"]
    assert last_line(result.stdout) == "7 rows read, 5 changed: 3 Large Cap, 1 Mid Cap, 1 Small Cap"


def test_all_a_second_time_changes_nothing(scripts: Scripts, database: Database):
    insert(database, [7e9, 7e8])
    scripts.run("segment_and_load.py", "--all")

    assert last_line(scripts.run("segment_and_load.py", "--all").stdout) == "2 rows read, 0 changed"


def test_all_reaches_every_row_of_a_snapshot_larger_than_a_chunk(scripts: Scripts, database: Database):
    for day in range(3):
        insert(database, [7e9] * 17_000, NOON - timedelta(days=day), tier="Mid Cap")

    result = scripts.run("segment_and_load.py", "--all", **OTHER_BOUNDS)

    assert last_line(result.stdout) == "51,000 rows read, 51,000 changed: 51,000 Large Cap"
    assert database.execute("SELECT DISTINCT market_cap_tier FROM crypto_prices") == [("Large Cap",)]


@posix_only
def test_all_may_be_ended_at_any_moment_and_run_again(scripts: Scripts, database: Database):
    for day in range(6):
        insert(database, [7e9] * 17_000, NOON - timedelta(days=day), tier="Mid Cap")
    process = scripts.start("segment_and_load.py", "--all", **OTHER_BOUNDS)
    changed = "SELECT COUNT(*) FROM crypto_prices WHERE market_cap_tier = 'Large Cap'"
    while database.execute(changed) == [(0,)]:
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)

    assert scripts.finish(process).returncode == 143
    assert scripts.run("segment_and_load.py", "--all", **OTHER_BOUNDS).returncode == 0
    assert database.execute(changed) == [(6 * 17_000,)]


# ------------------------------------------------------------------------------------------- other bounds, and dry runs


def test_a_history_of_other_bounds_is_logged(scripts: Scripts, database: Database):
    insert(database, [7e9, 2e10], NOON - timedelta(days=1), tier=None)
    scripts.run("segment_and_load.py")
    insert(database, [7e9])

    result = scripts.run("segment_and_load.py", **OTHER_BOUNDS)

    assert "1 of the 2 coins of 2025-03-13 12:00:00 UTC would be in another tier" in result.stderr
    assert "python segment_and_load.py --all" in result.stderr
    assert tiers(database) == ["Large Cap"]


def test_bounds_that_did_not_change_are_not_mentioned(scripts: Scripts, database: Database):
    insert(database, [7e9, None], NOON - timedelta(days=1))
    scripts.run("segment_and_load.py")
    insert(database, [7e9])

    assert "another tier" not in scripts.run("segment_and_load.py").stderr


@pytest.mark.parametrize("arguments", [[], ["--all"]])
def test_dry_run_prints_what_would_change_and_writes_nothing(
    scripts: Scripts, database: Database, arguments: list[str]
):
    insert(database, [7e9, 0])

    result = scripts.run("segment_and_load.py", "--dry-run", *arguments)

    assert result.returncode == 0, result.stderr
    assert "1 Mid Cap, 1 Unknown (dry run: nothing was written)" in result.stdout
    assert tiers(database) == [None, None]
