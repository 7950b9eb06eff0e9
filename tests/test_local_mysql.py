"""sql/local_mysql.sh, on a copy of the project in a folder with a long name that has a space in it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR, SETTING_PREFIXES
from tests.stub_coingecko import SAMPLE_FILES

SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/usr/local/bin"])
pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="a script for Linux and macOS"),
    pytest.mark.skipif(
        not any(shutil.which(server, path=SBIN) for server in ("mysqld", "mariadbd")), reason="no server binary here"
    ),
]
COUNT = "from os import environ as e; import mysql.connector as m; c = m.connect(host=e['MYSQL_HOST'],"
COUNT += " port=e['MYSQL_PORT'], user=e['MYSQL_USER'], password=e['MYSQL_PASSWORD'], database=e['MYSQL_DATABASE']);"
COUNT += " k = c.cursor(); k.execute('SELECT COUNT(*) FROM crypto_prices'); print(k.fetchone()[0])"


class Project:
    """A copy of the project with the packages of the Python that runs the tests, so that nothing is installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / ".mysql"
        shutil.copytree(PROJECT_DIR / "sql", folder / "sql")
        shutil.copy(PROJECT_DIR / "requirements.txt", folder)
        venv = folder / ".venv"
        venv.mkdir()
        for entry in Path(sys.prefix).iterdir():
            if not entry.name.startswith("installed"):
                (venv / entry.name).symlink_to(entry)
        shutil.copy(PROJECT_DIR / "requirements.txt", venv / "installed.txt")

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        bare = {key: value for key, value in os.environ.items() if not key.startswith((*SETTING_PREFIXES, "TEST_"))}
        return subprocess.Popen(
            ["bash", self.folder / "sql" / "local_mysql.sh", *command],
            env=bare | variables,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """The end of a call. Its pipes end with it only if the server that it started has not inherited them."""
        process = self.start(*command, **variables)
        stdout, stderr = process.communicate(timeout=100)
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    def load_sample(self, **variables: str) -> None:
        orchestrator = str(PROJECT_DIR / "pipeline_orchestrator.py")
        loaded = self.run("python", orchestrator, "-q", "--replay", str(SAMPLE_FILES[0]), **variables, SNAPSHOT_DIR="")
        assert loaded.returncode == 0, loaded.stderr

    def count(self, **variables: str) -> str:
        return self.run("python", "-c", COUNT, **variables).stdout.strip()

    def server_pid(self) -> int:
        return int((self.home / "data" / "mysqld.pid").read_text())

    def port(self) -> int:
        return int((self.home / "port").read_text())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("local") / f"{'a long name ' * 12}")
    yield project
    project.run("--stop")


@pytest.fixture
def bare_project(tmp_path: Path) -> Iterator[Project]:
    """One that has never been started."""
    project = Project(tmp_path / "bare")
    yield project
    project.run("--stop")


# ------------------------------------------------------------------------------------- the database that a command gets


def test_the_command_gets_a_database_and_its_exit_code_and_output_pass_through(project: Project):
    result = project.run("python", "-c", f"{COUNT}; raise SystemExit(7)")

    assert (result.returncode, result.stdout) == (7, "0\n"), result.stderr


def test_the_sample_market_loads_into_it(project: Project):
    project.load_sample()

    assert project.count() == "99"


def test_another_database_is_made_when_it_is_named_and_printed_once(project: Project):
    first = project.run("python", "-c", COUNT, MYSQL_DATABASE="crypto_other")
    second = project.run("python", "-c", COUNT, MYSQL_DATABASE="crypto_other")

    assert first.stdout == second.stdout == "0\n"
    assert "database  crypto_other" in first.stderr
    assert second.stderr == ""


def test_its_accounts_have_their_rights_and_the_passwords_of_its_files_again_with_each_start(project: Project):
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
def test_a_client_opens_as_the_account_that_only_reads(project: Project):
    shown = project.run(
        "mysql", "-N", "-e", "SELECT COUNT(*), USER() FROM crypto_prices", MYSQL_DATABASE="crypto_client"
    )
    refused = project.run("mysql", "-e", "DELETE FROM crypto_prices", MYSQL_DATABASE="crypto_client")

    assert shown.stdout.startswith("0\tcrypto_reader@"), shown.stderr
    assert "denied" in refused.stderr


# ----------------------------------------------------------------------------------------------------------- the server


def test_its_passwords_are_of_its_own_and_never_shown(project: Project):
    shown = project.run("true", MYSQL_DATABASE="crypto_shown")
    files = sorted(project.home.glob("*.password"))
    passwords = {path.read_text().strip() for path in files}

    assert [path.stem for path in files] == ["crypto_etl", "crypto_reader", "root"]
    assert len(passwords) == 3
    assert all(path.stat().st_mode & 0o077 == 0 for path in (*files, project.home))
    assert not any(password in shown.stdout + shown.stderr for password in passwords)


def test_a_killed_server_comes_back_with_its_data(project: Project):
    project.load_sample(MYSQL_DATABASE="crypto_killed")
    os.kill(project.server_pid(), signal.SIGKILL)

    assert project.count(MYSQL_DATABASE="crypto_killed") == "99"


def test_a_port_that_somebody_else_took_is_passed_over(project: Project):
    project.run("true")
    port = project.port()
    project.run("--stop")
    with socket.create_server(("127.0.0.1", port)):
        assert project.count().isdigit()
        assert project.port() != port


def test_it_listens_on_this_machine_only(project: Project):
    project.run("true")
    options = Path(f"/proc/{project.server_pid()}/cmdline")
    if not options.exists():
        pytest.skip("no /proc here")

    assert "--bind-address=127.0.0.1" in options.read_text().split("\0")


def test_two_at_once_on_a_bare_project_share_one_server(bare_project: Project):
    both = [bare_project.start("python", "-c", COUNT) for _ in range(2)]

    assert [process.communicate(timeout=100)[0] for process in both] == ["0\n", "0\n"]


# ---------------------------------------------------------------------------------------------------- --stop and errors


def test_stop_stops_the_server_and_reports_it(bare_project: Project):
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
    project: Project, command: list[str], variables: dict[str, str], part: str
):
    result = project.run(*command, **variables)

    assert result.returncode != 0
    assert result.stderr.startswith("local_mysql: ")
    assert result.stderr.count("\n") == 1
    assert part in result.stderr
