"""Copies of the project, set up as its users do: by sql/create_database.py, or with a private server."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import mysql.connector
from dotenv import dotenv_values

from tests.conftest import PROJECT_DIR, SETTING_PREFIXES
from tests.own_server import OwnServer
from tests.stub_coingecko import SAMPLE_FILES

COPIED = ("etl_crypto.py", "segment_and_load.py", "pipeline_orchestrator.py", ".env.example", "requirements.txt")
DATABASES = ("crypto_db", "crypto_other", "my `odd`; %s \"x\" 'y'")
# a plain user's PATH lacks the folders of servers
SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/usr/local/bin"])
PASSWORD = re.compile(r"\w{5}(-\w{5}){4}")


class Installation:
    """A copy and its server, of the tests' own; `run` runs sql/create_database.py there."""

    def __init__(self, folder: Path, own: OwnServer) -> None:
        self.folder = folder
        self.own = own
        self.env_file = folder / ".env"
        folder.mkdir()
        for name in COPIED:
            shutil.copy(PROJECT_DIR / name, folder)
        shutil.copytree(PROJECT_DIR / "sql", folder / "sql")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(SETTING_PREFIXES)}
        self.environment["MYSQL_ADMIN_PASSWORD"] = own.password
        self.connection = own.connect(autocommit=True)

    def start(self, script: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", self.folder / script, *map(str, arguments)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 60} | options
        return subprocess.run(command, cwd="/", **options)

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        port = [] if "--socket" in arguments or "--port" in arguments else ["--port", self.own.port]
        environment = {"stdin": subprocess.DEVNULL, "env": self.environment | environment}
        return self.start("sql/create_database.py", *port, *arguments, **environment)

    def made(self, *arguments: object, **environment: str) -> str:
        """What a run that does it prints."""
        result = self.run(*arguments, **environment)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    def refused(self, exit_code: int, *arguments: object, **environment: str) -> str:
        """The one line of a run that ends with `exit_code`."""
        result = self.run(*arguments, **environment)
        assert result.returncode == exit_code, result.stderr
        assert result.stderr.startswith("create_database: ")
        assert result.stderr.count("\n") == 1
        assert len(result.stderr) <= 500 + len(str(self.folder))
        return result.stderr

    def pipeline(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """The pipeline, with the settings in .env alone."""
        return self.start("pipeline_orchestrator.py", *arguments, env=self.environment)

    def execute(self, statement: str, *parameters: str) -> list[tuple]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def env(self) -> dict[str, str | None]:
        return dotenv_values(self.env_file, interpolate=False)

    def set_env(self, **values: str) -> None:
        lines = [line for line in self.env_file.read_text().splitlines() if line.partition("=")[0] not in values]
        self.env_file.write_text("\n".join([*lines, *(f"{key}={value}" for key, value in values.items())]))

    def logs_in(self, user: str, password: str) -> bool:
        try:
            mysql.connector.connect(host="127.0.0.1", port=self.own.port, user=user, password=password).close()
        except mysql.connector.Error:
            return False
        return True

    def left(self) -> list[str]:
        """The databases and accounts of the project on the server."""
        databases = [name for (name,) in self.execute("SHOW DATABASES") if name in DATABASES]
        accounts = "SELECT user FROM mysql.user WHERE user IN ('crypto_etl', 'crypto_reader')"
        return sorted([*databases, *(user for (user,) in self.execute(accounts))])

    def clean(self) -> None:
        for database in DATABASES:
            self.execute(f"DROP DATABASE IF EXISTS `{database.replace('`', '``')}`")
        for account in ("crypto_etl", "crypto_reader", "admin"):
            self.execute(f"DROP USER IF EXISTS '{account}'@'%'")
        self.connection.close()


def reader_password(shown: str) -> str:
    """The password that is to be typed into Power BI."""
    return PASSWORD.search(shown.partition("crypto_reader\n  password")[2])[0]


COUNT = "from os import environ as e; import mysql.connector as m; c = m.connect(host=e['MYSQL_HOST'],"
COUNT += " port=e['MYSQL_PORT'], user=e['MYSQL_USER'], password=e['MYSQL_PASSWORD'], database=e['MYSQL_DATABASE']);"
COUNT += " k = c.cursor(); k.execute('SELECT COUNT(*) FROM crypto_prices'); print(k.fetchone()[0])"


class Checkout:
    """A copy of the project with the packages of the Python that runs the tests, so that nothing is installed.

    Its private server is stopped by `run("--stop")`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / ".mysql"
        folder.mkdir(parents=True)
        for name in COPIED:
            shutil.copy(PROJECT_DIR / name, folder)
        for name in ("sql", "tests/data"):
            shutil.copytree(PROJECT_DIR / name, folder / name)
        venv = folder / ".venv"
        venv.mkdir()
        for entry in Path(sys.prefix).iterdir():
            if not entry.name.startswith("installed"):
                (venv / entry.name).symlink_to(entry)
        shutil.copy(PROJECT_DIR / "requirements.txt", venv / "installed.txt")

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        return self.start_shell(f"bash sql/local_mysql.sh {shlex.join(command)}", **variables)

    def start_shell(self, command: str, **variables: str) -> subprocess.Popen[str]:
        bare = {key: value for key, value in os.environ.items() if not key.startswith((*SETTING_PREFIXES, "TEST_"))}
        return subprocess.Popen(
            ["bash", "-c", command],
            env=bare | variables,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """The end of local_mysql.sh with `command`."""
        return self.shell(f"bash sql/local_mysql.sh {shlex.join(command)}", **variables)

    def shell(self, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """The end of a command of a shell in the project's folder.

        Its pipes end with it only if the server that it started has not inherited them.
        """
        process = self.start_shell(command, **variables)
        stdout, stderr = process.communicate(timeout=100)
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    def load_sample(self, **variables: str) -> None:
        arguments = ["pipeline_orchestrator.py", "-q", "--replay", str(SAMPLE_FILES[0])]
        loaded = self.run("python", *arguments, **variables, SNAPSHOT_DIR="")
        assert loaded.returncode == 0, loaded.stderr

    def count(self, **variables: str) -> str:
        return self.run("python", "-c", COUNT, **variables).stdout.strip()

    def server_pid(self) -> int:
        return int((self.home / "data" / "mysqld.pid").read_text())

    def port(self) -> int:
        return int((self.home / "port").read_text())
