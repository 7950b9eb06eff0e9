"""What a database does to a run: settings unlike the usual, read-only, full, cut off, killed, not whom it claims to be.

Whole scripts, on a server of the tests' own that is like the test server.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

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
)
from tests.stub_coingecko import SAMPLE_FILES, StubCoinGecko, read_sample

COINS = 120  # of the stub
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
    if not shared_server.is_running:  # a test that failed may have left it so
        shared_server.start()
    return shared_server


@pytest.fixture
def database(own: OwnServer) -> Iterator[OwnDatabase]:
    """A database of this test's on the server of the tests' own; `scripts` uses it, too."""
    database = OwnDatabase(own)
    yield database
    if not own.is_running:
        own.start()
    database.drop()


@pytest.fixture
def proxy(database: OwnDatabase, scripts: Scripts) -> Iterator[Proxy]:
    """The scripts reach the server through it."""
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
    assert stat.S_IMODE(kept.stat().st_mode) & stat.S_IWUSR
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
        {"sql_select_limit": 7},
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

    command = assert_failed_after_the_fetch(result, scripts, "no room left", "free some disk")
    assert snapshots(database) == []
    small_server.options = ()
    small_server.restart()
    assert_loads(command, scripts, database, coins=1000)
