"""sql/local_mysql.sh, on a copy of the project in a folder with a long name that has a space in it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.installation import COUNT, SBIN, Checkout

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="a script for Linux and macOS"),
    pytest.mark.skipif(
        not any(shutil.which(server, path=SBIN) for server in ("mysqld", "mariadbd")), reason="no server binary here"
    ),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    project = Checkout(tmp_path_factory.mktemp("local") / f"{'a long name ' * 12}")
    yield project
    project.run("--stop")


@pytest.fixture
def bare_project(tmp_path: Path) -> Iterator[Checkout]:
    """One that has never been started."""
    project = Checkout(tmp_path / "bare")
    yield project
    project.run("--stop")


# ------------------------------------------------------------------------------------- the database that a command gets


def test_the_command_gets_a_database_and_its_exit_code_and_output_pass_through(project: Checkout):
    result = project.run("python", "-c", f"{COUNT}; raise SystemExit(7)")

    assert (result.returncode, result.stdout) == (7, "0\n"), result.stderr


def test_the_sample_market_loads_into_it(project: Checkout):
    project.load_sample()

    assert project.count() == "99"


def test_another_database_is_made_when_it_is_named_and_printed_once(project: Checkout):
    first = project.run("python", "-c", COUNT, MYSQL_DATABASE="crypto_other")
    second = project.run("python", "-c", COUNT, MYSQL_DATABASE="crypto_other")

    assert first.stdout == second.stdout == "0\n"
    assert "database  crypto_other" in first.stderr
    assert second.stderr == ""


def test_its_accounts_have_their_rights_and_the_passwords_of_its_files_again_with_each_start(project: Checkout):
    change = "ALTER USER crypto_etl IDENTIFIED BY 'another', crypto_reader IDENTIFIED BY 'another'"
    revoke = "REVOKE DELETE, INSERT ON crypto_changed.crypto_prices FROM crypto_etl"
    as_root = "import mysql.connector as m, os; e = os.environ; c = m.connect(host='127.0.0.1', user='root',"
    as_root += " port=e['MYSQL_PORT'], password=e['TEST_MYSQL_PASSWORD']); k = c.cursor()"
    changed = project.run(
        "python", "-c", f'{as_root}; k.execute("{change}"); k.execute("{revoke}")', MYSQL_DATABASE="crypto_changed"
    )
    assert changed.returncode == 0, changed.stderr

    project.load_sample(MYSQL_DATABASE="crypto_changed")

    reader = COUNT.replace("e['MYSQL_USER']", "'crypto_reader'").replace(
        "e['MYSQL_PASSWORD']", f"open({str(project.home / 'crypto_reader.password')!r}).read().strip()"
    )
    assert project.run("python", "-c", reader, MYSQL_DATABASE="crypto_changed").stdout == "99\n"
    assert not (project.folder / ".env").exists()


@pytest.mark.skipif(not (shutil.which("mysql") or shutil.which("mariadb")), reason="no client here")
def test_a_client_opens_as_the_account_that_only_reads(project: Checkout):
    shown = project.run(
        "mysql", "-N", "-e", "SELECT COUNT(*), USER() FROM crypto_prices", MYSQL_DATABASE="crypto_client"
    )
    refused = project.run("mysql", "-e", "DELETE FROM crypto_prices", MYSQL_DATABASE="crypto_client")

    assert shown.stdout.startswith("0\tcrypto_reader@"), shown.stderr
    assert "denied" in refused.stderr


# ----------------------------------------------------------------------------------------------------------- the server


def test_its_passwords_are_of_its_own_and_never_shown(project: Checkout):
    shown = project.run("true", MYSQL_DATABASE="crypto_shown")
    files = sorted(project.home.glob("*.password"))
    passwords = {path.read_text().strip() for path in files}

    assert [path.stem for path in files] == ["crypto_etl", "crypto_reader", "root"]
    assert len(passwords) == 3
    assert all(path.stat().st_mode & 0o077 == 0 for path in (*files, project.home))
    assert not any(password in shown.stdout + shown.stderr for password in passwords)


def test_passwords_that_were_deleted_are_made_anew(project: Checkout):
    project.load_sample(MYSQL_DATABASE="crypto_forgotten")
    for path in project.home.glob("*.password"):
        path.unlink()

    assert project.count(MYSQL_DATABASE="crypto_forgotten") == "99"


def test_a_killed_server_comes_back_with_its_data(project: Checkout):
    project.load_sample(MYSQL_DATABASE="crypto_killed")
    os.kill(project.server_pid(), signal.SIGKILL)

    assert project.count(MYSQL_DATABASE="crypto_killed") == "99"


def test_a_port_that_somebody_else_took_is_passed_over(project: Checkout):
    project.run("true")
    port = project.port()
    project.run("--stop")
    with socket.create_server(("127.0.0.1", port)):
        assert project.count().isdigit()
        assert project.port() != port


def test_it_listens_on_this_machine_only(project: Checkout):
    project.run("true")
    options = Path(f"/proc/{project.server_pid()}/cmdline")
    if not options.exists():
        pytest.skip("no /proc here")

    assert "--bind-address=127.0.0.1" in options.read_text().split("\0")


def test_two_at_once_on_a_bare_project_share_one_server(bare_project: Checkout):
    both = [bare_project.start("python", "-c", COUNT) for _ in range(2)]

    assert [process.communicate(timeout=100)[0] for process in both] == ["0\n", "0\n"]


# ---------------------------------------------------------------------------------------------------- --stop and errors


def test_stop_stops_the_server_and_reports_it(bare_project: Checkout):
    bare_project.run("true")
    address = ("127.0.0.1", bare_project.port())
    socket.create_connection(address).close()

    stopped = bare_project.run("--stop")
    again = bare_project.run("--stop")

    assert (stopped.returncode, stopped.stderr) == (0, "local_mysql: the server has stopped\n")
    assert "no server is running" in again.stderr
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


@pytest.mark.parametrize(
    ("command", "variables", "part"),
    [
        (["true"], {"MYSQL_DATABASE": "mysql"}, "the database cannot be 'mysql'"),
        (["--with", "nowhere.txt", "true"], {}, "there is no file nowhere.txt"),
        ([], {}, "usage:"),
    ],
)
def test_what_it_cannot_do_is_named_in_one_line(
    project: Checkout, command: list[str], variables: dict[str, str], part: str
):
    result = project.run(*command, **variables)

    assert result.returncode != 0
    assert result.stderr.startswith("local_mysql: ")
    assert result.stderr.count("\n") == 1
    assert part in result.stderr
