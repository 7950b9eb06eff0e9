"""RETENTION_DAYS: old rows are deleted after a fetched market was loaded, and only then."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime, timedelta

import pytest

from tests.conftest import TODAY, Database, Scripts, make_coins, midnight, one_line_error, posix_only, utc_now
from tests.stub_coingecko import StubCoinGecko

DAY = timedelta(days=1)
FUTURE = datetime(2040, 1, 1)


def times(database: Database) -> list[datetime]:
    return [at for (at,) in database.execute("SELECT DISTINCT timestamp FROM crypto_prices ORDER BY 1")]


@pytest.fixture
def history(scripts: Scripts) -> list[datetime]:
    """Snapshots of 3 coins, some days old; one in the future. In their order."""
    ages = [4 * DAY, 2 * DAY + timedelta(minutes=2), 2 * DAY - timedelta(minutes=10), timedelta(hours=1)]
    old = [utc_now() - age for age in ages]
    scripts.load({at: make_coins(3) for at in (*old, FUTURE)}, "--force")
    scripts.settings["COIN_LIMIT"] = "3"
    return old


@pytest.mark.parametrize("script", ["pipeline_orchestrator.py", "etl_crypto.py"])
def test_after_a_fetch_rows_older_than_so_many_days_before_the_newest_snapshot_are_deleted(
    scripts: Scripts, history: list[datetime], database: Database, script: str
):
    status = scripts.pipeline("--status", RETENTION_DAYS="2")
    assert "rows to be deleted   3, by RETENTION_DAYS=2" in status.stdout  # by the snapshot of an hour ago

    result = scripts.run(script, RETENTION_DAYS="2")

    assert result.returncode == 0, result.stderr
    assert "6 rows older than 2 days" in result.stdout
    kept = times(database)
    assert (kept[:2], kept[-1], len(kept)) == (history[2:], FUTURE, 4)
    assert json.loads(scripts.pipeline("--status", "--json", RETENTION_DAYS="2").stdout)["rows_past_retention"] == 0


@pytest.mark.parametrize(
    ("script", "option"),
    [
        ("pipeline_orchestrator.py", "--dry-run"),
        ("pipeline_orchestrator.py", "--replay"),
        ("pipeline_orchestrator.py", "--backfill=1"),
        ("pipeline_orchestrator.py", "--status"),
        ("etl_crypto.py", "--replay"),
    ],
)
def test_nothing_else_deletes(scripts: Scripts, history: list[datetime], database: Database, script: str, option: str):
    files = [scripts.folder / f"{history[-1]:%Y-%m-%dT%H-%M-%S}.json"] if option == "--replay" else []

    assert scripts.run(script, option, *files, RETENTION_DAYS="2", REQUESTS_PER_MINUTE="1000").returncode == 0
    assert times(database)[0] == history[0]


def test_a_snapshot_that_is_just_so_many_days_old_stays(scripts: Scripts, database: Database):
    scripts.load({midnight(ago): make_coins(3) for ago in (3, 2)})

    assert scripts.pipeline("--coins", "3", RETENTION_DAYS="2", SNAPSHOT_MINUTES="1440").returncode == 0
    assert times(database) == [midnight(2), TODAY]


def test_without_the_setting_nothing_is_deleted(scripts: Scripts, history: list[datetime], database: Database):
    assert scripts.pipeline().returncode == 0
    assert times(database)[0] == history[0]


def test_a_market_that_is_refused_deletes_nothing(
    scripts: Scripts, api: StubCoinGecko, history: list[datetime], database: Database
):
    api.coins = []

    assert scripts.pipeline(RETENTION_DAYS="1").returncode == 3
    assert times(database)[0] == history[0]


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "1e3", "36501"])
def test_a_bad_value_is_exit_code_2(scripts: Scripts, value: str):
    one_line_error(scripts.pipeline(RETENTION_DAYS=value), 2, f"RETENTION_DAYS is '{value}'", "correct it")


def test_without_the_right_to_delete_the_market_is_loaded_and_the_grant_named(
    scripts: Scripts, history: list[datetime], database: Database
):
    database.execute(f"REVOKE DELETE ON crypto_prices FROM '{database.user}'@'%'")
    assert scripts.pipeline(RETENTION_DAYS="30").returncode == 0  # it has nothing to delete

    result = scripts.pipeline(RETENTION_DAYS="2")

    one_line_error(result, 4, "the market is loaded, yet rows older than RETENTION_DAYS", "GRANT DELETE ON")
    assert scripts.kept("*.pending.json.gz") == []
    assert database.execute("SELECT COUNT(*) FROM crypto_prices WHERE timestamp >= %s", (utc_now() - DAY,)) == [
        (3 * 3,)
    ]


def test_a_backfill_asks_for_no_day_that_would_be_deleted(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    result = scripts.pipeline("--backfill", "30", RETENTION_DAYS="5")

    assert result.returncode == 0, result.stderr
    assert "backfill of 4 days" in result.stdout
    assert "left out  26 days before that, which RETENTION_DAYS=5 would delete again" in result.stdout
    assert {request.query["days"] for request in small_market.requests} == {"5"}
    assert times(database)[0] == midnight(4)
    assert scripts.pipeline(RETENTION_DAYS="5").returncode == 0
    assert times(database)[0] == midnight(4)
    if utc_now() != TODAY:
        one_line_error(scripts.pipeline("--backfill", "30", RETENTION_DAYS="1"), 2, "raise RETENTION_DAYS=1")


# ------------------------------------------------------------------------------------------------------------ many rows


def fill(database: Database, days: int, coins: int) -> None:
    """As many snapshots before today as `days`, each of so many coins."""
    columns = "timestamp, coin_id, symbol, name, market_cap, market_cap_tier"
    rows = [(midnight(1), f"coin-{n:05}", "c", "C", 1e9, "Mid Cap") for n in range(coins)]
    values = ", ".join(["(%s, %s, %s, %s, %s, %s)"] * coins)
    database.execute(
        f"INSERT INTO crypto_prices ({columns}) VALUES {values}", tuple(each for row in rows for each in row)
    )
    for day in range(2, days + 1):
        database.execute(
            f"INSERT INTO crypto_prices ({columns}) SELECT %s, coin_id, symbol, name, market_cap, market_cap_tier"
            " FROM crypto_prices WHERE timestamp = %s",
            (midnight(day), midnight(1)),
        )


def test_a_snapshot_of_more_coins_than_a_transaction_is_deleted_whole(scripts: Scripts, database: Database):
    fill(database, 3, 4500)

    result = scripts.pipeline("--force", RETENTION_DAYS="1")

    assert result.returncode == 0, result.stderr
    assert len(times(database)) in (1, 2)  # at midnight the day before is not yet a day old
    assert "rows older than 1 days" in result.stdout


@posix_only
def test_killed_while_it_deletes_it_leaves_whole_snapshots_and_goes_on_next_time(scripts: Scripts, database: Database):
    fill(database, 300, 300)
    scripts.settings["RETENTION_DAYS"] = "2"
    process = scripts.start("pipeline_orchestrator.py", "--force")
    while len(times(database)) > 200:
        assert process.poll() is None
    process.kill()
    process.communicate()

    sizes = database.execute("SELECT COUNT(*) FROM crypto_prices GROUP BY timestamp FOR UPDATE")
    assert set(sizes) == {(300,), (120,)}
    assert len(sizes) > 10
    assert scripts.pipeline("--force").returncode == 0
    assert len(times(database)) <= 4


@pytest.mark.slow
def test_while_it_deletes_nobody_waits_long(scripts: Scripts, database: Database):
    fill(database, 200, 1000)
    waits: list[float] = []
    deleted = threading.Event()

    def write() -> None:
        with database.connect() as other, other.cursor() as cursor:
            other.autocommit = True
            while not deleted.is_set():
                started = time.monotonic()
                cursor.execute("SELECT MIN(timestamp) FROM crypto_prices")
                [oldest] = cursor.fetchall()
                cursor.execute("UPDATE crypto_prices SET ath = 1 WHERE timestamp = %s LIMIT 1", oldest)
                waits.append(time.monotonic() - started)

    writer = threading.Thread(target=write)
    writer.start()
    result = scripts.pipeline("--force", RETENTION_DAYS="1")
    deleted.set()
    writer.join()

    assert result.returncode == 0, result.stderr
    assert len(waits) > 50
    assert sorted(waits)[-3] < 0.2
