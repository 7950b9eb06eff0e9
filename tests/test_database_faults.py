"""What a database does to a run: settings unlike the usual, read-only, full, cut off, killed, not whom it claims to be.

Whole scripts, on a server of the tests' own that is like the test server.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import NamedTuple

import mysql.connector
import pytest

from tests.conftest import PROJECT_DIR, Scripts, last_line, make_coin, make_coins
from tests.own_server import (
    Command,
    OwnDatabase,
    OwnServer,
    Proxy,
    Unavailable,
    find_command,
    make_data,
    wait_until,
)
from tests.stub_coingecko import SAMPLE_FILES, StubCoinGecko, read_sample

COINS = 120  # of the stub
LOGINS = "general.log"
FIRST_COIN, LAST_COIN = make_coin(1)["id"], make_coin(COINS)["id"]
ONE_SNAPSHOT = {"SNAPSHOT_MINUTES": "525600"}  # a second run renews the rows of the first
FIGURES = [
    "market_cap_rank",
    "current_price",
    "market_cap",
    "fully_diluted_valuation",
    "total_volume",
    "high_24h",
    "low_24h",
    "price_change_24h",
    "price_change_percentage_24h",
    "market_cap_change_24h",
    "market_cap_change_percentage_24h",
    "circulating_supply",
    "total_supply",
    "max_supply",
    "ath",
    "atl",
]


# --------------------------------------------------------------------------------------------- servers and databases


@pytest.fixture(scope="module")
def command(server: mysql.connector.MySQLConnection) -> Command:
    try:
        return find_command(server)
    except Unavailable as reason:
        pytest.skip(f"no server of the tests' own: {reason}")


@pytest.fixture(scope="module")
def template(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder to copy."""
    folder = tmp_path_factory.mktemp("template")
    try:
        make_data(command, folder / "data")
    except Unavailable as reason:
        pytest.skip(f"no server of the tests' own: {reason}")
    yield folder / "data"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared_server(command: Command, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    """One server for the tests that leave it as it was, or kill it."""
    with ExitStack() as stack:
        own = OwnServer(command, template, tmp_path_factory.mktemp("server") / "own")
        stack.callback(own.remove)
        yield own


@pytest.fixture
def own(shared_server: OwnServer) -> OwnServer:
    shared_server.start()  # a test that failed may have left it dead
    return shared_server


@pytest.fixture
def database(own: OwnServer) -> Iterator[OwnDatabase]:
    """A database of this test's on the server of the tests' own; `scripts` uses it, too."""
    database = OwnDatabase(own)
    yield database
    own.start()
    database.drop()


@pytest.fixture
def proxy(database: OwnDatabase, scripts: Scripts) -> Iterator[Proxy]:
    """The scripts reach the server through it, in the clear."""
    database.log_in()
    proxy = Proxy(database.own.port)
    scripts.settings["MYSQL_PORT"] = str(proxy.port)
    yield proxy
    proxy.close()


def snapshots(database: OwnDatabase) -> list[tuple[int, int]]:
    """Coins, and those with a tier, of each snapshot in the table, as soon as no lost session holds it any more."""
    database.execute("SELECT coin_id FROM crypto_prices FOR UPDATE")
    return database.execute("SELECT COUNT(*), COUNT(market_cap_tier) FROM crypto_prices GROUP BY timestamp")


def assert_recovered(result: subprocess.CompletedProcess[str], scripts: Scripts, database: OwnDatabase) -> None:
    """The run came through: one whole snapshot, its answer kept, and no error."""
    assert result.returncode == 0, result.stderr
    assert " ERROR " not in result.stderr
    assert snapshots(database) == [(COINS, COINS)]
    assert len(scripts.kept()) == 1


def assert_refused(result: subprocess.CompletedProcess[str], *parts: str) -> str:
    """The run ended with exit code 4 and one line of error, which holds `parts` and is returned."""
    assert result.returncode == 4, result.stderr
    errors = [line for line in result.stderr.splitlines() if " ERROR " in line]
    assert errors == [last_line(result.stderr)]
    for part in parts:
        assert part in errors[0]
    assert "Traceback" not in result.stderr
    return errors[0]


def assert_failed_after_the_fetch(result: subprocess.CompletedProcess[str], scripts: Scripts, *parts: str) -> list[str]:
    """The run ended so with its answer kept, and not marked as loaded. Returns the command that loads it."""
    line = assert_refused(result, *parts)
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
def loaded(scripts: Scripts, database: OwnDatabase) -> datetime:
    """The time of a snapshot in the table, which a run with ONE_SNAPSHOT renews."""
    assert scripts.pipeline(**ONE_SNAPSHOT).returncode == 0
    for path in scripts.kept():
        path.unlink()
    return database.execute("SELECT MAX(timestamp) FROM crypto_prices")[0][0]


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


def read_log_until(process: subprocess.Popen[str], part: str) -> None:
    """Return once `process` has logged a line with `part`."""
    lines = []
    while part not in (line := process.stderr.readline()):
        lines.append(line)
        assert line, lines  # an empty line is the end


# ------------------------------------------------------------------------------------- settings unlike the usual


ODD_NAME = "\\' \" \\\\ ` %s %(id)s \n\x1a\x00 {} -- \\"


def due_tier(market_cap: float | None) -> str:
    if not market_cap or market_cap < 0:
        return "Unknown"
    bounds = {1e10: "Large Cap", 1e9: "Mid Cap", 1e8: "Small Cap"}
    return next((tier for bound, tier in bounds.items() if market_cap >= bound), "Micro/Nano Cap")


def due_row(coin: dict) -> dict:
    """What the table holds of a coin of the sample market."""
    last_updated = coin["last_updated"]
    return {
        "timestamp": datetime(2025, 3, 30, 2, 30),
        "coin_id": coin["id"],
        "symbol": coin["symbol"],
        "name": coin["name"],
        **{figure: coin[figure] for figure in FIGURES},
        "price_change_percentage_1h": coin["price_change_percentage_1h_in_currency"],
        "price_change_percentage_7d": coin["price_change_percentage_7d_in_currency"],
        "last_updated": last_updated and datetime.fromisoformat(last_updated).astimezone(UTC).replace(tzinfo=None),
        "market_cap_tier": due_tier(coin["market_cap"]),
    }


@pytest.mark.parametrize(
    "variables",
    [
        {"sql_mode": ""},
        {"sql_mode": "TRADITIONAL,NO_AUTO_VALUE_ON_ZERO,PAD_CHAR_TO_FULL_LENGTH"},
        {"sql_mode": "ANSI"},
        {"sql_mode": "ANSI_QUOTES,PIPES_AS_CONCAT,IGNORE_SPACE,NO_BACKSLASH_ESCAPES"},
        {"time_zone": "+05:30"},
        {"time_zone": "-11:00"},
        {"autocommit": 1},
        {"autocommit": 0},
        {"isolation": "SERIALIZABLE"},
        {"isolation": "READ-UNCOMMITTED"},
        {"sql_safe_updates": 1},
        {"max_allowed_packet": 65_536},
        {"character_set_server": "latin1", "collation_server": "latin1_swedish_ci"},
        {"completion_type": "CHAIN"},
        {"sql_select_limit": 1},
    ],
    ids=lambda variables: ",".join(f"{name}={value}" for name, value in variables.items()),
)
def test_a_server_with_other_settings_comes_to_the_same_rows(
    scripts: Scripts, database: OwnDatabase, tmp_path: Path, variables: dict[str, object]
):
    coins = [*read_sample(SAMPLE_FILES[0]), make_coin(100, name=ODD_NAME, symbol="\\", last_updated=None)]
    kept = tmp_path / "kept.json.gz"
    kept.write_bytes(gzip.compress(json.dumps({"timestamp": "2025-03-30T02:30:00Z", "coins": coins}).encode()))
    variables = {database.own.isolation if name == "isolation" else name: value for name, value in variables.items()}

    with database.globally(**variables):
        result = scripts.pipeline("--replay", kept)

    assert result.returncode == 0, result.stderr
    due = [due_row(coin) for coin in sorted(coins, key=lambda coin: coin["id"])]
    columns = ", ".join(due[0])
    found = database.execute(f"SELECT {columns} FROM crypto_prices ORDER BY coin_id")
    assert [dict(zip(due[0], row, strict=True)) for row in found] == due


def test_a_server_that_takes_no_statement_of_a_whole_batch_names_max_allowed_packet(
    scripts: Scripts, api: StubCoinGecko, database: OwnDatabase
):
    api.coins = make_coins(1000)

    with database.globally(max_allowed_packet=65_536):
        result = scripts.pipeline(REQUESTS_PER_MINUTE="100")

    command = assert_failed_after_the_fetch(result, scripts, "raise its max_allowed_packet")
    assert snapshots(database) == []
    assert_loads(command, scripts, database, coins=1000)


# ---------------------------------------------------------------------------------------------- read-only, full, locked

READ_ONLY = ["read_only", "super_read_only", "transaction_read_only"]


def read_only_variables(own: OwnServer, variable: str) -> dict[str, int]:
    if own.is_mariadb:
        if variable == "super_read_only":
            pytest.skip("MariaDB has no super_read_only")
        variable = variable.replace("transaction_", "tx_")
    return {"read_only": 1, variable: 1} if variable == "super_read_only" else {variable: 1}


@pytest.mark.parametrize("variable", READ_ONLY)
def test_a_read_only_server_is_said_before_an_api_call_is_spent(
    scripts: Scripts, api: StubCoinGecko, database: OwnDatabase, variable: str
):
    with database.globally(**read_only_variables(database.own, variable)):
        result = scripts.pipeline()

    assert_refused(result, "is read-only", "MYSQL_HOST")
    assert api.requests == []
    assert snapshots(database) == []


@pytest.mark.parametrize("variable", READ_ONLY)
def test_a_server_that_becomes_read_only_while_the_fetch_runs_costs_no_answer(
    scripts: Scripts, api: StubCoinGecko, database: OwnDatabase, variable: str
):
    """As when another server takes over, and this one goes on as its replica."""
    with ExitStack() as stack:

        def fail_over(page: int, attempt: int) -> None:
            stack.enter_context(database.globally(**read_only_variables(database.own, variable)))
            database.cut_sessions()

        read_only_variables(database.own, variable)  # skips
        api.script = fail_over
        result = scripts.pipeline(COIN_LIMIT=str(COINS))

    command = assert_failed_after_the_fetch(result, scripts, "is read-only", "MYSQL_HOST")
    assert snapshots(database) == []
    assert_loads(command, scripts, database)


def test_a_password_that_changes_while_the_fetch_runs_costs_no_answer(
    scripts: Scripts, api: StubCoinGecko, database: OwnDatabase
):
    def change_the_password(page: int, attempt: int) -> None:
        database.execute(f"ALTER USER '{database.user}'@'%' IDENTIFIED BY 'another'")
        database.cut_sessions()

    api.script = change_the_password
    result = scripts.pipeline(COIN_LIMIT=str(COINS))

    command = assert_failed_after_the_fetch(
        result, scripts, f"refused the login of '{database.user}'", "MYSQL_PASSWORD"
    )
    assert snapshots(database) == []
    scripts.settings["MYSQL_PASSWORD"] = "another"
    assert_loads(command, scripts, database)


@pytest.fixture
def small_server(command: Command, template: Path, tmp_path: Path) -> Iterator[OwnServer]:
    """A server whose tables lie in one file that may not grow."""
    size = (template / "ibdata1").stat().st_size // 1024
    own = OwnServer(
        command,
        template,
        tmp_path / "small",
        "--innodb-file-per-table=OFF",
        f"--innodb-data-file-path=ibdata1:{size}K",
    )
    yield own
    own.remove()


def test_a_full_disk_costs_no_answer(small_server: OwnServer, scripts: Scripts, api: StubCoinGecko):
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


# ------------------------------------------------------------------------------------------------- connections cut off

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
def test_a_connection_cut_once_costs_one_more_try(scripts: Scripts, database: OwnDatabase, proxy: Proxy, cut: dict):
    proxy.cut_at(**cut)

    result = scripts.pipeline()

    assert proxy.cuts == 1
    assert result.stderr.count("retrying for up to 30 s: the connection to MySQL") == 1
    assert_recovered(result, scripts, database)


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(cut, id=name, marks=() if name == "after a tier" else pytest.mark.slow)
        for name, cut in CUTS.items()
    ],
)
def test_a_connection_cut_every_time_costs_no_answer(scripts: Scripts, database: OwnDatabase, proxy: Proxy, cut: dict):
    proxy.cut_at(**cut, times=math.inf)

    result = scripts.pipeline()

    assert proxy.cuts > 1
    command = assert_failed_after_the_fetch(result, scripts, "connection to MySQL", "was lost", "run again")
    # what was committed is there, even if no answer told the script so
    assert snapshots(database) == ([(COINS, COINS)] if cut == CUTS["after COMMIT, before its answer"] else [])
    proxy.rules.clear()
    assert_loads(command, scripts, database)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["after the upsert", "after a tier"])
def test_a_second_run_of_a_snapshot_that_is_cut_off_leaves_every_row_as_the_first_one_wrote_it(
    scripts: Scripts, api: StubCoinGecko, database: OwnDatabase, proxy: Proxy, moment: str
):
    assert scripts.pipeline(**ONE_SNAPSHOT).returncode == 0
    first = database.execute("SELECT * FROM crypto_prices")
    api.coins = [coin | {"name": "renewed", "market_cap": 1.0} for coin in api.coins]
    proxy.cut_at(**CUTS[moment], times=math.inf)

    result = scripts.pipeline(**ONE_SNAPSHOT)

    assert proxy.cuts > 1
    assert result.returncode == 4
    assert snapshots(database) == [(COINS, COINS)]
    assert database.execute("SELECT * FROM crypto_prices") == first


@pytest.mark.slow
def test_a_connection_on_which_no_answer_comes_is_given_up_and_made_anew(
    scripts: Scripts, database: OwnDatabase, proxy: Proxy
):
    proxy.cut_at(UPSERT, is_silent=True)

    result = scripts.pipeline()

    assert proxy.cuts == 1
    assert_recovered(result, scripts, database)


def test_segmentation_alone_survives_a_cut_connection(scripts: Scripts, database: OwnDatabase, proxy: Proxy):
    assert scripts.run("etl_crypto.py").returncode == 0
    proxy.cut_at(TIERING, after=TIERING, is_sent=True)

    result = scripts.run("segment_and_load.py")

    assert proxy.cuts == 1
    assert_recovered(result, scripts, database)


def test_a_connection_cut_while_idle_in_a_fetch_is_made_anew(
    scripts: Scripts, api: StubCoinGecko, database: OwnDatabase, proxy: Proxy
):
    api.script = lambda page, attempt: proxy.cut_all()

    result = scripts.pipeline(COIN_LIMIT=str(COINS))

    assert proxy.cuts >= 1
    assert "retrying for up to" not in result.stderr
    assert_recovered(result, scripts, database)


def test_a_session_that_the_server_ends_while_idle_in_a_fetch_is_made_anew(
    scripts: Scripts, api: StubCoinGecko, database: OwnDatabase
):
    def stay_idle(page: int, attempt: int) -> None:
        wait_until(lambda: not database.running(), "the end of the idle session")

    api.script = stay_idle
    with database.globally(wait_timeout=1):
        process = scripts.start("pipeline_orchestrator.py", COIN_LIMIT=str(COINS))
        api.wait_for_requests(1)
    result = scripts.finish(process)

    assert "retrying for up to" not in result.stderr
    assert_recovered(result, scripts, database)


# ---------------------------------------------------------------------------------------- a server that is killed


def test_a_server_killed_in_the_upsert_and_started_again_gets_the_snapshot(
    scripts: Scripts, database: OwnDatabase, loaded: datetime
):
    with holding_a_row(database, loaded, LAST_COIN):
        process = scripts.start("pipeline_orchestrator.py", **ONE_SNAPSHOT)
        database.wait_for_statement("INSERT INTO crypto_prices")
        database.own.kill()
    read_log_until(process, "retrying for up to")
    database.own.start()
    result = scripts.finish(process)

    assert_recovered(result, scripts, database)


def test_a_server_killed_in_the_segmentation_and_started_again_gets_the_snapshot(
    scripts: Scripts, database: OwnDatabase
):
    other_snapshot = datetime(2020, 1, 1)
    database.execute(
        "INSERT INTO crypto_prices (timestamp, coin_id, symbol, name) VALUES (%s, 'untiered', '', '')",
        (other_snapshot,),
    )
    with holding_a_row(database, other_snapshot, "untiered"):
        process = scripts.start("pipeline_orchestrator.py")
        database.wait_for_statement("SELECT timestamp, coin_id, market_cap")
        database.own.kill()
    read_log_until(process, "retrying for up to")
    database.own.start()
    result = scripts.finish(process)

    database.execute("DELETE FROM crypto_prices WHERE timestamp = %s", (other_snapshot,))
    assert_recovered(result, scripts, database)


@pytest.mark.parametrize("is_sent", [False, True], ids=["before COMMIT", "after COMMIT, before its answer"])
def test_a_server_killed_at_commit_and_started_again_has_the_snapshot(
    scripts: Scripts, database: OwnDatabase, proxy: Proxy, is_sent: bool
):
    def die_and_come_back() -> None:
        database.own.restart()
        database.log_in()

    proxy.cut_at(COMMIT, after=TIERING, is_sent=is_sent, action=die_and_come_back)

    result = scripts.pipeline()

    assert proxy.cuts == 1
    assert_recovered(result, scripts, database)


def test_a_server_killed_while_the_fetch_runs_and_started_again_gets_the_snapshot(
    scripts: Scripts, api: StubCoinGecko, database: OwnDatabase
):
    api.script = lambda page, attempt: database.own.kill()
    process = scripts.start("pipeline_orchestrator.py", COIN_LIMIT=str(COINS))
    read_log_until(process, "retrying for up to")
    database.own.start()
    result = scripts.finish(process)

    assert_recovered(result, scripts, database)


@pytest.mark.slow
def test_a_server_that_stays_away_costs_no_answer(scripts: Scripts, database: OwnDatabase, proxy: Proxy):
    def die() -> None:
        database.own.kill()
        proxy.close()

    proxy.cut_at(TIERING, is_sent=True, action=die)

    result = scripts.pipeline()

    command = assert_failed_after_the_fetch(result, scripts, "no MySQL server answers at", "start it")
    database.own.start()
    assert snapshots(database) == []
    scripts.settings["MYSQL_PORT"] = str(database.own.port)
    assert_loads(command, scripts, database)


@pytest.mark.slow
def test_a_server_killed_at_any_moment_gets_whole_snapshots_only(
    scripts: Scripts, api: StubCoinGecko, database: OwnDatabase
):
    random = Random(3)
    begun = time.monotonic()
    assert scripts.pipeline().returncode == 0
    whole_run = time.monotonic() - begun
    for _ in range(10):
        database.execute("DELETE FROM crypto_prices")
        for path in scripts.kept():
            path.unlink()
        api.requests.clear()
        process = scripts.start("pipeline_orchestrator.py")
        api.wait_for_requests(1)
        with suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0, 0.7) * whole_run)
        database.own.restart()
        result = scripts.finish(process)

        assert_recovered(result, scripts, database)


# ---------------------------------------------------------------------------------------------------- second writers


def deadlocks(database: OwnDatabase) -> int:
    [(count,)] = database.execute("SELECT count FROM information_schema.innodb_metrics WHERE name = 'lock_deadlocks'")
    return count


def test_a_deadlock_with_another_writer_costs_one_more_try(scripts: Scripts, database: OwnDatabase, loaded: datetime):
    before = deadlocks(database)
    update = "UPDATE crypto_prices SET name = 'theirs' WHERE timestamp = %s AND coin_id = %s"
    with database.connect() as other, other.cursor() as cursor:
        cursor.execute(  # InnoDB rolls back whoever has written less
            "INSERT INTO crypto_prices (timestamp, coin_id, symbol, name, market_cap_tier) SELECT '2020-01-01',"
            " CONCAT(a.coin_id, b.coin_id), '', '', '' FROM crypto_prices a, crypto_prices b LIMIT 2000"
        )
        cursor.execute(update, (loaded, LAST_COIN))
        process = scripts.start("pipeline_orchestrator.py", **ONE_SNAPSHOT)
        database.wait_for_statement("INSERT INTO crypto_prices")
        cursor.execute(update, (loaded, FIRST_COIN))
        read_log_until(process, "retrying for up to")
        other.rollback()
    result = scripts.finish(process)

    assert deadlocks(database) == before + 1
    assert_recovered(result, scripts, database)


@pytest.mark.slow
def test_a_row_that_another_writer_keeps_locked_costs_no_answer(
    scripts: Scripts, database: OwnDatabase, loaded: datetime
):
    with holding_a_row(database, loaded, LAST_COIN):
        result = scripts.pipeline(**ONE_SNAPSHOT)

    command = assert_failed_after_the_fetch(result, scripts, "other sessions hold locks on", "end them")
    assert snapshots(database) == [(COINS, COINS)]
    assert_loads(command, scripts, database)


# ------------------------------------------------------------------------------------------------------------- TLS


class Certificates(NamedTuple):
    """PEM files: the server's certificate, which is for the name localhost, its CA, and a CA of somebody else's."""

    ca: Path
    other_ca: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl command, which makes the certificates")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new_key = ["-newkey", "rsa:2048", "-nodes"]
    for name in ("ca", "other-ca"):
        openssl("req", "-x509", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    openssl("req", *new_key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName = DNS:localhost\n", encoding="ascii")
    signed_by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
    openssl("x509", "-req", "-in", "server.csr", "-out", "server.pem", *signed_by)
    return Certificates(*(folder / name for name in ("ca.pem", "other-ca.pem", "server.pem", "server.key")))


@pytest.fixture(scope="module")
def tls_server(
    command: Command, template: Path, tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[OwnServer]:
    own = OwnServer(
        command,
        template,
        tmp_path_factory.mktemp("tls") / "server",
        f"--ssl-ca={certificates.ca}",
        f"--ssl-cert={certificates.certificate}",
        f"--ssl-key={certificates.key}",
        "--general-log=ON",
        f"--general-log-file={LOGINS}",
    )
    yield own
    own.remove()


@pytest.fixture
def tls_scripts(scripts: Scripts, tls_server: OwnServer, certificates: Certificates) -> Iterator[Scripts]:
    """The scripts, as they should be set for the server with TLS, by an account that has to use it."""
    database = OwnDatabase(tls_server)
    database.execute(f"ALTER USER '{database.user}'@'%' REQUIRE SSL")
    scripts.settings |= database.settings() | {"MYSQL_HOST": "localhost", "MYSQL_SSL_CA": str(certificates.ca)}
    yield scripts
    database.drop()


def has_login(own: OwnServer, scripts: Scripts) -> bool:
    log = (own.folder / "data" / LOGINS).read_text(encoding="utf-8", errors="replace")
    return f"\t{scripts.settings['MYSQL_USER']}@" in log


def test_a_server_with_a_certificate_of_the_right_ca_and_name_is_trusted(tls_scripts: Scripts, tls_server: OwnServer):
    result = tls_scripts.pipeline()

    assert result.returncode == 0, result.stderr
    assert has_login(tls_server, tls_scripts)


@pytest.mark.parametrize("wrong", ["CA", "name"])
def test_a_server_with_a_certificate_of_another_is_refused(
    tls_scripts: Scripts, tls_server: OwnServer, api: StubCoinGecko, certificates: Certificates, wrong: str
):
    if wrong == "CA":
        result = tls_scripts.pipeline(MYSQL_SSL_CA=str(certificates.other_ca))
    else:
        result = tls_scripts.pipeline(MYSQL_HOST="127.0.0.1")

    assert_refused(result, "no trusted TLS connection to", "check MYSQL_SSL_CA", "MYSQL_HOST is the name in")
    assert not has_login(tls_server, tls_scripts)
    assert api.requests == []


@pytest.fixture
def plain_server(command: Command, template: Path, tmp_path: Path) -> Iterator[OwnServer]:
    """A server without TLS."""
    own = OwnServer(command, template, tmp_path / "plain", "--skip-ssl" if command.is_mariadb else "--tls-version=")
    yield own
    own.remove()


@pytest.mark.parametrize("where", ["on the server", "on the way"])
def test_a_server_without_tls_is_refused_when_there_is_a_ca(
    request: pytest.FixtureRequest, tls_scripts: Scripts, tls_server: OwnServer, api: StubCoinGecko, where: str
):
    own = request.getfixturevalue("plain_server") if where == "on the server" else tls_server
    with closing(Proxy(own.port)) as proxy:  # which takes TLS off
        result = tls_scripts.pipeline(MYSQL_PORT=str(proxy.port))

    assert_refused(result, "no trusted TLS connection to", "check MYSQL_SSL_CA")
    assert tls_scripts.settings["MYSQL_USER"].encode() not in proxy.sent
    assert api.requests == []
