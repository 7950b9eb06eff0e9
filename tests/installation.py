"""A checkout of the project on a server of the tests' own, set up by sql/create_database.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mysql.connector
from dotenv import dotenv_values

from tests.conftest import PROJECT_DIR, SETTING_PREFIXES
from tests.own_server import OwnServer

DATABASES = ("crypto_db", "crypto_other", "my `odd`; %s \"x\" 'y'")
PASSWORD = re.compile(r"\w{5}(-\w{5}){4}")


class Installation:
    """A checkout in a folder with a space, and its server; `run` runs the script there."""

    def __init__(self, folder: Path, own: OwnServer) -> None:
        self.folder = folder
        self.own = own
        self.env_file = folder / ".env"
        folder.mkdir()
        for name in ("etl_crypto.py", "segment_and_load.py", "pipeline_orchestrator.py", ".env.example"):
            shutil.copy(PROJECT_DIR / name, folder)
        shutil.copytree(PROJECT_DIR / "sql", folder / "sql")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(SETTING_PREFIXES)}
        self.environment["MYSQL_ADMIN_PASSWORD"] = own.password
        self.connection = own.connect(autocommit=True)

    def start(self, script: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", self.folder / script, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/", **options)

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
