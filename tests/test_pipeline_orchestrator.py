"""The pipeline as its users run it: whole scripts, a real database, real HTTP."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import mysql.connector
import pytest

from tests.conftest import PROJECT_DIR, Database, Scripts, last_line, make_coin, make_coins, one_line_error
from tests.stub_coingecko import SAMPLE_FILES, Answer, StubCoinGecko, read_sample

LARGE, MID, SMALL, MICRO = 2e10, 2e9, 2e8, 2e7
posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM and no kill -9")


def tiers(database: Database) -> dict[str, str]:
    return dict(database.execute("SELECT coin_id, market_cap_tier FROM crypto_prices"))


# ------------------------------------------------------------------------------------------------- the ordinary run


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


def test_the_summary_tells_coins_total_market_cap_and_tiers(scripts: Scripts, api: StubCoinGecko):
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
    assert lines[8].split() == ["Unknown", "1", "coins", "$0.00", "0.0%"]


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


def test_quiet_says_nothing_when_all_is_well(scripts: Scripts, api: StubCoinGecko):
    now = datetime.now(UTC).isoformat()
    api.coins = [make_coin(1, last_updated=now)]

    result = scripts.pipeline("-q")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


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


# ------------------------------------------------------------------------------------- what fails, and how it says so


def test_no_network_ends_within_seconds_and_names_the_sample_command(scripts: Scripts, database: Database):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"

        result = scripts.pipeline(COINGECKO_BASE_URL=url)

    one_line_error(result, 3, "Connection refused", "--replay tests/data/*.json.gz")
    assert database.count() == 0


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


@pytest.mark.parametrize(
    ("status", "body", "cure"),
    [
        (401, {"status": {"error_code": 10002, "error_message": "API Key Missing"}}, "set COINGECKO_API_KEY"),
        (400, {"error": {"status": {"error_code": 10010, "error_message": "wrong"}}}, "COINGECKO_API_PLAN=pro"),
        (403, {"status": {"error_code": 10011, "error_message": "wrong"}}, "COINGECKO_API_PLAN=demo"),
        (401, b"<html>Unauthorized", "check COINGECKO_API_KEY and COINGECKO_API_PLAN"),
    ],
)
def test_a_refused_key_is_not_tried_again_and_names_the_setting(
    scripts: Scripts, api: StubCoinGecko, status: int, body: object, cure: str
):
    api.script = lambda page, attempt: Answer(body, status)
    scripts.settings["COINGECKO_API_KEY"] = "CG-secret-key"

    result = scripts.pipeline(RETRY_BUDGET_SECONDS="600", COIN_LIMIT="250")

    one_line_error(result, 3, cure)
    assert api.pages == [1]


def test_a_key_that_the_api_sends_back_is_not_shown(scripts: Scripts, api: StubCoinGecko):
    scripts.settings["COINGECKO_API_KEY"] = "CG-secret-key"
    answers = [
        Answer({"error": "CG-secret-key is blocked"}),
        Answer(b"<html>CG-secret-key"),
        Answer({"CG-secret-key": 1}),
        Answer(raw=b"HTTP/1.1 200 OK\r\nno header \x1b[31m CG-secret-key\r\n\r\n{}"),
        Answer(raw=b"CG-secret-key \x1b[31m go away\r\n\r\n"),
    ]
    api.script = lambda page, attempt: answers[attempt - 1]

    result = scripts.pipeline("-v", COIN_LIMIT="250", RETRY_BUDGET_SECONDS="15")  # `finish` looks for the key

    assert result.returncode == 3
    assert result.stderr.count("***") >= 4
    assert "\x1b" not in result.stderr


def test_a_package_that_is_missing_is_said_in_one_line(scripts: Scripts):
    result = subprocess.run(
        [sys.executable, "-S", PROJECT_DIR / "pipeline_orchestrator.py", "--dry-run"],
        env=scripts.environment({"PYTHONPATH": None}),
        capture_output=True,
        text=True,
    )

    one_line_error(result, 2, "module dotenv is missing", "-m pip install -r requirements.txt")


@posix_only
def test_a_reader_of_the_result_that_goes_away_is_no_error(scripts: Scripts):
    process = scripts.start("pipeline_orchestrator.py")
    process.stdout.close()

    assert process.wait(60) == 0, process.stderr.read()


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"MYSQL_USER": None}, ["MYSQL_USER is not set", ".env.example"]),
        ({"MYSQL_PORT": "33o6"}, ["MYSQL_PORT is '33o6'", "1 to 65535"]),
        ({"COIN_LIMIT": "0"}, ["COIN_LIMIT is '0'", "all"]),
        ({"COIN_LIMIT": ""}, ["COIN_LIMIT is ''"]),
        ({"TIER_MID_CAP_MIN": "10e9"}, ["TIER_LARGE_CAP_MIN=1e+10", "are not descending"]),
        ({"HTTP_TIMEOUT_SECONDS": "nan"}, ["HTTP_TIMEOUT_SECONDS is 'nan'"]),
        ({"COINGECKO_API_PLAN": "gold"}, ["COINGECKO_API_PLAN is 'gold'", "demo or pro"]),
        ({"COINGECKO_BASE_URL": "api.coingecko.com"}, ["COINGECKO_BASE_URL is 'api.coingecko.com'"]),
        ({"COINGECKO_BASE_URL": "http://example.com/x", "COINGECKO_API_KEY": "k"}, ["in the clear", "https"]),
        ({"MYSQL_SSL_CA": "/no/such/ca.pem"}, ["MYSQL_SSL_CA is '/no/such/ca.pem'"]),
    ],
)
def test_a_bad_setting_stops_the_run_before_any_connection(
    scripts: Scripts, api: StubCoinGecko, settings: dict[str, str | None], parts: list[str]
):
    result = scripts.pipeline(**settings)

    one_line_error(result, 2, *parts)
    assert result.stdout == ""
    assert api.requests == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--coins", "many"], "--coins: 'many', not a whole number from 1 to 1000000, or all"),
        (["--max-age", "5"], "--max-age goes with --status"),
        (["--status", "--max-age", "soon"], "--max-age: 'soon', not a number from 0"),
        (["--coins", "5", "--replay", "x"], "not allowed with"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(scripts: Scripts, arguments: list[str], part: str):
    result = scripts.pipeline(*arguments)

    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert part in result.stderr
    assert "--help" in result.stderr


def test_a_wrong_password_is_said_before_an_api_call_is_spent(scripts: Scripts, api: StubCoinGecko, database: Database):
    scripts.settings["MYSQL_PASSWORD"] = "not-the-right-one"

    result = scripts.pipeline()

    one_line_error(result, 4, f"refused the login of '{database.user}'", "MYSQL_PASSWORD")
    assert api.requests == []


def test_a_server_that_is_not_there_is_said(scripts: Scripts):
    one_line_error(scripts.pipeline(MYSQL_PORT="1"), 4, "no MySQL server answers at", "MYSQL_PORT")


def test_a_missing_database_names_the_file_that_makes_it(scripts: Scripts, server: mysql.connector.MySQLConnection):
    root = {
        "MYSQL_USER": os.environ.get("TEST_MYSQL_USER", "root"),
        "MYSQL_PASSWORD": os.environ.get("TEST_MYSQL_PASSWORD", ""),
    }
    scripts.settings |= root

    one_line_error(
        scripts.pipeline(MYSQL_DATABASE="crypto_nowhere"), 4, "no database crypto_nowhere", "sql/database.sql"
    )


def test_a_missing_table_names_the_file_that_makes_it(scripts: Scripts, api: StubCoinGecko, database: Database):
    database.execute("DROP TABLE crypto_prices")

    one_line_error(scripts.pipeline(), 4, "no table", "sql/crypto_prices.sql")
    assert api.requests == []


def test_a_missing_right_names_the_file_that_gives_it(scripts: Scripts, api: StubCoinGecko, database: Database):
    database.execute(f"REVOKE UPDATE ON crypto_prices FROM '{database.user}'@'%'")

    one_line_error(scripts.pipeline(), 4, "lacks a right", "sql/accounts.sql")
    assert api.requests == []


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("DROP COLUMN atl", "atl"),
        ("DROP PRIMARY KEY, ADD COLUMN id INT AUTO_INCREMENT PRIMARY KEY", "primary key is id"),
        ("MODIFY total_supply DECIMAL(20,8)", "'total_supply' cannot hold"),
        ("MODIFY timestamp VARCHAR(30) NOT NULL", "'timestamp' cannot hold"),
        ("MODIFY name VARCHAR(100) NOT NULL, MODIFY ath DOUBLE NOT NULL", "'ath', 'name' cannot hold"),
        ("MODIFY market_cap_tier VARCHAR(20) NOT NULL DEFAULT 'Unknown'", "'market_cap_tier' cannot hold"),
        ("MODIFY coin_id VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci NOT NULL", "different coins"),
        ("ADD COLUMN source VARCHAR(20) NOT NULL", "source"),
        ("ENGINE = MyISAM", "no transactions"),
    ],
)
def test_a_table_of_another_making_is_not_written(
    scripts: Scripts, api: StubCoinGecko, database: Database, change: str, part: str
):
    database.execute(f"ALTER TABLE crypto_prices {change}")

    one_line_error(scripts.pipeline(), 4, "made by something else", part, "RENAME TABLE")
    assert api.requests == []


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


@posix_only
@pytest.mark.parametrize(
    ("number", "exit_code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_signal_ends_a_run_at_once(
    scripts: Scripts, api: StubCoinGecko, database: Database, number: int, exit_code: int, name: str
):
    api.script = lambda page, attempt: api.hang()
    process = scripts.start("pipeline_orchestrator.py")
    api.wait_for_requests(1)
    process.send_signal(number)

    result = scripts.finish(process)

    one_line_error(result, exit_code, name)
    assert "fetch                failed" in result.stdout
    assert database.count() == 0


@posix_only
def test_a_signal_ends_a_wait_for_another_try(scripts: Scripts, api: StubCoinGecko):
    api.script = lambda page, attempt: Answer(status=429, headers={"Retry-After": "119"})
    process = scripts.start("pipeline_orchestrator.py", COIN_LIMIT="250", RETRY_BUDGET_SECONDS="600")
    waiting = process.stderr.readline()
    process.send_signal(signal.SIGTERM)

    assert "page 1: status 429; trying again in 119 s" in waiting
    assert scripts.finish(process).returncode == 143


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


@posix_only
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_wait_for_locked_rows(
    scripts: Scripts, database: Database, rows_locked: mysql.connector.MySQLConnection, number: int, exit_code: int
):
    process = scripts.start("pipeline_orchestrator.py", SNAPSHOT_MINUTES="525600")
    wait_for_the_load(process, database)
    sent = time.monotonic()
    process.send_signal(number)
    result = scripts.finish(process)

    one_line_error(result, exit_code, "nothing is half written")
    assert time.monotonic() - sent < 5
    assert database.execute("SELECT id FROM information_schema.processlist WHERE user = %s", (database.user,)) == []


def test_a_bug_stays_a_traceback_and_exit_code_1(scripts: Scripts, tmp_path: Path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("etl_crypto.py", "segment_and_load.py", "pipeline_orchestrator.py"):
        text = (PROJECT_DIR / name).read_text(encoding="utf-8")
        (broken / name).write_text(text.replace("def segment(", "def segment(missing, "), encoding="utf-8")
    shutil.copytree(PROJECT_DIR / "sql", broken / "sql")

    result = subprocess.run(
        [sys.executable, broken / "pipeline_orchestrator.py", "--env-file", scripts.env_file],
        env=scripts.environment({}),
        capture_output=True,
        text=True,
    )

    assert result.returncode == 1
    assert "TypeError" in result.stderr
    assert "load and segment     failed" in result.stdout


def test_verbose_adds_the_traceback_of_an_expected_failure(scripts: Scripts):
    result = scripts.pipeline("-v", MYSQL_PORT="1")

    assert result.returncode == 4
    assert "Traceback" in result.stderr


def test_a_server_lost_during_the_fetch_is_connected_to_again(scripts: Scripts, api: StubCoinGecko, database: Database):
    def cut_the_connection(page: int, attempt: int) -> None:
        for process in database.execute(
            "SELECT id FROM information_schema.processlist WHERE user = %s", (database.user,)
        ):
            database.execute("KILL %s", process)

    api.script = cut_the_connection

    assert scripts.pipeline(COIN_LIMIT="100").returncode == 0
    assert database.count() == 100


@pytest.fixture
def a_snapshot(scripts: Scripts) -> None:
    """A snapshot that a run with SNAPSHOT_MINUTES=525600 renews."""
    assert scripts.pipeline(SNAPSHOT_MINUTES="525600").returncode == 0


@pytest.fixture
def rows_locked(database: Database, a_snapshot: None) -> Iterator[mysql.connector.MySQLConnection]:
    """A session that holds every row locked until it is rolled back."""
    with database.connect() as other:
        with other.cursor() as cursor:
            cursor.execute("SELECT coin_id FROM crypto_prices FOR UPDATE")
            cursor.fetchall()
        yield other


def wait_for_the_load(process: subprocess.Popen[str], database: Database) -> tuple[int]:
    """The id of the session that loads, once it waits for rows that are locked."""
    while True:
        assert process.poll() is None
        for session in database.execute(
            "SELECT id FROM information_schema.processlist WHERE user = %s AND info LIKE 'INSERT%%VALUES%%'",
            (database.user,),
        ):
            return session


def read_log_until(process: subprocess.Popen[str], part: str) -> None:
    """Return once `process` has logged a line with `part`."""
    lines = []
    while part not in (line := process.stderr.readline()):
        lines.append(line)
        assert line, lines  # an empty line is the end


def test_a_lock_wait_is_tried_again(scripts: Scripts, database: Database, rows_locked: mysql.connector.MySQLConnection):
    process = scripts.start("pipeline_orchestrator.py", SNAPSHOT_MINUTES="525600")
    read_log_until(process, "retrying for up to")
    rows_locked.rollback()
    result = scripts.finish(process)

    assert result.returncode == 0, result.stderr


def test_a_connection_lost_during_the_load_is_tried_again(
    scripts: Scripts, database: Database, rows_locked: mysql.connector.MySQLConnection
):
    process = scripts.start("pipeline_orchestrator.py", SNAPSHOT_MINUTES="525600")
    database.execute("KILL %s", wait_for_the_load(process, database))
    read_log_until(process, "retrying for up to")
    rows_locked.rollback()

    assert scripts.finish(process).returncode == 0
    assert database.execute("SELECT COUNT(*), COUNT(market_cap_tier) FROM crypto_prices") == [(120, 120)]


def test_a_load_that_fails_names_the_kept_answer_and_how_to_load_it(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    def drop_the_table(page: int, attempt: int) -> None:
        database.execute("DROP TABLE IF EXISTS crypto_prices")

    api.script = drop_the_table
    result = scripts.pipeline(COIN_LIMIT="100")
    database.create_table()

    [kept] = scripts.kept()
    one_line_error(result, 4, "sql/crypto_prices.sql", f"--env-file {scripts.env_file} --replay {kept}")
    assert scripts.pipeline("--replay", kept).returncode == 0
    assert database.count() == 100


MANY_COINS = {"COIN_LIMIT": "2000", "REQUESTS_PER_MINUTE": "100"}


def seconds_of_a_run(scripts: Scripts) -> float:
    begun = time.monotonic()
    assert scripts.pipeline(**MANY_COINS).returncode == 0
    return time.monotonic() - begun


def is_whole_or_absent(database: Database) -> bool:
    """The table holds all 2,000 coins with their tiers, or none. Waits for a killed session's transaction to end."""
    found = database.execute("SELECT market_cap_tier IS NULL FROM crypto_prices FOR UPDATE")
    return found in ([], [(0,)] * 2000)


@posix_only
@pytest.mark.slow
def test_killed_at_any_moment_the_table_holds_whole_snapshots_only(
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


# ------------------------------------------------------------------------------------------------------------ replay


def test_the_sample_market_loads_with_a_tier_on_every_row_and_a_second_time_changes_no_count(
    scripts: Scripts, database: Database
):
    first = scripts.pipeline("--replay", *SAMPLE_FILES)
    rows = database.count()
    second = scripts.pipeline("--replay", *reversed(SAMPLE_FILES))

    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert rows == database.count() == sum(len(read_sample(path)) for path in SAMPLE_FILES)
    assert "0 rejected" in first.stdout
    assert "snapshot 2025-03-31 00:00 UTC: 99 coins" in second.stdout
    assert database.execute("SELECT COUNT(*) FROM crypto_prices WHERE market_cap_tier IS NULL") == [(0,)]
    assert len(database.execute("SELECT DISTINCT market_cap_tier FROM crypto_prices")) == 5


def test_a_pattern_that_the_shell_left_alone_is_expanded(scripts: Scripts, database: Database):
    result = scripts.pipeline("--replay", SAMPLE_FILES[0].parent / "2025-03-0*.json.gz")

    assert result.returncode == 0, result.stderr
    assert database.execute("SELECT COUNT(DISTINCT timestamp) FROM crypto_prices") == [(9,)]


def test_a_plain_list_is_dated_by_its_newest_last_updated(scripts: Scripts, database: Database, tmp_path: Path):
    plain = tmp_path / "plain.json"
    times = ["2024-05-06T07:08:09.500Z", "2024-05-06T15:08:58+08:00"]
    plain.write_text(json.dumps([make_coin(n, last_updated=at) for n, at in enumerate(times, 1)]), encoding="utf-8")

    assert scripts.pipeline("--replay", plain).returncode == 0
    assert database.execute("SELECT DISTINCT timestamp FROM crypto_prices") == [(datetime(2024, 5, 6, 7, 8),)]


def test_a_replay_is_loaded_whole_and_makes_no_copy(scripts: Scripts, database: Database):
    result = scripts.pipeline("--replay", SAMPLE_FILES[-1], COIN_LIMIT="3")

    assert result.returncode == 0, result.stderr
    assert database.count() == len(read_sample(SAMPLE_FILES[-1]))
    assert scripts.kept() == []


def test_files_that_cannot_be_used_are_named_and_the_others_loaded(
    scripts: Scripts, database: Database, tmp_path: Path
):
    contents = {
        "truncated.json.gz": SAMPLE_FILES[0].read_bytes()[:5000],
        "text.json": b"<html>",
        "other.json": b'{"prices": []}',
        "undated.json": json.dumps([make_coin(1, last_updated=None)]).encode(),
        "no-time.json": b'{"timestamp": "yesterday", "coins": []}',
        "empty.json": b'{"timestamp": "2024-01-01T00:00:00Z", "coins": []}',
        "deep.json": b"[" * 100_000,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    result = scripts.pipeline("--replay", *(tmp_path / name for name in contents), tmp_path / "absent", SAMPLE_FILES[1])

    assert result.returncode == 3
    for name in (*contents, "absent"):
        assert f"ERROR   etl_crypto: {tmp_path / name}: " in result.stderr
    assert "8 of 9 files were not loaded" in last_line(result.stderr)
    assert "read files           failed" in result.stdout
    assert "1 snapshots, 99 coins" in result.stdout
    assert "Traceback" not in result.stderr
    assert database.count() == len(read_sample(SAMPLE_FILES[1]))


def test_a_kept_answer_gives_the_same_rows_again(scripts: Scripts, database: Database):
    scripts.pipeline()
    before = database.execute("SELECT * FROM crypto_prices ORDER BY coin_id")
    database.execute("DELETE FROM crypto_prices")

    assert scripts.pipeline("--replay", *scripts.kept(), SNAPSHOT_MINUTES="60").returncode == 0
    assert database.execute("SELECT * FROM crypto_prices ORDER BY coin_id") == before


# ------------------------------------------------------------------------------------------------------------ status


def test_status_tells_the_newest_snapshot_its_age_and_the_rows(scripts: Scripts, api: StubCoinGecko):
    scripts.pipeline("--replay", *SAMPLE_FILES)
    fresh = (datetime.now(UTC) - timedelta(minutes=7, seconds=30)).isoformat()
    api.coins = [make_coin(1, last_updated=fresh), make_coin(2)]
    scripts.pipeline("--force")
    scripts.run("etl_crypto.py", "--force", SNAPSHOT_MINUTES="525600")

    result = scripts.pipeline("--status", "--max-age", "30")

    assert result.returncode == 0, result.stderr
    facts = {line[:20].strip(): line[20:].strip() for line in result.stdout.splitlines()}
    rows = sum(len(read_sample(path)) for path in SAMPLE_FILES) + 4
    assert facts["newest snapshot"].startswith(f"{datetime.now(UTC):%Y-%m-%d} ")
    assert facts["newest snapshot"].endswith("2 coins")
    assert facts["age"].startswith("7 min") or facts["age"].startswith("8 min")
    assert facts["rows in all"] == f"{rows:,}"
    assert facts["rows without a tier"] == "2"


def test_status_exits_6_when_the_figures_are_too_old(scripts: Scripts):
    scripts.pipeline("--replay", SAMPLE_FILES[-1])

    one_line_error(scripts.pipeline("--status", "--max-age", "60"), 6, "more than --max-age 60")


def test_a_figure_dated_in_the_future_does_not_hide_the_age(scripts: Scripts, api: StubCoinGecko):
    api.coins = [make_coin(1), make_coin(2, last_updated="9999-01-01T00:00:00Z")]
    scripts.pipeline()

    one_line_error(scripts.pipeline("--status", "--max-age", "60"), 6, "more than --max-age 60")


def test_status_exits_6_when_the_table_is_empty(scripts: Scripts):
    one_line_error(scripts.pipeline("--status"), 6, "is empty", "run python pipeline_orchestrator.py")


def test_status_needs_no_more_than_the_right_to_read(scripts: Scripts, database: Database):
    scripts.pipeline("--replay", SAMPLE_FILES[-1])
    database.execute(f"REVOKE INSERT, UPDATE ON crypto_prices FROM '{database.user}'@'%'")

    assert scripts.pipeline("--status").returncode == 0
