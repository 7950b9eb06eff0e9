"""Sessions that are refused, cut off, killed or locked out, and servers that die or take no writes."""

from __future__ import annotations

import itertools
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from random import Random

import mysql.connector
import pytest

from sql.connection import HINTS, Server, explain
from tests.conftest import (
    PROJECT_DIR,
    Database,
    Scripts,
    make_coin,
    make_coins,
    one_line_error,
    posix_only,
    read_log_until,
    wait_until,
)
from tests.own_server import Command, OwnDatabase, OwnServer, Proxy
from tests.stub_coingecko import StubCoinGecko

COINS = 120  # of the stub
FIRST_COIN, LAST_COIN = make_coin(1)["id"], make_coin(COINS)["id"]
ONE_SNAPSHOT = {"SNAPSHOT_MINUTES": "525600"}  # a second run renews the rows of the first
UPSERTING = "INSERT%VALUES%"  # the statement, as SQL's LIKE has it

# ------------------------------------------------------------------------------------------------- what the tests share


def snapshots(database: OwnDatabase) -> list[tuple[int, int]]:
    """Coins, and those with a tier, of each snapshot in the table, as soon as no lost session holds it any more."""
    database.execute("SELECT coin_id FROM crypto_prices FOR UPDATE")
    return database.execute("SELECT COUNT(*), COUNT(market_cap_tier) FROM crypto_prices GROUP BY timestamp")


def assert_recovered(result: subprocess.CompletedProcess[str], scripts: Scripts, database: OwnDatabase) -> None:
    """The run came through: one whole snapshot, which is kept, and no error."""
    assert result.returncode == 0, result.stderr
    assert " ERROR " not in result.stderr
    assert snapshots(database) == [(COINS, COINS)]
    [kept] = scripts.kept()
    assert not kept.name.endswith(".pending.json.gz")


def assert_failed_after_the_fetch(result: subprocess.CompletedProcess[str], scripts: Scripts, *parts: str) -> list[str]:
    """The run ended with exit code 4 and its snapshot kept as pending. Returns the command that loads it."""
    line = one_line_error(result, 4, *parts)
    [kept] = scripts.kept()
    assert kept.name.endswith(".pending.json.gz")
    command = shlex.split(re.search(r"load it the way this run was started, with: (.+)", line)[1])
    assert command[0] == "python"
    assert command[-1] == str(kept)
    return command


def assert_loads(command: list[str], scripts: Scripts, database: OwnDatabase, coins: int = COINS) -> None:
    """The command of a message, run as it stands, puts the whole snapshot into the table."""
    again = subprocess.run(
        [sys.executable, *command[1:]],
        env=scripts.environment({}),
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert again.returncode == 0, again.stderr
    assert snapshots(database) == [(coins, coins)]


@pytest.fixture
def loaded(scripts: Scripts, own_database: OwnDatabase) -> datetime:
    """The time of a snapshot in the table that a run with ONE_SNAPSHOT renews."""
    assert scripts.pipeline(**ONE_SNAPSHOT).returncode == 0
    for path in scripts.kept():
        path.unlink()
    return own_database.execute("SELECT MAX(timestamp) FROM crypto_prices")[0][0]


@contextmanager
def holding_a_row(database: OwnDatabase, timestamp: datetime, coin: str) -> Iterator[None]:
    """Another session keeps a row locked, and stops a run at the statement that comes to it."""
    with database.connect() as other:
        cursor = other.cursor()
        cursor.execute(
            "SELECT 1 FROM crypto_prices WHERE (timestamp, coin_id) = (%s, %s) FOR UPDATE", (timestamp, coin)
        )
        cursor.fetchall()
        yield


@pytest.fixture
def rows_locked(scripts: Scripts, database: Database) -> Iterator[mysql.connector.MySQLConnection]:
    """A session that keeps every row of the snapshot that ONE_SNAPSHOT renews locked until it is rolled back."""
    assert scripts.pipeline(**ONE_SNAPSHOT).returncode == 0
    with database.connect() as other:
        with other.cursor() as cursor:
            cursor.execute("SELECT coin_id FROM crypto_prices FOR UPDATE")
            cursor.fetchall()
        yield other


# ----------------------------------------------------------------------------------------------------------- no session


def test_a_wrong_password_is_named_before_an_api_call_is_spent(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    scripts.settings["MYSQL_PASSWORD"] = "not-the-right-one"

    result = scripts.pipeline()

    one_line_error(result, 4, f"refused the login of '{database.user}'", "MYSQL_PASSWORD")
    assert "retrying" not in result.stderr
    assert api.requests == []


def test_a_server_that_is_not_there_is_named(scripts: Scripts):
    one_line_error(scripts.pipeline(MYSQL_PORT="1"), 4, "no MySQL server answers at", "MYSQL_PORT")


def test_a_password_that_changes_while_the_fetch_runs_loses_no_snapshot(
    scripts: Scripts, api: StubCoinGecko, own_database: OwnDatabase
):
    def change_the_password(page: int, attempt: int) -> None:
        own_database.execute(f"ALTER USER '{own_database.user}'@'%' IDENTIFIED BY 'another'")
        own_database.cut_sessions()

    api.script = change_the_password
    result = scripts.pipeline(COIN_LIMIT=str(COINS))

    command = assert_failed_after_the_fetch(
        result, scripts, f"refused the login of '{own_database.user}'", "MYSQL_PASSWORD"
    )
    assert snapshots(own_database) == []
    scripts.settings["MYSQL_PASSWORD"] = "another"
    assert_loads(command, scripts, own_database)


# --------------------------------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize("errno", sorted(itertools.chain.from_iterable(HINTS)))
def test_an_error_is_one_short_line_that_leaves_room_for_the_command_that_loads_the_snapshot(errno: int):
    error = mysql.connector.Error("INSERT command denied\nto user 'crypto_etl'@'10.0.0.1' " * 20, errno)
    server = Server("database.example.com", 3306, "crypto_db", "crypto_etl", "secret")

    said = explain(error, server)

    assert said.errno == errno
    assert len(str(said)) <= 320
    assert "\n" not in str(said)
    assert "secret" not in str(said)


@pytest.mark.parametrize(
    ("errno", "hint"),
    [
        (1226, "used up a limit of its own"),
        (1130, "from other machines only"),
        (1015, "cannot lock the table"),
        (1142, "sql/accounts.sql"),
        (1317, "was lost"),
        (1698, "refused the login"),
        (3032, "takes no writes"),
        (4711, "see the server's log"),
    ],
)
def test_the_text_of_mysql_itself_stands_beside_the_hint(errno: int, hint: str):
    said = str(explain(mysql.connector.Error("INSERT command denied", errno), Server("db", 1, "d", "u", "p")))

    assert hint in said
    assert "INSERT command denied" in said


# -------------------------------------------------------------------------------------------------- connections cut off

UPSERT, TIERING, COMMIT = b"on duplicate key update", b"update crypto_prices set market_cap_tier = '", b"commit"
CUTS = {
    "before the upsert": {"marker": UPSERT},
    "after the upsert": {"marker": UPSERT, "is_sent": True},
    "before a tier": {"marker": TIERING},
    "after a tier": {"marker": TIERING, "is_sent": True},
    "before COMMIT": {"marker": COMMIT, "after": TIERING},
    "after COMMIT, before its answer": {"marker": COMMIT, "after": TIERING, "is_sent": True},
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_connection_cut_once_takes_one_more_try(scripts: Scripts, own_database: OwnDatabase, proxy: Proxy, cut: dict):
    proxy.cut_at(**cut)

    result = scripts.pipeline()

    assert proxy.cuts == 1
    assert result.stderr.count("retrying for up to 30 s: the connection to MySQL") == 1
    assert_recovered(result, scripts, own_database)


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_connection_cut_every_time_loses_no_snapshot(
    scripts: Scripts, own_database: OwnDatabase, proxy: Proxy, cut: dict
):
    proxy.cut_at(**cut, times=math.inf)

    result = scripts.pipeline()

    assert proxy.cuts > 1
    command = assert_failed_after_the_fetch(result, scripts, "connection to MySQL", "was lost", "run again")
    # what was committed is there, even if the script got no answer
    assert snapshots(own_database) == ([(COINS, COINS)] if cut == CUTS["after COMMIT, before its answer"] else [])
    proxy.rules.clear()
    assert_loads(command, scripts, own_database)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["after the upsert", "after a tier"])
def test_a_second_run_of_a_snapshot_that_is_cut_off_leaves_every_row_as_the_first_one_wrote_it(
    scripts: Scripts, api: StubCoinGecko, own_database: OwnDatabase, proxy: Proxy, moment: str
):
    assert scripts.pipeline(**ONE_SNAPSHOT).returncode == 0
    first = own_database.execute("SELECT * FROM crypto_prices")
    api.coins = [coin | {"name": "renewed", "market_cap": 1.0} for coin in api.coins]
    proxy.cut_at(**CUTS[moment], times=math.inf)

    result = scripts.pipeline(**ONE_SNAPSHOT)

    assert proxy.cuts > 1
    assert result.returncode == 4
    assert snapshots(own_database) == [(COINS, COINS)]
    assert own_database.execute("SELECT * FROM crypto_prices") == first


@pytest.mark.slow
def test_a_connection_on_which_no_answer_comes_is_given_up_and_opened_again(
    scripts: Scripts, own_database: OwnDatabase, proxy: Proxy
):
    proxy.cut_at(UPSERT, is_silent=True)

    result = scripts.pipeline()

    assert proxy.cuts == 1
    assert_recovered(result, scripts, own_database)


@posix_only
@pytest.mark.slow
def test_a_signal_ends_a_run_on_which_no_answer_comes(scripts: Scripts, own_database: OwnDatabase, proxy: Proxy):
    proxy.cut_at(UPSERT, is_silent=True)
    process = scripts.start("pipeline_orchestrator.py")
    wait_until(lambda: proxy.cuts, "the statement without an answer")
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    result = scripts.finish(process)

    one_line_error(result, 143, "nothing is half written")
    assert time.monotonic() - sent < 35


def test_segmentation_alone_survives_a_cut_connection(scripts: Scripts, own_database: OwnDatabase, proxy: Proxy):
    assert scripts.run("etl_crypto.py").returncode == 0
    proxy.cut_at(TIERING, after=TIERING, is_sent=True)

    result = scripts.run("segment_and_load.py")

    assert proxy.cuts == 1
    assert_recovered(result, scripts, own_database)


def test_a_connection_cut_while_idle_in_a_fetch_is_opened_again(
    scripts: Scripts, api: StubCoinGecko, own_database: OwnDatabase, proxy: Proxy
):
    api.script = lambda page, attempt: proxy.cut_all()

    result = scripts.pipeline(COIN_LIMIT=str(COINS))

    assert proxy.cuts >= 1
    assert "retrying for up to" not in result.stderr
    assert_recovered(result, scripts, own_database)


def test_a_session_that_the_server_ends_while_idle_in_a_fetch_is_opened_again(
    scripts: Scripts, api: StubCoinGecko, own_database: OwnDatabase
):
    def stay_idle(page: int, attempt: int) -> None:
        wait_until(lambda: not own_database.sessions(), "the end of the idle session")

    api.script = stay_idle
    with own_database.globally(wait_timeout=1):
        process = scripts.start("pipeline_orchestrator.py", COIN_LIMIT=str(COINS))
        api.wait_for_requests(1)
    result = scripts.finish(process)

    assert "retrying for up to" not in result.stderr
    assert_recovered(result, scripts, own_database)


def test_a_load_whose_session_is_killed_is_tried_again(
    scripts: Scripts, database: Database, rows_locked: mysql.connector.MySQLConnection
):
    process = scripts.start("pipeline_orchestrator.py", **ONE_SNAPSHOT)
    database.execute("KILL %s", (database.wait_for_statement(UPSERTING),))
    read_log_until(process, "retrying for up to")
    rows_locked.rollback()

    assert scripts.finish(process).returncode == 0
    assert database.execute("SELECT COUNT(*), COUNT(market_cap_tier) FROM crypto_prices") == [(120, 120)]


# ---------------------------------------------------------------------------------------------- a server that is killed


def test_a_server_killed_in_the_upsert_and_started_again_gets_the_snapshot(
    scripts: Scripts, own_database: OwnDatabase, loaded: datetime
):
    with holding_a_row(own_database, loaded, LAST_COIN):
        process = scripts.start("pipeline_orchestrator.py", **ONE_SNAPSHOT)
        own_database.wait_for_statement(UPSERTING)
        own_database.own.kill()
    read_log_until(process, "retrying for up to")
    own_database.own.start()
    result = scripts.finish(process)

    assert_recovered(result, scripts, own_database)


def test_a_server_killed_in_the_segmentation_and_started_again_gets_the_snapshot(
    scripts: Scripts, own_database: OwnDatabase
):
    other_snapshot = datetime(2020, 1, 1)
    own_database.execute(
        "INSERT INTO crypto_prices (timestamp, coin_id, symbol, name) VALUES (%s, 'untiered', '', '')",
        (other_snapshot,),
    )
    with holding_a_row(own_database, other_snapshot, "untiered"):
        process = scripts.start("pipeline_orchestrator.py")
        own_database.wait_for_statement("SELECT timestamp, coin_id, market_cap%")
        own_database.own.kill()
    read_log_until(process, "retrying for up to")
    own_database.own.start()
    result = scripts.finish(process)

    own_database.execute("DELETE FROM crypto_prices WHERE timestamp = %s", (other_snapshot,))
    assert_recovered(result, scripts, own_database)


@pytest.mark.parametrize("is_sent", [False, True], ids=["before COMMIT", "after COMMIT, before its answer"])
def test_a_server_killed_at_commit_and_started_again_has_the_snapshot(
    scripts: Scripts, own_database: OwnDatabase, proxy: Proxy, is_sent: bool
):
    def die_and_come_back() -> None:
        own_database.own.restart()
        own_database.log_in()

    proxy.cut_at(COMMIT, after=TIERING, is_sent=is_sent, action=die_and_come_back)

    result = scripts.pipeline()

    assert proxy.cuts == 1
    assert_recovered(result, scripts, own_database)


def test_a_server_killed_while_the_fetch_runs_and_started_again_gets_the_snapshot(
    scripts: Scripts, api: StubCoinGecko, own_database: OwnDatabase
):
    api.script = lambda page, attempt: own_database.own.kill()
    process = scripts.start("pipeline_orchestrator.py", COIN_LIMIT=str(COINS))
    read_log_until(process, "retrying for up to")
    own_database.own.start()
    result = scripts.finish(process)

    assert_recovered(result, scripts, own_database)


@pytest.mark.slow
def test_a_server_that_stays_away_loses_no_snapshot(scripts: Scripts, own_database: OwnDatabase, proxy: Proxy):
    def die() -> None:
        own_database.own.kill()
        proxy.close()

    proxy.cut_at(TIERING, is_sent=True, action=die)

    result = scripts.pipeline()

    command = assert_failed_after_the_fetch(result, scripts, "no MySQL server answers at", "start it")
    own_database.own.start()
    assert snapshots(own_database) == []
    scripts.settings["MYSQL_PORT"] = str(own_database.own.port)
    assert_loads(command, scripts, own_database)


@pytest.mark.slow
def test_a_server_killed_at_any_moment_gets_whole_snapshots_only(
    scripts: Scripts, api: StubCoinGecko, own_database: OwnDatabase
):
    random = Random(3)
    started = time.monotonic()
    assert scripts.pipeline().returncode == 0
    whole_run = time.monotonic() - started
    for _ in range(10):
        own_database.execute("DELETE FROM crypto_prices")
        for path in scripts.kept():
            path.unlink()
        api.requests.clear()
        process = scripts.start("pipeline_orchestrator.py")
        api.wait_for_requests(1)
        with suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0, 0.7) * whole_run)
        own_database.own.restart()
        result = scripts.finish(process)

        assert_recovered(result, scripts, own_database)


# -------------------------------------------------------------------------------------------------- locks and deadlocks


def test_a_lock_wait_is_tried_again(scripts: Scripts, database: Database, rows_locked: mysql.connector.MySQLConnection):
    process = scripts.start("pipeline_orchestrator.py", **ONE_SNAPSHOT)
    read_log_until(process, "retrying for up to")
    rows_locked.rollback()
    result = scripts.finish(process)

    assert result.returncode == 0, result.stderr


@posix_only
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_wait_for_locked_rows(
    scripts: Scripts, database: Database, rows_locked: mysql.connector.MySQLConnection, number: int, exit_code: int
):
    process = scripts.start("pipeline_orchestrator.py", **ONE_SNAPSHOT)
    database.wait_for_statement(UPSERTING)
    sent = time.monotonic()
    process.send_signal(number)
    result = scripts.finish(process)

    one_line_error(result, exit_code, "nothing is half written")
    assert time.monotonic() - sent < 5
    assert database.sessions() == []


@pytest.mark.slow
def test_a_row_that_another_writer_keeps_locked_loses_no_snapshot(
    scripts: Scripts, own_database: OwnDatabase, loaded: datetime
):
    with holding_a_row(own_database, loaded, LAST_COIN):
        result = scripts.pipeline(**ONE_SNAPSHOT)

    command = assert_failed_after_the_fetch(result, scripts, "other sessions hold locks on", "end them")
    assert snapshots(own_database) == [(COINS, COINS)]
    assert_loads(command, scripts, own_database)


def deadlocks(database: OwnDatabase) -> int:
    [(count,)] = database.execute("SELECT count FROM information_schema.innodb_metrics WHERE name = 'lock_deadlocks'")
    return count


def test_a_deadlock_with_another_writer_takes_one_more_try(
    scripts: Scripts, own_database: OwnDatabase, loaded: datetime
):
    before = deadlocks(own_database)
    update = "UPDATE crypto_prices SET name = 'theirs' WHERE timestamp = %s AND coin_id = %s"
    with own_database.connect() as other, other.cursor() as cursor:
        cursor.execute(  # InnoDB rolls back whoever has written less
            "INSERT INTO crypto_prices (timestamp, coin_id, symbol, name, market_cap_tier) SELECT '2020-01-01',"
            " CONCAT(a.coin_id, b.coin_id), '', '', '' FROM crypto_prices a, crypto_prices b LIMIT 2000"
        )
        cursor.execute(update, (loaded, LAST_COIN))
        process = scripts.start("pipeline_orchestrator.py", **ONE_SNAPSHOT)
        waits = "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'"  # (innodb_trx is refreshed too rarely)
        wait_until(lambda: int(own_database.execute(waits)[0][1]), "the wait for the last coin's lock")
        cursor.execute(update, (loaded, FIRST_COIN))
        read_log_until(process, "retrying for up to")
        other.rollback()
    result = scripts.finish(process)

    assert deadlocks(own_database) == before + 1
    assert_recovered(result, scripts, own_database)


# --------------------------------------------------------------------------------------- read-only, full, small packets

NO_WRITES = ["read_only", "super_read_only", "transaction_read_only", "offline_mode"]


def no_writes(own: OwnServer, variable: str) -> dict[str, int]:
    if own.is_mariadb:
        if variable in ("super_read_only", "offline_mode"):
            pytest.skip(f"MariaDB has no {variable}")
        variable = variable.replace("transaction_", "tx_")
    return {"read_only": 1, variable: 1} if variable == "super_read_only" else {variable: 1}


@pytest.mark.parametrize("variable", NO_WRITES)
@pytest.mark.parametrize("moment", ["at the start", "during the fetch"])
def test_a_server_that_takes_no_writes_for_a_while_as_in_a_failover_is_waited_for(
    scripts: Scripts, api: StubCoinGecko, own_database: OwnDatabase, variable: str, moment: str
):
    with ExitStack() as stack:

        def fail_over() -> None:
            stack.enter_context(own_database.globally(**no_writes(own_database.own, variable)))
            own_database.cut_sessions()

        no_writes(own_database.own, variable)  # skips
        if moment == "at the start":
            fail_over()
        else:
            api.script = lambda page, attempt: fail_over()
        process = scripts.start("pipeline_orchestrator.py", COIN_LIMIT="100")
        read_log_until(process, "retrying for up to 30 s: the server at")
        assert (api.requests == []) == (moment == "at the start")
        api.script = lambda page, attempt: None
    result = scripts.finish(process)

    assert result.returncode == 0, result.stderr
    assert snapshots(own_database) == [(100, 100)]


@pytest.mark.slow
def test_a_server_that_stays_read_only_is_named_before_an_api_call_is_spent(
    scripts: Scripts, api: StubCoinGecko, own_database: OwnDatabase
):
    with own_database.globally(**no_writes(own_database.own, "read_only")):
        result = scripts.pipeline()

    one_line_error(result, 4, "takes no writes", "read-only", "set MYSQL_HOST")
    assert api.requests == []
    assert snapshots(own_database) == []


@pytest.mark.slow
def test_a_server_that_becomes_and_stays_read_only_while_the_fetch_runs_loses_no_snapshot(
    scripts: Scripts, api: StubCoinGecko, own_database: OwnDatabase
):
    """As when another server takes over, and this one goes on as its replica."""
    with ExitStack() as stack:

        def fail_over(page: int, attempt: int) -> None:
            stack.enter_context(own_database.globally(**no_writes(own_database.own, "transaction_read_only")))
            own_database.cut_sessions()

        api.script = fail_over
        started = time.monotonic()
        result = scripts.pipeline(COIN_LIMIT="100")
        assert 30 <= time.monotonic() - started < 60

    command = assert_failed_after_the_fetch(result, scripts, "takes no writes", "READ ONLY", "set MYSQL_HOST")
    assert snapshots(own_database) == []
    assert_loads(command, scripts, own_database, coins=100)


@pytest.fixture
def small_server(server_command: Command, server_data: Path, tmp_path: Path) -> Iterator[OwnServer]:
    """A server whose tables lie in one file that may not grow."""
    size = (server_data / "ibdata1").stat().st_size // 1024
    own = OwnServer(
        server_command,
        server_data,
        tmp_path / "small",
        "--innodb-file-per-table=OFF",
        f"--innodb-data-file-path=ibdata1:{size}K",
    )
    yield own
    own.remove()


def test_a_full_disk_loses_no_snapshot(small_server: OwnServer, scripts: Scripts, api: StubCoinGecko):
    api.coins = make_coins(1000)
    database = OwnDatabase(small_server)
    scripts.settings |= database.settings()
    database.execute("CREATE TABLE filler (id INT AUTO_INCREMENT PRIMARY KEY, filling VARCHAR(8000)) CHARSET ascii")
    for size in (8000, 100):
        with pytest.raises(mysql.connector.Error, match="is full"):
            while True:
                database.execute(f"INSERT INTO filler (filling) SELECT REPEAT('x', {size}) FROM (SELECT 1) one")

    result = scripts.pipeline(REQUESTS_PER_MINUTE="100")

    command = assert_failed_after_the_fetch(result, scripts, "no room left", "free disk space")
    assert snapshots(database) == []
    small_server.options = ()
    small_server.restart()
    assert_loads(command, scripts, database, coins=1000)


def test_a_server_that_takes_no_statement_of_a_whole_batch_loses_no_snapshot(
    scripts: Scripts, api: StubCoinGecko, own_database: OwnDatabase
):
    api.coins = make_coins(1000)

    with own_database.globally(max_allowed_packet=65_536):
        result = scripts.pipeline(REQUESTS_PER_MINUTE="100")

    command = assert_failed_after_the_fetch(result, scripts, "raise its max_allowed_packet")
    assert snapshots(own_database) == []
    assert_loads(command, scripts, own_database, coins=1000)
