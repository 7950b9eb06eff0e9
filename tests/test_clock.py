"""Times that are wrong: this machine's clock, and snapshots dated in the future, which --delete-snapshot removes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.conftest import (
    NOON,
    PROJECT_DIR,
    Database,
    Scripts,
    last_line,
    make_coin,
    make_coins,
    midnight,
    one_line_error,
    posix_only,
    utc_now,
)
from tests.stub_coingecko import Answer, StubCoinGecko

if os.name == "posix":
    import pty

FUTURE = datetime(2040, 1, 1)
DELETE_IT = "--delete-snapshot '2040-01-01 00:00:00'"
PIPELINE = "pipeline_orchestrator.py"


def http_date(ahead: timedelta) -> str:
    """The Date of a server whose clock is so far ahead of this machine's."""
    return format_datetime(datetime.now(UTC) + ahead, usegmt=True)


# ------------------------------------------------------------------------------------------------- this machine's clock


@pytest.mark.parametrize(
    ("script", "ahead", "text"),
    [
        (PIPELINE, timedelta(hours=26, minutes=3, seconds=30), "26 h 3 min behind CoinGecko's: set it"),
        (PIPELINE, timedelta(hours=-26, minutes=-3, seconds=-30), "26 h 3 min ahead of CoinGecko's: set it"),
        (PIPELINE, timedelta(minutes=5, seconds=10), "5 min behind CoinGecko's"),
        ("etl_crypto.py", timedelta(days=4000, hours=1, minutes=30), "4000 d 1 h behind CoinGecko's"),
    ],
)
def test_a_wrong_clock_ends_the_run_after_the_first_answer_and_force_goes_on(
    scripts: Scripts, api: StubCoinGecko, database: Database, script: str, ahead: timedelta, text: str
):
    scripts.settings["COIN_LIMIT"] = "100"
    api.headers = {"Date": http_date(ahead)}
    times = (
        f"({datetime.now(UTC):%Y-%m-%d %H:}",
        f"{datetime.now(UTC) + ahead:%Y-%m-%d %H:}",
        " here, ",
        " there, UTC)",
    )

    for options in ((), ("--dry-run",)):
        api.requests.clear()
        one_line_error(scripts.run(script, *options), 3, f"this machine's clock is {text}", "--force", *times)
        assert api.pages == [1]
    assert (database.count(), scripts.kept()) == (0, [])

    result = scripts.run(script, "--force")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("this machine's clock is ") == 1
    assert database.count() == 100


@pytest.mark.parametrize(
    ("ahead", "headers"),
    [
        (timedelta(minutes=4), {}),
        (timedelta(minutes=-4), {}),
        (timedelta(hours=-2), {"Age": "7200"}),
        (timedelta(0), {"Age": "soon"}),
        (timedelta(0), {"Age": "-7200"}),
        (timedelta(0), {"Age": "9" * 30}),
        (timedelta(0), {"Date": "yesterday"}),
        (timedelta(0), {"Date": ""}),
        (timedelta(0), {"Date": "Fri, 31 Dec 9999 23:59:59 -1400"}),
    ],
    ids=str,
)
def test_a_clock_that_is_right_or_cannot_be_compared_is_no_fault(
    scripts: Scripts, api: StubCoinGecko, ahead: timedelta, headers: dict[str, str]
):
    api.headers = {"Date": http_date(ahead)} | headers

    result = scripts.pipeline("--coins", "100")

    assert result.returncode == 0, result.stderr
    assert "this machine's clock" not in result.stderr


def test_the_age_of_an_answer_from_a_cache_is_added_to_its_date(scripts: Scripts, api: StubCoinGecko):
    api.headers = {"Date": http_date(timedelta(hours=-2)), "Age": "3600"}

    one_line_error(scripts.pipeline(), 3, "clock is 1 h 0 min ahead of CoinGecko's")


def test_an_answer_that_is_an_error_has_a_date_too(scripts: Scripts, api: StubCoinGecko):
    api.headers = {"Date": http_date(timedelta(hours=3))}
    api.script = lambda page, attempt: Answer(status=429, headers={"Retry-After": "30"})

    one_line_error(scripts.pipeline(RETRY_BUDGET_SECONDS="600"), 3, "h 59 min behind CoinGecko's")


def test_a_backfill_by_a_wrong_clock_keeps_and_writes_nothing_without_force(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    small_market.headers = {"Date": http_date(timedelta(hours=26, minutes=3, seconds=30))}

    one_line_error(scripts.pipeline("--backfill", 2), 3, "this machine's clock is 26 h 3 min behind CoinGecko's")
    assert not list(scripts.snapshots.glob("history/*"))
    assert database.count() == 5

    assert scripts.pipeline("--backfill", 2, "--force").returncode == 0
    assert database.count() == 15


# -------------------------------------------------------------------------------------------- files dated in the future


def test_a_plain_list_is_dated_by_its_newest_time_that_is_not_in_the_future(
    scripts: Scripts, database: Database, tmp_path: Path
):
    case = [make_coin(n, last_updated=f"2025-06-01T10:0{n}:30.000Z") for n in range(1, 4)]
    case.append(make_coin(4, last_updated="2038-01-19T03:14:07.000Z"))
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps(case), encoding="utf-8")

    assert scripts.pipeline("--replay", plain).returncode == 0
    assert database.execute("SELECT DISTINCT timestamp FROM crypto_prices") == [(datetime(2025, 6, 1, 10, 3),)]


def test_a_file_whose_only_time_is_in_the_future_is_passed_over_without_force(
    scripts: Scripts, database: Database, tmp_path: Path
):
    at = utc_now() + timedelta(minutes=6)
    raw, plain = tmp_path / "raw.json", tmp_path / "plain.json"
    raw.write_text(json.dumps({"timestamp": f"{at.isoformat()}Z", "coins": make_coins(3)}), encoding="utf-8")
    plain.write_text(json.dumps([make_coin(1, last_updated="2040-01-01T00:00:30Z")]), encoding="utf-8")

    result = scripts.pipeline("--replay", raw, plain)
    assert result.returncode == 3
    assert f"{raw}: it is dated {at} UTC, in the future: correct its time, or use --force" in result.stderr
    assert f"{plain}: it is dated 2040-01-01 00:00:30 UTC, in the future" in result.stderr
    assert database.count() == 0

    assert scripts.pipeline("--replay", raw, plain, "--force").returncode == 0
    assert database.execute("SELECT DISTINCT timestamp FROM crypto_prices ORDER BY 1") == [(at,), (FUTURE,)]


def test_a_file_of_a_clock_that_is_a_few_minutes_ahead_is_loaded(scripts: Scripts, database: Database):
    scripts.load({utc_now() + timedelta(minutes=4): make_coins(3)})

    assert database.count() == 3


# --------------------------------------------------------------------------------- snapshots in the future in the table


def test_every_run_warns_of_a_snapshot_in_the_future_with_the_command_that_deletes_it(scripts: Scripts):
    scripts.load({FUTURE: make_coins(3)}, "--force")
    commands = [
        (PIPELINE,),
        ("etl_crypto.py",),
        ("segment_and_load.py",),
        (PIPELINE, "--status"),
        (PIPELINE, "--backfill", "1", "--dry-run"),
        (PIPELINE, "--replay", scripts.folder / "2040-01-01T00-00-00.json", "--force"),
    ]

    for script, *options in commands:
        result = scripts.run(script, "-q", *options)
        [warning] = [line for line in result.stderr.splitlines() if "lies in the future" in line]
        assert "the newest snapshot, of 2040-01-01 00:00:00 UTC," in warning
        assert warning.endswith(f"python pipeline_orchestrator.py --env-file {scripts.env_file} {DELETE_IT}")


def test_status_and_max_age_leave_a_snapshot_in_the_future_aside(scripts: Scripts):
    at = utc_now() - timedelta(hours=2)
    coins = [make_coin(n, last_updated=f"{at.isoformat()}Z") for n in range(1, 6)]
    scripts.load({at: coins, FUTURE: make_coins(3), FUTURE + timedelta(days=1): make_coins(3)}, "--force")

    result = scripts.pipeline("--status")
    assert f"newest snapshot      {at:%Y-%m-%d %H:%M} UTC, 5 coins" in result.stdout
    assert "future snapshots     2, left aside here" in result.stdout
    assert ": 1 days, none without a snapshot" in result.stdout
    one_line_error(scripts.pipeline("--status", "--max-age", "60"), 6, "is 2 h ")
    facts = json.loads(scripts.pipeline("--status", "--json").stdout)
    assert (facts["newest_snapshot"], facts["coins"]) == (f"{at.isoformat()}Z", 5)
    assert (facts["future_snapshots"], facts["rows"], facts["days"]) == (2, 11, 1)


def test_a_table_of_the_future_alone_counts_as_empty(scripts: Scripts):
    scripts.load({FUTURE: make_coins(3)}, "--force")

    one_line_error(scripts.pipeline("--status"), 6, "is empty but for snapshots in the future")
    one_line_error(scripts.pipeline("--backfill", "1"), 3, "is empty", "run python pipeline_orchestrator.py")
    facts = json.loads(scripts.pipeline("--status", "--json").stdout)
    assert (facts["newest_snapshot"], facts["oldest_snapshot"], facts["future_snapshots"]) == (None, None, 1)
    assert scripts.pipeline().returncode == 0


def test_a_backfill_is_for_the_coins_of_the_newest_snapshot_that_is_not_in_the_future(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    scripts.load({FUTURE: make_coins(3, first=50)}, "--force")

    assert scripts.pipeline("--backfill", "2").returncode == 0
    assert database.execute("SELECT timestamp, COUNT(*) FROM crypto_prices GROUP BY 1 ORDER BY 1")[:2] == [
        (midnight(2), 5),
        (midnight(1), 5),
    ]


# ---------------------------------------------------------------------------------------------------- --delete-snapshot


@pytest.fixture
def two_snapshots(scripts: Scripts) -> None:
    scripts.load({NOON: make_coins(5), FUTURE: make_coins(3)}, "--force")


@pytest.mark.parametrize("time", ["2040-01-01 00:00:00", "2040-01-01T00:00:00Z", "2040-01-01"])
def test_a_snapshot_is_deleted_whole_once_its_rows_were_counted(
    scripts: Scripts, two_snapshots: None, database: Database, time: str
):
    dry_run = scripts.pipeline("--delete-snapshot", time, "--dry-run")
    unasked = scripts.pipeline("--delete-snapshot", time)
    assert dry_run.returncode == 0
    assert "the snapshot of 2040-01-01 00:00:00 UTC has 3 rows" in dry_run.stdout
    one_line_error(unasked, 2, "nothing was deleted", "add --force")
    assert database.count() == 8

    result = scripts.pipeline("--delete-snapshot", time, "--force")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["the snapshot of 2040-01-01 00:00:00 UTC has 3 rows", "3 rows deleted"]
    assert database.execute("SELECT timestamp, COUNT(*) FROM crypto_prices GROUP BY 1") == [(NOON, 5)]


@pytest.mark.parametrize("time", ["2025-03-14 12:00:01", "2025-03-14", "soon", "", "2040-01-01 00:00:00.4"])
def test_a_time_that_no_snapshot_has_is_exit_code_2(
    scripts: Scripts, two_snapshots: None, database: Database, time: str
):
    one_line_error(scripts.pipeline("--delete-snapshot", time, "--force"), 2)
    assert database.count() == 8


@posix_only
@pytest.mark.parametrize(("answer", "rows"), [(b"y\n", 5), (b"n\n", 8), (b"\n", 8), (b"\x04", 8)])
def test_on_a_terminal_it_asks(scripts: Scripts, two_snapshots: None, database: Database, answer: bytes, rows: int):
    here, there = pty.openpty()
    os.write(here, answer)
    command = [sys.executable, PROJECT_DIR / PIPELINE, "--env-file", scripts.env_file]
    result = subprocess.run(
        [*command, "--delete-snapshot", str(FUTURE)],
        env=scripts.environment({}),
        stdin=there,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert result.returncode == 0, result.stderr
    assert "has 3 rows\ndelete its 3 rows? [y/N]" in result.stdout
    assert last_line(result.stdout).endswith("3 rows deleted" if rows == 5 else "nothing was deleted")
    assert database.count() == rows


def test_it_waits_for_no_run_and_needs_the_right_to_delete(scripts: Scripts, two_snapshots: None, database: Database):
    with database.connect() as other, other.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK(%s, 0)", (f"crypto_prices.{database.name}",))
        cursor.fetchall()
        one_line_error(scripts.pipeline("--delete-snapshot", str(FUTURE), "--force"), 5, "another run is writing")
    database.execute(f"REVOKE DELETE ON crypto_prices FROM '{database.user}'@'%'")
    one_line_error(scripts.pipeline("--delete-snapshot", str(FUTURE), "--force"), 4, "GRANT DELETE ON")
    assert database.count() == 8
