"""The SQL files, run as a user runs them: in order, and twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from uuid import uuid4

import mysql.connector
import pytest

from tests.conftest import PROJECT_DIR, Database, Scripts


class Installation:
    """The three files, with names of this test alone in place of those that they create."""

    def __init__(self, connection: mysql.connector.MySQLConnection) -> None:
        self.connection = connection
        mark = uuid4().hex[:12]
        self.names = {name: f"{name}_{mark}" for name in ("crypto_db", "crypto_etl", "crypto_reader")}

    def run(self, statements: str) -> None:
        for old, new in self.names.items():
            statements = statements.replace(old, new)
        with self.connection.cursor() as cursor:
            cursor.execute(statements)
            while cursor.nextset():
                pass

    def run_file(self, name: str, password: str = "") -> None:
        text = (PROJECT_DIR / "sql" / name).read_text(encoding="utf-8")
        self.run(re.sub(r"<password for \w+>", f"'{password}'", text) if password else text)

    def run_all(self) -> None:
        self.run_file("database.sql")
        self.run("USE crypto_db")
        self.run_file("crypto_prices.sql")
        self.run_file("accounts.sql", password="a password")


@pytest.fixture
def installation(database: Database) -> Iterator[Installation]:
    with database.connect() as connection:
        installation = Installation(connection)
        yield installation
        installation.run("DROP DATABASE crypto_db")
        installation.run("DROP USER IF EXISTS 'crypto_etl'@'%', 'crypto_reader'@'%'")


def test_the_files_make_what_the_pipeline_needs_and_may_be_run_twice(installation: Installation, scripts: Scripts):
    installation.run_all()
    installation.run_all()
    scripts.settings |= {
        "MYSQL_DATABASE": installation.names["crypto_db"],
        "MYSQL_USER": installation.names["crypto_etl"],
        "MYSQL_PASSWORD": "a password",
    }

    assert scripts.pipeline().returncode == 0
    scripts.settings["MYSQL_USER"] = installation.names["crypto_reader"]
    assert scripts.pipeline("--status").returncode == 0
    assert scripts.pipeline().returncode == 4


def test_the_accounts_are_not_made_until_their_passwords_are_filled_in(installation: Installation, database: Database):
    installation.run_all()
    installation.run("DROP USER 'crypto_etl'@'%', 'crypto_reader'@'%'")

    with pytest.raises(mysql.connector.ProgrammingError, match="syntax"):
        installation.run_file("accounts.sql")
    assert database.execute("SELECT user FROM mysql.user WHERE user LIKE %s", (installation.names["crypto_etl"],)) == []


def test_a_table_made_before_is_kept_and_copied_as_the_readme_says(scripts: Scripts, database: Database):
    database.execute("DROP TABLE crypto_prices")
    database.execute(
        "CREATE TABLE crypto_prices (id INT AUTO_INCREMENT PRIMARY KEY, timestamp DATETIME, coin_id VARCHAR(50),"
        " symbol VARCHAR(10), name VARCHAR(100), current_price DECIMAL(20,8), market_cap BIGINT)"
    )
    row = (
        "(timestamp, coin_id, symbol, name, current_price, market_cap) VALUES ('2024-05-06', 'a', 'a', 'A', 1.5, 2e10)"
    )
    database.execute(f"INSERT INTO crypto_prices {row}")
    database.execute(f"INSERT INTO crypto_prices {row}")
    assert scripts.pipeline().returncode == 4

    database.execute("RENAME TABLE crypto_prices TO crypto_prices_before")
    database.create_table()
    readme = (PROJECT_DIR / "README.md").read_text(encoding="utf-8")
    database.execute("INSERT IGNORE" + readme.partition("INSERT IGNORE")[2].partition(";")[0])
    result = scripts.run("segment_and_load.py")
    database.execute("DROP TABLE crypto_prices_before")

    assert result.returncode == 0, result.stderr
    assert database.execute("SELECT coin_id, current_price, market_cap_tier FROM crypto_prices") == [
        ("a", 1.5, "Large Cap")
    ]
