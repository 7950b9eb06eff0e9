"""The table crypto_prices: when it is refused, its key, and figures that are read back bit for bit."""

from __future__ import annotations

import gzip
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mysql.connector
import pytest

from etl_crypto import FIELDS, Snapshot, transform
from sql.crypto_prices import COLUMNS
from tests.conftest import NOON, Database, Scripts, make_coin, make_coins, one_line_error
from tests.own_server import OwnDatabase
from tests.stub_coingecko import SAMPLE_FILES, StubCoinGecko, read_sample

# --------------------------------------------------------------------------------------- a table that cannot be written


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


# ------------------------------------------------------------------------------------------------------ the primary key


def test_the_rows_are_in_the_order_of_the_primary_key(database: Database, scripts: Scripts, api: StubCoinGecko):
    coins = [make_coin(n, id=coin) for n, coin in enumerate(["b", "\uff5e", "a", "\U0001f680", "B"], 1)]
    rows = transform(Snapshot(NOON, coins, None, "")).rows
    api.coins = coins
    scripts.run("etl_crypto.py")

    in_table = [coin for (coin,) in database.execute("SELECT coin_id FROM crypto_prices ORDER BY timestamp, coin_id")]
    assert [row[1] for row in rows] == in_table


def test_ids_that_differ_in_case_or_accent_alone_are_different_coins(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    api.coins = [make_coin(n, id=coin) for n, coin in enumerate(["luna", "Luna", "l\u00fana"], 1)]

    assert scripts.pipeline().returncode == 0
    assert database.count() == 3


# ----------------------------------------------------------------------------------------------- a snapshot is replaced

YEAR = {"SNAPSHOT_MINUTES": "525600"}  # all runs of a test within one snapshot time


def coins_of(database: Database) -> list[str]:
    return [coin for (coin,) in database.execute("SELECT coin_id FROM crypto_prices ORDER BY coin_id")]


def names(*numbers: int) -> list[str]:
    return [f"coin-{number:05}" for number in numbers]


@pytest.mark.parametrize("script", ["pipeline_orchestrator.py", "etl_crypto.py"])
def test_a_second_run_inside_snapshot_minutes_replaces_the_whole_snapshot(
    scripts: Scripts, api: StubCoinGecko, database: Database, script: str
):
    scripts.load({NOON: make_coins(7)})
    scripts.settings |= YEAR | {"COIN_LIMIT": "5"}
    assert scripts.run(script).returncode == 0
    api.coins = [coin for coin in make_coins(8) if coin["market_cap_rank"] not in (4, 5)]
    api.coins[4] |= {"current_price": "?"}  # the seventh; the fourth, the fifth and it have no row afterwards

    result = scripts.run(script)

    assert result.returncode == 0, result.stderr
    assert coins_of(database) == sorted(names(1, 2, 3, 6) + names(1, 2, 3, 4, 5, 6, 7))


def test_a_raw_snapshot_that_is_replayed_replaces_history_and_other_rows_of_its_time(
    scripts: Scripts, database: Database
):
    scripts.load({NOON: make_coins(3), NOON + timedelta(minutes=1): make_coins(3)})

    scripts.load({NOON: make_coins(2, first=3)})

    assert coins_of(database) == sorted(names(3, 4) + names(1, 2, 3))
    assert database.execute("SELECT COUNT(*) FROM crypto_prices WHERE market_cap_tier IS NULL") == [(0,)]


def test_of_two_raw_snapshots_of_one_time_the_last_one_is_shown_and_stays(scripts: Scripts, database: Database):
    scripts.load({NOON: make_coins(6)})
    six = scripts.folder / "six.json"
    (scripts.folder / "2025-03-14T12-00-00.json").rename(six)
    scripts.load({NOON: make_coins(5)})

    result = scripts.pipeline("--replay", six, scripts.folder / "2025-03-14T12-00-00.json")

    assert "snapshot 2025-03-14 12:00 UTC: 5 coins" in result.stdout
    assert database.count() == 5


def test_a_plain_list_only_adds_and_updates(scripts: Scripts, database: Database, tmp_path: Path):
    scripts.load({datetime(2025, 3, 14, 23, 59): make_coins(3)})
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps([make_coin(3, current_price=7.0), make_coin(4)]), encoding="utf-8")

    assert scripts.pipeline("--replay", plain).returncode == 0
    assert coins_of(database) == names(1, 2, 3, 4)
    assert database.execute("SELECT current_price FROM crypto_prices WHERE coin_id = 'coin-00003'") == [(7.0,)]


def test_without_the_right_to_delete_a_snapshot_with_other_coins_stays_as_it_is_and_the_grant_is_named(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    database.execute(f"REVOKE DELETE ON crypto_prices FROM '{database.user}'@'%'")
    scripts.settings |= YEAR | {"COIN_LIMIT": "20"}
    assert scripts.pipeline().returncode == 0
    assert scripts.pipeline().returncode == 0  # it has nothing to delete
    before = database.execute("SELECT * FROM crypto_prices")
    api.coins = [make_coin(n, current_price=5.0) for n in (*range(1, 20), 21)]

    grant = f"GRANT DELETE ON `{database.name}`.crypto_prices TO '{database.user}'@'%'"
    one_line_error(scripts.pipeline(), 4, f"run as root: {grant}; the raw snapshot is kept", "--replay")
    assert database.execute("SELECT * FROM crypto_prices") == before

    database.execute(grant)
    assert scripts.pipeline("--replay", *scripts.kept("*.pending.json.gz")).returncode == 0
    assert coins_of(database) == names(*range(1, 20), 21)


# ----------------------------------------------------------------------------------------------- rows as they were sent


def test_every_figure_and_text_of_the_sample_is_read_back_as_it_was_sent(scripts: Scripts, database: Database):
    assert scripts.pipeline("--replay", *SAMPLE_FILES).returncode == 0

    sent = {
        (path.name[:10], coin["id"]): tuple(
            coin.get(key) for key in ("symbol", "name", "market_cap_rank", *FIELDS.values())
        )
        for path in SAMPLE_FILES
        for coin in read_sample(path)
    }
    columns = ", ".join(COLUMNS[:-1])
    stored = {
        (f"{timestamp:%Y-%m-%d}", coin_id): tuple(rest)
        for timestamp, coin_id, *rest in database.execute(f"SELECT {columns} FROM crypto_prices")
    }
    assert stored == sent


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
ODD_NAME = "\\' \" \\\\ ` %s %(id)s \n\x1a\x00 {} -- \\"


def expected_tier(market_cap: float | None) -> str:
    if not market_cap or market_cap < 0:
        return "Unknown"
    bounds = {1e10: "Large Cap", 1e9: "Mid Cap", 1e8: "Small Cap"}
    return next((tier for bound, tier in bounds.items() if market_cap >= bound), "Micro/Nano Cap")


def expected_row(coin: dict) -> dict:
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
        "market_cap_tier": expected_tier(coin["market_cap"]),
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
        {"completion_type": "RELEASE"},
        {"sql_select_limit": 1},
    ],
    ids=lambda variables: ",".join(f"{name}={value}" for name, value in variables.items()),
)
def test_a_server_with_other_settings_gives_the_same_rows(
    scripts: Scripts, own_database: OwnDatabase, tmp_path: Path, variables: dict[str, object]
):
    coins = [*read_sample(SAMPLE_FILES[0]), make_coin(100, name=ODD_NAME, symbol="\\", last_updated=None)]
    kept = tmp_path / "kept.json.gz"
    kept.write_bytes(gzip.compress(json.dumps({"timestamp": "2025-03-30T02:30:00Z", "coins": coins}).encode()))
    variables = {
        own_database.own.isolation if name == "isolation" else name: value for name, value in variables.items()
    }

    with own_database.globally(**variables):
        result = scripts.pipeline("--replay", kept)

    assert result.returncode == 0, result.stderr
    expected = [expected_row(coin) for coin in sorted(coins, key=lambda coin: coin["id"])]
    columns = ", ".join(expected[0])
    found = own_database.execute(f"SELECT {columns} FROM crypto_prices ORDER BY coin_id")
    assert [dict(zip(expected[0], row, strict=True)) for row in found] == expected
