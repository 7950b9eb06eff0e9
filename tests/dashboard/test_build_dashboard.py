"""The command powerbi/build_dashboard.py: what it reads and prints, what stops it, and what it then leaves alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from build_dashboard import NAME
from pbix_query import Dashboard

from tests.conftest import ODD_TEXTS, Database
from tests.dashboard.markets import build, comparable, fill, make_row
from tests.dashboard.source import GAINERS_JSON, MODEL, PRICES_TMDL, change, run_copy


def test_an_empty_table_is_named_and_nothing_is_written(server: Any, tmp_path: Path):
    database = Database(server)

    built = build(tmp_path / "out", "--from-mysql", **database.settings())
    database.drop()

    assert built.returncode == 3
    assert built.stderr.count("\n") == 1 and "run pipeline_orchestrator.py first" in built.stderr
    assert not (tmp_path / "out").exists()


def test_a_database_without_the_table_is_named_in_one_line(server: Any, tmp_path: Path):
    database = Database(server)
    database.execute("DROP TABLE crypto_prices")

    built = build(tmp_path / "out", "--from-mysql", **database.settings())
    database.drop()

    assert built.returncode == 4
    assert built.stderr.count("\n") == 1 and "run python sql/create_database.py" in built.stderr


def test_the_error_of_a_wrong_password_is_logged_in_one_line(server: Any, tmp_path: Path):
    database = Database(server)

    built = build(tmp_path / "out", "--from-mysql", **database.settings() | {"MYSQL_PASSWORD": "not this one"})
    database.drop()

    assert built.returncode == 4
    assert built.stderr.count("\n") == 1 and "MYSQL_PASSWORD" in built.stderr and "not this one" not in built.stderr


def test_rows_without_a_tier_are_logged(server: Any, tmp_path: Path):
    database = Database(server)
    fill(database, [make_row("one", market_cap_tier=None), make_row("two")])

    built = build(tmp_path / "out", "--from-mysql", **database.settings())
    database.drop()

    assert "1 rows have no tier" in built.stderr and "run segment_and_load.py" in built.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows",
    [
        [make_row("one", market_cap_tier=None)],
        [make_row("one", market_cap=None), make_row("two", market_cap=0.0)],
        [make_row("one", market_cap=-5.0, total_volume=-1.0), make_row("two")],
        [make_row("one", price_change_percentage_24h=None, high_24h=None, total_volume=0.0, current_price=None)],
        [make_row("one", price_change_percentage_24h=0.0), make_row("two", price_change_percentage_24h=0.0)],
        [make_row("case"), make_row("CASE", market_cap=1e9)],
        [
            make_row(texts.get("id", f"odd-{number}"), name=texts.get("name", "Odd"), symbol=texts.get("symbol", "odd"))
            for number, texts in enumerate(ODD_TEXTS)
        ],
        [make_row("one", current_price=1e300, market_cap=1e300, total_volume=1e300, price_change_percentage_24h=1e300)],
    ],
    ids=[
        "no tier",
        "no market cap",
        "negative",
        "no figure",
        "no change",
        "ids that differ in case",
        "odd names",
        "huge",
    ],
)
def test_a_market_of_odd_figures_is_built_and_drawn(server: Any, tmp_path: Path, rows: list[dict[str, object]]):
    database = Database(server)
    fill(database, rows)

    built = build(tmp_path / "out", "--from-mysql", **database.settings())
    ((total,),) = database.execute("SELECT SUM(market_cap) FROM crypto_prices")
    database.drop()

    assert built.returncode == 0
    assert "Traceback" not in built.stderr and all(" WARNING " in line for line in built.stderr.splitlines())
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"preview-market-trends.png", f"{NAME}.pbix"}
    with Dashboard(tmp_path / "out" / f"{NAME}.pbix", MODEL) as dashboard:
        assert dashboard.values(["Total Market Cap"])["Total Market Cap"] == comparable(total)


def test_a_dry_run_writes_nothing(tmp_path: Path):
    built = build(tmp_path / "out", "--dry-run")

    assert (built.returncode, built.stderr) == (0, "")
    assert "3,076 rows; times: 31" in built.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_build_prints_what_took_how_long(tmp_path: Path):
    built = build(tmp_path / "out")

    steps = re.findall(r"^(\S.*\S) +\d+\.\d s$", built.stdout, re.M)
    assert steps[:3] == ["read the source", "read the rows", "encoded the data model"]
    assert steps[-2:] == ["drew Market Overview", "drew Market Trends"]
    assert build(tmp_path / "out", "-q").stdout == ""


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        (PRICES_TMDL, "SUM(crypto_prices[total_volume])", '"a" + 1', "Cannot convert"),
        (PRICES_TMDL, "SUM(crypto_prices[total_volume])", "SUM(Coin[name])", "blank over the sample"),
        (PRICES_TMDL, "SUM(crypto_prices[total_volume])", "[Volume Rank] + [Total 24h Volume]", "needs itself"),
        (PRICES_TMDL, "SUM(crypto_prices[total_volume])", "VALUES(Coin[coin_id])", "Total 24h Volume"),
        (PRICES_TMDL, "SUM(crypto_prices[total_volume])", "SUM(crypto_prices[volume])", "volume"),
        (GAINERS_JSON, '"sortDefinition"', '"sorted"', "sortDefinition"),
        (GAINERS_JSON, '"Values"', '"Value"', "Values"),
        (f"{NAME}.SemanticModel/definition/expressions.tmdl", "HistoryDays = 90", 'HistoryDays = "x"', "HistoryDays"),
    ],
)
def test_a_build_from_a_source_with_a_mistake_leaves_the_files_as_they_were(
    copied_source: Path, file: str, old: str, new: str, reason: str
):
    change(copied_source, file, old, new)
    before = {path: path.read_bytes() for path in copied_source.iterdir() if path.is_file()}

    built = run_copy(copied_source)

    assert built.returncode == 2
    assert built.stderr.count("\n") == 1
    assert Path(file).name in built.stderr and reason in built.stderr
    assert {path: path.read_bytes() for path in copied_source.iterdir() if path.is_file()} == before


def test_a_folder_that_cannot_be_made_is_named_in_one_line(tmp_path: Path):
    (tmp_path / "out").write_text("a file", encoding="utf-8")

    built = build(tmp_path / "out")

    assert built.returncode == 2
    assert built.stderr.count("\n") == 1 and "name another folder" in built.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{NAME}.pbix", "preview-market-trends.png"])
def test_a_file_that_cannot_be_written_is_named_in_one_line_and_nothing_half_stays(tmp_path: Path, name: str):
    (tmp_path / "out" / name).mkdir(parents=True)

    built = build(tmp_path / "out")

    assert built.returncode == 2
    assert built.stderr.count("\n") == 1 and "cannot write" in built.stderr and name in built.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
