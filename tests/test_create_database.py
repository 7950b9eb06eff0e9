"""sql/create_database.py, in a copy of the project, on a server of the tests' own with nothing of the project on it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mysql.connector
import pytest

from sql.create_database import new_password
from tests.conftest import posix_only
from tests.installation import DATABASES, PASSWORD, Installation, reader_password
from tests.own_server import OwnServer
from tests.stub_coingecko import SAMPLE_FILES

pytestmark = posix_only
NEWEST = SAMPLE_FILES[-1]  # 99 coins


@pytest.fixture
def installation(tmp_path: Path, own_server: OwnServer) -> Iterator[Installation]:
    installation = Installation(tmp_path / "my crypto", own_server)
    yield installation
    installation.clean()


# ------------------------------------------------------------------------------------------------------- what it makes


def test_after_it_the_pipeline_runs_and_the_dashboard_may_read(installation: Installation):
    shown = installation.made()

    loaded = installation.pipeline("-q", "--replay", NEWEST)
    status = installation.pipeline("--status")
    assert (loaded.returncode, loaded.stderr) == (0, "")
    assert "99 coins" in status.stdout, status.stderr
    assert installation.env_file.stat().st_mode & 0o777 == 0o600
    assert installation.env()["MYSQL_PASSWORD"] not in shown
    for line in (f"server    localhost:{installation.own.port}", "database  crypto_db", "user      crypto_reader"):
        assert f"  {line}\n" in shown
    reader = {"user": "crypto_reader", "password": reader_password(shown), "database": "crypto_db"}
    connection = mysql.connector.connect(host="127.0.0.1", port=installation.own.port, **reader)
    with closing(connection), connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM crypto_prices")
        assert cursor.fetchall() == [(99,)]
        with pytest.raises(mysql.connector.ProgrammingError, match="denied"):
            cursor.execute("DELETE FROM crypto_prices")


def test_each_installation_gets_passwords_of_its_own(installation: Installation):
    first = {reader_password(installation.made()), installation.env()["MYSQL_PASSWORD"]}
    installation.execute("DROP USER crypto_etl, crypto_reader")
    installation.env_file.unlink()

    second = {reader_password(installation.made()), installation.env()["MYSQL_PASSWORD"]}

    assert len(first | second) == 4


@pytest.mark.parametrize("database", DATABASES[1:])
def test_a_database_of_any_name_is_made_and_found_again(installation: Installation, database: str):
    installation.made("--database", database)

    assert installation.env()["MYSQL_DATABASE"] == database
    assert installation.pipeline("-q", "--replay", NEWEST).returncode == 0
    assert installation.made("--database", database).startswith(f"localhost:{installation.own.port}: made nothing")


def test_the_server_of_this_machine_is_reached_through_its_socket(installation: Installation):
    installation.made("--socket", installation.own.folder / "data" / "mysqld.sock")

    assert installation.env()["MYSQL_PORT"] == str(installation.own.port)
    assert installation.pipeline("-q", "--replay", NEWEST).returncode == 0


def test_an_administrator_without_a_password_is_asked_for_none_at_the_socket(installation: Installation):
    installation.execute("CREATE USER admin@localhost")
    installation.execute("GRANT ALL ON *.* TO admin@localhost WITH GRANT OPTION")
    del installation.environment["MYSQL_ADMIN_PASSWORD"]
    try:
        installation.made("--socket", installation.own.folder / "data" / "mysqld.sock", "--user", "admin")
    finally:
        installation.execute("DROP USER admin@localhost")


def test_every_password_has_letters_of_both_cases_digits_and_dashes():
    for _ in range(2_000):
        password = new_password()
        assert re.fullmatch(PASSWORD, password)
        assert all(len(re.findall(kind, password)) >= 3 for kind in ("[A-Z]", "[a-z]", "[0-9]"))


def test_a_strict_password_policy_is_met(installation: Installation):
    is_mariadb = installation.own.is_mariadb
    plugin = "SONAME 'simple_password_check'" if is_mariadb else "COMPONENT 'file://component_validate_password'"
    try:
        installation.execute(f"INSTALL {plugin}")
    except mysql.connector.Error as error:
        pytest.skip(f"this server has no password policy: {error}")
    try:
        if is_mariadb:
            installation.execute(
                "SET GLOBAL simple_password_check_digits = 3, simple_password_check_minimal_length = 20"
            )
        else:
            installation.execute("SET GLOBAL validate_password.policy = STRONG, validate_password.length = 20")
            installation.execute("SET GLOBAL password_history = 5")
        installation.made()
        installation.made("--new-passwords")
    finally:
        installation.execute("SET GLOBAL password_history = 0") if not is_mariadb else None
        installation.execute(f"UNINSTALL {plugin}")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root acts for others, as sudo does")
def test_under_sudo_the_settings_belong_to_the_owner_of_the_project(installation: Installation):
    os.chown(installation.folder, 65534, 65534)

    installation.made()

    assert installation.env_file.stat().st_uid == 65534


def test_the_password_is_asked_for_on_the_terminal_and_not_shown(installation: Installation):
    import pty  # which Windows lacks

    environment = installation.environment.copy()
    password = environment.pop("MYSQL_ADMIN_PASSWORD")
    command = [sys.executable, installation.folder / "sql" / "create_database.py", "--port", str(installation.own.port)]
    process_id, terminal = pty.fork()
    if process_id == 0:
        os.execve(command[0], list(map(str, command)), environment)
    shown = b""
    while b"password of root" not in shown:
        shown += os.read(terminal, 1000)
    os.write(terminal, f"{password}\n".encode())
    try:
        while chunk := os.read(terminal, 1000):
            shown += chunk
    except OSError:  # the end, on Linux
        pass
    _, status = os.waitpid(process_id, 0)
    os.close(terminal)

    assert os.waitstatus_to_exitcode(status) == 0, shown
    assert password.encode() not in shown
    assert installation.left() == ["crypto_db", "crypto_etl", "crypto_reader"]


# --------------------------------------------------------------------------------------------------------- a second run


def test_a_repetition_changes_nothing_and_shows_no_password(installation: Installation):
    reader = reader_password(installation.made())
    before = installation.env_file.read_bytes()
    installation.pipeline("-q", "--replay", NEWEST)

    again = installation.made()

    assert not PASSWORD.search(again)
    assert installation.env_file.read_bytes() == before
    assert installation.logs_in("crypto_reader", reader)
    assert "99 coins" in installation.pipeline("--status").stdout


def test_new_passwords_replace_both_and_the_lines_to_change_are_shown(installation: Installation):
    reader = reader_password(installation.made())
    before = installation.env()["MYSQL_PASSWORD"]

    shown = installation.made("--new-passwords")

    assert installation.env()["MYSQL_PASSWORD"] == before
    assert re.findall(r"^(MYSQL_\w+)=", shown, re.M) == ["MYSQL_PASSWORD"]
    installation.set_env(MYSQL_PASSWORD=re.search("MYSQL_PASSWORD=(.*)", shown)[1])
    assert installation.pipeline("-q", "--replay", NEWEST).returncode == 0
    assert installation.logs_in("crypto_reader", reader_password(shown))
    assert not installation.logs_in("crypto_reader", reader)
    assert not installation.logs_in("crypto_etl", before)


@pytest.mark.parametrize(
    "change", [None, {"MYSQL_PASSWORD": ""}, {"MYSQL_PASSWORD": "not-the-right-one"}, {"MYSQL_USER": "somebody"}]
)
def test_without_the_password_in_use_nothing_is_changed(installation: Installation, change: dict[str, str] | None):
    reader = reader_password(installation.made())
    etl = installation.env()["MYSQL_PASSWORD"]
    if change is None:
        installation.env_file.unlink()
    else:
        installation.set_env(**change)

    line = installation.refused(2, "--database", "crypto_other")

    assert "--new-passwords" in line
    assert installation.logs_in("crypto_etl", etl)
    assert installation.logs_in("crypto_reader", reader)
    assert "crypto_other" not in installation.left()


def test_a_password_that_is_set_is_shown_also_when_its_account_cannot_log_in(installation: Installation):
    installation.env_file.write_text("COIN_LIMIT=250\n")
    installation.execute("CREATE USER 'crypto_etl'@'localhost' IDENTIFIED BY 'x'")
    try:
        result = installation.run()
    finally:
        installation.execute("DROP USER 'crypto_etl'@'localhost'")

    assert result.returncode == 4
    assert installation.logs_in("crypto_etl", re.search("MYSQL_PASSWORD=(.*)", result.stdout)[1])


def test_settings_that_are_there_are_left_alone_and_the_lines_to_change_are_shown(installation: Installation):
    text = "COIN_LIMIT=250\nMYSQL_HOST=localhost\nMYSQL_USER=somebody\nMYSQL_PASSWORD=of-another-server\n"
    installation.env_file.write_text(text)

    shown = installation.made()

    assert installation.env_file.read_text() == text
    lines = dict(re.findall(r"^(MYSQL_\w+)=(.*)$", shown, re.M))
    assert set(lines) == {"MYSQL_PORT", "MYSQL_DATABASE", "MYSQL_USER", "MYSQL_PASSWORD"}
    installation.set_env(**lines)
    assert installation.pipeline("-q", "--replay", NEWEST).returncode == 0


def test_settings_from_notepad_are_read(installation: Installation):
    installation.made()
    installation.env_file.write_bytes(
        b"\xef\xbb\xbf"
        + b"".join(
            line + b"\r\n" for line in installation.env_file.read_bytes().splitlines() if line.startswith(b"MYSQL_")
        )
    )

    assert "set these lines" not in installation.made()


def test_a_variable_of_the_environment_that_wins_over_the_file_is_named(installation: Installation):
    assert "unset MYSQL_DATABASE in the environment" in installation.made(MYSQL_DATABASE="another")


def test_a_locked_account_is_named_and_new_passwords_unlock_it(installation: Installation):
    installation.made()
    installation.execute("ALTER USER crypto_etl ACCOUNT LOCK")

    assert "ACCOUNT UNLOCK" in installation.refused(4)
    shown = installation.made("--new-passwords")
    installation.set_env(MYSQL_PASSWORD=re.search("MYSQL_PASSWORD=(.*)", shown)[1])
    assert installation.pipeline("-q", "--replay", NEWEST).returncode == 0


def test_of_two_at_once_one_makes_it_and_one_is_told_to_wait(installation: Installation):
    installation.execute("DO GET_LOCK('crypto_prices.create_database', 0)")
    try:
        assert "run this again when it has ended" in installation.refused(5)
        assert installation.left() == []
    finally:
        installation.execute("DO RELEASE_LOCK('crypto_prices.create_database')")


def test_rights_that_are_missing_are_granted(installation: Installation):
    installation.made()
    installation.execute("REVOKE DELETE ON crypto_db.crypto_prices FROM crypto_etl")

    installation.made()

    [(grants,)] = [row for row in installation.execute("SHOW GRANTS FOR crypto_etl") if "crypto_prices" in row[0]]
    assert "DELETE" in grants


# ------------------------------------------------------------------------------------------------------- what cannot be


def test_a_table_of_another_shape_is_named_before_anything_is_made(installation: Installation):
    installation.execute("CREATE DATABASE crypto_db")
    installation.execute(
        "CREATE TABLE crypto_db.crypto_prices (id INT PRIMARY KEY, coin_id VARCHAR(50), market_cap BIGINT)"
    )

    line = installation.refused(4)

    assert "not the pipeline's" in line
    assert "RENAME TABLE" in line
    assert installation.left() == ["crypto_db"]
    assert not installation.env_file.exists()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("MODIFY current_price DECIMAL(20, 8)", "no column current_price of DOUBLE"),
        ("MODIFY coin_id VARCHAR(50)", "no column coin_id of VARCHAR(128)"),
        ("DROP atl", "no column atl of DOUBLE"),
        ("ADD note TEXT NOT NULL", "its column note must be filled"),
        ("ENGINE = MyISAM", "its engine is MyISAM"),
    ],
)
def test_what_the_pipeline_cannot_write_to_is_named(installation: Installation, change: str, part: str):
    installation.made()
    installation.execute(f"ALTER TABLE crypto_db.crypto_prices {change}")

    assert part in installation.refused(4)


def test_a_table_with_columns_of_its_owner_is_no_other_table(installation: Installation):
    installation.made()
    installation.execute("ALTER TABLE crypto_db.crypto_prices ADD note TEXT, MODIFY name VARCHAR(500) NOT NULL")

    installation.made()


@pytest.mark.parametrize(
    ("grants", "part"),
    [
        (["ALL ON crypto_db.* TO admin WITH GRANT OPTION"], "CREATE USER"),
        (["CREATE USER ON *.* TO admin", "ALL ON crypto_db.* TO admin"], "GRANT OPTION"),
        (
            ["CREATE USER ON *.* TO admin", "SELECT, INSERT, UPDATE, DELETE ON *.* TO admin WITH GRANT OPTION"],
            "lacks CREATE, so",
        ),
        (["CREATE USER ON *.* TO admin", "ALL ON crypto_db.* TO admin WITH GRANT OPTION"], "SELECT command denied"),
    ],
)
def test_an_administrator_without_a_right_is_told_before_anything_is_made(
    installation: Installation, grants: list[str], part: str
):
    installation.execute("CREATE USER admin IDENTIFIED BY 'a-password'")
    for grant in grants:
        installation.execute(f"GRANT {grant}")

    line = installation.refused(4, "--user", "admin", MYSQL_ADMIN_PASSWORD="a-password")

    assert part in line
    assert "--user" in line
    assert installation.left() == []


def test_what_stands_is_said_when_it_fails_later(installation: Installation):
    """As with rights that come by a role, which cannot be checked before."""
    installation.execute("DROP ROLE IF EXISTS maker")
    installation.execute("CREATE ROLE maker")
    installation.execute("GRANT CREATE ON *.* TO maker")
    installation.execute("CREATE USER admin IDENTIFIED BY 'a-password'")
    installation.execute("GRANT SELECT ON mysql.* TO admin")
    installation.execute("GRANT maker TO admin")
    installation.execute(f"SET DEFAULT ROLE maker {'FOR' if installation.own.is_mariadb else 'TO'} admin")

    line = installation.refused(4, "--user", "admin", MYSQL_ADMIN_PASSWORD="a-password")
    installation.execute("DROP ROLE maker")

    assert "this run made the database, the table" in line
    assert installation.left() == ["crypto_db"]
    installation.made()


def test_a_root_of_the_socket_alone_is_told_the_command(installation: Installation):
    with_plugin = "VIA unix_socket" if installation.own.is_mariadb else "WITH auth_socket"
    try:
        installation.execute("INSTALL PLUGIN auth_socket SONAME 'auth_socket.so'") if "WITH" in with_plugin else None
        installation.execute(f"CREATE USER by_socket@localhost IDENTIFIED {with_plugin}")
    except mysql.connector.Error as error:
        pytest.skip(f"this server knows no login by socket: {error}")
    line = installation.refused(4, "--user", "by_socket", MYSQL_ADMIN_PASSWORD="")
    installation.execute("DROP USER by_socket@localhost")

    sudo, _, script, *options, socket = shlex.split(line.partition("socket only: ")[2])
    assert (sudo, Path(script)) == ("sudo", installation.folder / "sql" / "create_database.py")
    assert options == ["--port", str(installation.own.port), "--user", "by_socket", "--socket"]
    assert socket.endswith(".sock")


@pytest.mark.parametrize("other", ["''@'localhost'", "'crypto_etl'@'localhost'"])
def test_an_account_that_another_one_hides_is_named(installation: Installation, other: str):
    installation.execute(f"CREATE USER {other} IDENTIFIED BY 'x'")
    try:
        result = installation.run()
        assert result.returncode == 4
        assert f"as {other} takes its place" in result.stderr
    finally:
        installation.execute(f"DROP USER {other}")

    assert "can log in" in installation.made()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "part"),
    [
        (["--port", "1"], 4, "--port"),
        (["--socket", "/nowhere.sock"], 4, "--socket"),
        (["--host", "db.example.com"], 2, "--ssl-ca"),
        (["--host", "db.example.com", "--ssl-ca", "nowhere.pem"], 2, "nowhere.pem"),
        (["--database", "mysql"], 2, "'mysql'"),
        (["--database", "x" * 65], 2, "1 to 64 characters"),
        (["--database", "coins\N{IZAKAYA LANTERN}"], 2, "emoji"),
        (["--host", "localhost:3306"], 2, "the port goes into --port"),
        (["--host", "http://localhost"], 2, "a name or an address alone"),
        (["--host", ""], 2, "a name or an address alone"),
        (["--port", "0"], 2, "1 to 65535"),
        (["--port", "x"], 2, "--port"),
        (["--databse", "x"], 2, "--help"),
    ],
)
def test_what_cannot_be_is_one_line(installation: Installation, arguments: list[str], exit_code: int, part: str):
    assert part in installation.refused(exit_code, *arguments)
    assert installation.left() == []


def test_a_wrong_password_is_refused_and_not_shown(installation: Installation):
    line = installation.refused(4, MYSQL_ADMIN_PASSWORD="secret-but-wrong")

    assert "--user" in line
    assert "secret-but-wrong" not in line


def test_without_a_terminal_the_variable_for_the_password_is_named(installation: Installation):
    del installation.environment["MYSQL_ADMIN_PASSWORD"]

    assert "MYSQL_ADMIN_PASSWORD" in installation.refused(2)


@pytest.mark.parametrize("what", ["no text", "a folder", "a link to nowhere"])
def test_settings_that_cannot_be_read_are_named_before_anything_is_made(installation: Installation, what: str):
    if what == "no text":
        installation.env_file.write_bytes(b"MYSQL_USER=\xff\xfe\n")
    elif what == "a folder":
        installation.env_file.mkdir()
    else:
        installation.env_file.symlink_to("nowhere")

    assert ".env" in installation.refused(2)
    assert installation.left() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_passwords_that_could_not_be_shown_are_not_lost_silently(installation: Installation):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - as a shell opens it
        result = installation.start(
            "sql/create_database.py", "--port", installation.own.port, env=installation.environment, stdout=full
        )

    assert result.returncode == 1
    assert "--new-passwords" in result.stderr
    assert result.stderr.count("\n") == 1
    assert PASSWORD.search(installation.made("--new-passwords"))


def test_its_help_needs_no_server_and_no_password(installation: Installation):
    del installation.environment["MYSQL_ADMIN_PASSWORD"]

    assert "--new-passwords" in installation.made("--help")
