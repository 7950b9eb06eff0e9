"""The pipeline as its users run it: the ordinary run, its summary, readers and other runs, kills at any moment."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from pipeline_orchestrator import dollars
from tests.conftest import Database, Scripts, make_coin, make_coins, one_line_error, posix_only
from tests.stub_coingecko import Answer, StubCoinGecko

LARGE, MID, SMALL, MICRO = 2e10, 2e9, 2e8, 2e7


def tiers(database: Database) -> dict[str, str]:
    return dict(database.execute("SELECT coin_id, market_cap_tier FROM crypto_prices"))


# ----------------------------------------------------------------------------------------------------- the ordinary run


def test_a_run_puts_the_market_with_its_tiers_into_the_table(scripts: Scripts, api: StubCoinGecko, database: Database):
    caps = {"a": LARGE, "b": MID, "c": SMALL, "d": MICRO, "e": 0, "f": None}
    api.coins = [make_coin(number, id=coin, market_cap=cap) for number, (coin, cap) in enumerate(caps.items(), 1)]

    result = scripts.pipeline()

    assert result.returncode == 0, result.stderr
    assert tiers(database) == {
        "a": "Large Cap",
        "b": "Mid Cap",
        "c": "Small Cap",
        "d": "Micro/Nano Cap",
        "e": "Unknown",
        "f": "Unknown",
    }


def test_a_second_run_inside_snapshot_minutes_renews_the_same_rows(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    api.coins = [make_coin(1, id="rising", market_cap=MID), make_coin(2, id="steady", market_cap=MID)]
    scripts.pipeline(SNAPSHOT_MINUTES="525600")
    api.coins[0]["market_cap"] = LARGE

    result = scripts.pipeline(SNAPSHOT_MINUTES="525600")

    assert result.returncode == 0, result.stderr
    assert database.count() == 2
    assert tiers(database) == {"rising": "Large Cap", "steady": "Mid Cap"}


def test_a_snapshot_is_dated_by_its_fetch_floored_to_snapshot_minutes(scripts: Scripts, database: Database):
    before = datetime.now(UTC).replace(tzinfo=None)

    scripts.pipeline(SNAPSHOT_MINUTES="30")

    [(timestamp,)] = database.execute("SELECT DISTINCT timestamp FROM crypto_prices")
    assert before - timedelta(minutes=30) < timestamp <= before + timedelta(minutes=2)
    assert (timestamp.minute % 30, timestamp.second) == (0, 0)


def test_cron_may_run_it_from_any_folder(scripts: Scripts, tmp_path: Path, database: Database):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    scripts.folder = elsewhere

    assert scripts.pipeline().returncode == 0
    assert database.count() == 120


def test_dry_run_needs_no_database_and_writes_nothing(scripts: Scripts, database: Database):
    result = scripts.pipeline("--dry-run", MYSQL_USER=None, MYSQL_PASSWORD=None, MYSQL_PORT="1")

    assert result.returncode == 0, result.stderr
    assert "120 coins, total market cap $5.37T" in result.stdout
    assert "Large Cap" in result.stdout
    assert database.count() == 0
    assert not scripts.snapshots.exists()


# ---------------------------------------------------------------------------------------------------------- the summary


def test_the_summary_shows_coins_total_market_cap_and_tiers(scripts: Scripts, api: StubCoinGecko):
    api.coins = [make_coin(1, market_cap=3e12), make_coin(2, market_cap=0.41e12), make_coin(3, market_cap=None)]

    lines = scripts.pipeline().stdout.splitlines()

    assert lines[0].split() == ["step", "state", "seconds", "detail"]
    assert lines[1].startswith("fetch                done")
    assert lines[1].endswith("5 calls, 3 coins")  # four pages, and the first empty one again
    assert lines[2].startswith("load and segment     done")
    assert lines[2].endswith("3 coins, 0 rejected")
    assert lines[3].startswith(f"snapshot {datetime.now(UTC):%Y-%m-%d}")
    assert lines[3].endswith(" UTC: 3 coins, total market cap $3.41T")
    assert lines[4].split() == ["Large", "Cap", "2", "coins", "$3.41T", "100.0%"]
    assert lines[8].split() == ["Unknown", "1", "coins"]  # not $0: nobody knows it


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (3.414e12, "$3.41T"),
        (48.24e9, "$48.2B"),
        (106.86e9, "$107B"),
        (999.6e9, "$1.00T"),
        (2.5e6, "$2.50M"),
        (999_499, "$999,499"),
        (12.5, "$12.50"),
        (1.2345e16, "$12,345T"),
    ],
)
def test_money_is_short(amount: float, shown: str):
    assert dollars(amount) == shown


def test_the_summary_shows_the_three_largest_gains_and_losses(scripts: Scripts, api: StubCoinGecko):
    changes = {"a": 5.0, "b": 12.34, "c": -3.2, "d": 7.0, "e": None, "f": 1.0, "g": 0.0, "h": -40.0}
    api.coins = [
        make_coin(number, id=coin, price_change_percentage_24h=change)
        for number, (coin, change) in enumerate(changes.items(), 1)
    ]

    lines = scripts.pipeline().stdout.splitlines()

    table = lines[lines.index(f"{'largest gains in 24 h':48}largest losses in 24 h") + 1 :]
    assert [line.split() for line in table[:3]] == [
        ["+12.3%", "'b'", "-40.0%", "'h'"],
        ["+7.0%", "'d'", "-3.2%", "'c'"],
        ["+5.0%", "'a'"],
    ]


def test_the_summary_and_the_status_stay_within_100_columns_whatever_coins_are_called(
    scripts: Scripts, api: StubCoinGecko
):
    old = "2020-01-01T00:00:00Z"
    api.coins = [
        make_coin(
            number, id=f"{number}" + "\N{IZAKAYA LANTERN}" * 60, last_updated=old, price_change_percentage_24h=change
        )
        for number, change in enumerate([123_456.7, -99.9, 5.0, -3.0, 1.0, -1.0], 1)
    ]

    run, status = scripts.pipeline(COIN_LIMIT="6"), scripts.pipeline("--status")

    assert run.returncode == status.returncode == 0
    for line in (*run.stdout.splitlines(), *status.stdout.splitlines()[1:]):  # the first is the database's name
        assert len(line) < 100
        assert line.isascii()


def test_a_failed_fetch_leaves_the_table_untouched_and_never_exits_0(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    api.coins = make_coins(600)
    api.script = lambda page, attempt: Answer({"error": "boom"}, 500) if page == 3 else None

    result = scripts.pipeline(COIN_LIMIT="600")

    one_line_error(result, 3, "page 3: status 500: 'boom'", "RETRY_BUDGET_SECONDS=0")
    assert "fetch                failed" in result.stdout
    assert "load and segment     not run" in result.stdout
    assert database.count() == 0


def test_quiet_prints_nothing_when_all_is_well(scripts: Scripts, api: StubCoinGecko):
    now = datetime.now(UTC).isoformat()
    api.coins = [make_coin(1, last_updated=now)]

    result = scripts.pipeline("-q", COIN_LIMIT="1")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# ----------------------------------------------------------------------------------------------- readers and other runs


def test_a_reader_never_sees_a_row_of_the_new_snapshot_without_its_tier(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    api.coins = make_coins(2000)
    process = scripts.start("pipeline_orchestrator.py", COIN_LIMIT="2000", REQUESTS_PER_MINUTE="100")
    seen = set()
    with database.connect() as reader, reader.cursor() as cursor:
        while process.poll() is None or not seen:
            cursor.execute("SELECT COUNT(*), SUM(market_cap_tier IS NULL) FROM crypto_prices")
            seen.add(cursor.fetchone())
            reader.commit()

    assert scripts.finish(process).returncode == 0
    assert seen <= {(0, None), (2000, 0)}


def test_a_second_run_ends_at_once_while_another_is_going(scripts: Scripts, api: StubCoinGecko, database: Database):
    api.script = lambda page, attempt: api.hang()
    first = scripts.start("pipeline_orchestrator.py", COIN_LIMIT="250")
    api.wait_for_requests(1)

    for script in ("pipeline_orchestrator.py", "etl_crypto.py", "segment_and_load.py"):
        one_line_error(scripts.run(script), 5, "another run is writing", "wait until it has ended")
    assert len(api.requests) == 1

    api.script = lambda page, attempt: None
    api.released.set()
    first.kill()
    first.communicate()
    assert scripts.pipeline().returncode == 0


@pytest.mark.slow
def test_of_two_runs_started_at_once_one_wins_and_one_ends_with_5_ten_times(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    for _ in range(10):
        one_has_ended = threading.Event()
        api.script = lambda page, attempt, ended=one_has_ended: ended.wait() and None
        runs = [scripts.start("pipeline_orchestrator.py") for _ in range(2)]
        while all(run.poll() is None for run in runs):
            pass
        loser, winner = sorted(runs, key=lambda run: run.poll() is None)
        one_line_error(scripts.finish(loser), 5, "another run is writing")
        one_has_ended.set()
        result = scripts.finish(winner)
        assert result.returncode == 0, result.stderr
    assert database.execute("SELECT COUNT(*) % 120, COUNT(*) - COUNT(market_cap_tier) FROM crypto_prices") == [(0, 0)]


# -------------------------------------------------------------------------------------- kills and signals at any moment

MANY_COINS = {"COIN_LIMIT": "2000", "REQUESTS_PER_MINUTE": "100"}


def seconds_of_a_run(scripts: Scripts) -> float:
    started = time.monotonic()
    assert scripts.pipeline(**MANY_COINS).returncode == 0
    return time.monotonic() - started


def is_whole_or_absent(database: Database) -> bool:
    """The table holds all 2,000 coins with their tiers, or none. Waits for a killed session's transaction to end."""
    found = database.execute("SELECT market_cap_tier IS NULL FROM crypto_prices FOR UPDATE")
    return found in ([], [(0,)] * 2000)


@posix_only
@pytest.mark.slow
def test_a_run_killed_at_any_moment_leaves_whole_snapshots_only(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    api.coins = make_coins(2000)
    random = Random(1)
    whole_run = seconds_of_a_run(scripts)
    for _ in range(200):
        database.execute("DELETE FROM crypto_prices")
        process = scripts.start("pipeline_orchestrator.py", **MANY_COINS)
        with suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0.1, 1.1) * whole_run)
        process.kill()
        process.communicate()
        assert is_whole_or_absent(database)

    assert scripts.pipeline(**MANY_COINS).returncode == 0


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_at_any_moment_leaves_whole_snapshots_and_no_traceback(
    scripts: Scripts, api: StubCoinGecko, database: Database, number: int, exit_code: int
):
    api.coins = make_coins(2000)
    random = Random(2)
    whole_run = seconds_of_a_run(scripts)
    for _ in range(50):
        database.execute("DELETE FROM crypto_prices")
        api.requests.clear()
        # Python itself leaves a file open when a signal ends an import: that is no warning of ours
        process = scripts.start(
            "pipeline_orchestrator.py", **MANY_COINS, PYTHONWARNINGS="error,ignore::ResourceWarning"
        )
        api.wait_for_requests(1)
        with suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0, 1) * whole_run)
        process.send_signal(number)
        result = scripts.finish(process)

        assert result.returncode in (0, exit_code)
        assert "Traceback" not in result.stderr
        assert is_whole_or_absent(database)
