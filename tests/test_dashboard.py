"""The dashboard says what SQL says over the same rows, and the built files say what the source says."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from build_dashboard import (
    AROUND,
    MODEL_DIR,
    NAME,
    REPORT_DIR,
    SOURCE,
    build_parts,
    describe_times,
    embedded_tables,
    history_days,
    write_container,
)
from check_source import read_source
from draw_preview import draw_page, in_order
from matplotlib import image
from pbix_mcp.formats.abf_rebuild import read_metadata_sqlite
from pbix_mcp.formats.datamodel_roundtrip import decompress_datamodel
from pbix_mcp.formats.model_reader import ModelReader
from pbix_query import Dashboard, format_figure
from report_source import Field, Page, SourceError

from segment_and_load import TIERS
from tests.conftest import ODD_TEXTS, SETTING_PREFIXES, Database

MODEL, REPORT = read_source(MODEL_DIR, REPORT_DIR)
TABLES, MEASURES = MODEL.tables, MODEL.measures
QUERIES = {name: table["partitions"][0]["source"]["expression"] for name, table in TABLES.items()}
VISUALS = {visual.document["name"]: visual for page in REPORT.pages for visual in page.visuals}
COIN_ID, COIN, TIME, TIER = (
    Field(table, name, False, name)
    for table, name in (
        ("Coin", "coin_id"),
        ("Coin", "coin"),
        ("Time", "timestamp"),
        ("Tier", "market_cap_tier"),
    )
)

NEWEST = datetime(2026, 11, 22, 12, 0)


def make_row(coin_id: str, timestamp: datetime = NEWEST, **changes: object) -> dict[str, object]:
    """A row of crypto_prices, a small coin that rose 1 per cent; `changes` replace its columns."""
    return {
        "timestamp": timestamp,
        "coin_id": coin_id,
        "symbol": coin_id[:4],
        "name": coin_id.title(),
        "current_price": 2.0,
        "market_cap": 250e6,
        "total_volume": 1e6 + sum(coin_id.encode()),
        "high_24h": 2.2,
        "low_24h": 1.9,
        "price_change_percentage_24h": 1.0,
        "price_change_percentage_7d": -2.5,
        "market_cap_change_24h": 2.5e6,
        "ath": 9.0,
        "atl": 0.01,
        "market_cap_tier": "Small Cap",
    } | changes


def make_awkward_market() -> list[dict[str, object]]:
    """A market with all that real data holds: more coins fall than rise, ties at rank 5, one name twice, NULL, 0."""
    newest = [
        make_row(
            "bitcoin",
            current_price=87412.25,
            market_cap=1.7e12,
            market_cap_tier="Large Cap",
            high_24h=88000.5,
            low_24h=86000.0,
            price_change_percentage_24h=0.5,
            total_volume=4e10,
        ),
        make_row(
            "ether",
            current_price=3100.0,
            market_cap=3.8e11,
            market_cap_tier="Large Cap",
            high_24h=3200.0,
            low_24h=3000.0,
            price_change_percentage_24h=-3.0,
            total_volume=2e10,
        ),
        make_row("no-change", market_cap=2e9, market_cap_tier="Mid Cap", price_change_percentage_24h=None),
        make_row("twin-a", name="Twin", symbol="twn", price_change_percentage_24h=9.0, total_volume=5e9),
        make_row("twin-b", name="Twin", symbol="twn", price_change_percentage_24h=-9.0, total_volume=5e9),
        make_row("twin-c", name="TWIN", symbol="TWN", price_change_percentage_24h=-8.0),
        make_row("leaps", price_change_percentage_24h=250.0),
        make_row("climbs", price_change_percentage_24h=7.0),
        make_row("rises", price_change_percentage_24h=6.0),
        make_row("tie-1", price_change_percentage_24h=2.0, total_volume=3e9),
        make_row("tie-2", price_change_percentage_24h=2.0, total_volume=3e9),
        make_row("no-cap", market_cap=None, market_cap_tier="Unknown", price_change_percentage_24h=-5.0),
        make_row("zero-cap", market_cap=0.0, market_cap_tier="Unknown", price_change_percentage_24h=-60.0),
        make_row("no-high", high_24h=None),
        make_row("no-low", low_24h=None, price_change_percentage_24h=-0.1),
        make_row("no-price", current_price=None, price_change_percentage_24h=-0.2),
        make_row(
            "free", current_price=0.0, high_24h=0.0, low_24h=0.0, price_change_percentage_24h=0.0, total_volume=0.0
        ),
        make_row("no-volume", total_volume=None, price_change_percentage_24h=-0.3),
        make_row(
            "tiny",
            current_price=1.234e-9,
            high_24h=1.3e-9,
            low_24h=1.1e-9,
            market_cap=5e6,
            market_cap_tier="Micro/Nano Cap",
            price_change_percentage_24h=-7.0,
        ),
        make_row("nameless", name="", symbol="", price_change_percentage_24h=-6.0),
        make_row("renamed", name="New Name", symbol="new", price_change_percentage_24h=-4.0),
        make_row("dash", name="Twin (TWN) - twin-a", symbol="", price_change_percentage_24h=-4.6),
        make_row("spaced", name=" \tTabbed\x00 name \n", price_change_percentage_24h=-4.7),
        make_row("emoji", name="Émoji 🏮 =1+1 %(name)s", symbol="", price_change_percentage_24h=-4.5),
    ]
    # Earlier, figures of quite another size: any of them in a figure of the newest snapshot would show.
    before = [
        make_row(
            str(row["coin_id"]),
            NEWEST - timedelta(days=days),
            current_price=500.0 + days,
            market_cap=9e12 + days,
            high_24h=900.0,
            low_24h=100.0,
            price_change_percentage_24h=77.0 * days,
            total_volume=8e12,
            name="Old Name" if row["coin_id"] == "renamed" else row["name"],
            symbol=row["symbol"],
        )
        for days in (1, 2, 89)
        for row in newest
        if not (days == 2 and row["coin_id"] == "ether")
    ]
    gone = [make_row("gone", NEWEST - timedelta(days=1), market_cap=5e13, market_cap_tier="Large Cap")]
    too_old = [make_row("bitcoin", NEWEST - timedelta(days=days), current_price=1.0) for days in (90, 200)]
    return newest + before + gone + too_old


MIDNIGHT = NEWEST.replace(hour=0)
STEP = MIDNIGHT - timedelta(days=60)  # from here on more than twice as many coins are loaded
PARTIAL_RUNS = [NEWEST - timedelta(minutes=minutes) for minutes in (60, 330, 360, 2490)]
LONE_DAYS = [MIDNIGHT - timedelta(days=days) for days in (30, 31)]
NO_CAP_DAY = MIDNIGHT - timedelta(days=10)
THIN_TIMES = {*PARTIAL_RUNS, *LONE_DAYS, NO_CAP_DAY}
PRICED_ONLY = "coin-07"  # its history has no market cap
LATE = "coin-11"  # it has no history before the sixth day


def make_backfilled_market() -> list[dict[str, object]]:
    """Days of history of 20 coins, as --backfill writes them; then two days of snapshots; among them, thin times."""
    coins = {f"coin-{number:02}": 1e12 / number**2 for number in range(1, 21)}

    def make(coin_id: str, timestamp: datetime, factor: float, **changes: object) -> dict[str, object]:
        cap = coins[coin_id] * factor
        tier = "Large Cap" if cap >= 10e9 else "Mid Cap"
        return make_row(
            coin_id, timestamp, **{"current_price": cap / 1e7, "market_cap": cap, "market_cap_tier": tier} | changes
        )

    rows = []
    for days in set(range(2, 90)) - {50}:  # no history on that one
        day = MIDNIGHT - timedelta(days=days)
        changes = {"high_24h": None, "low_24h": None, "total_volume": 9e13}
        changes["price_change_percentage_24h"] = None if days == 89 else 80.0
        for coin_id in [*coins][: 4 if day in LONE_DAYS else 9 if day < STEP else 20]:
            if coin_id != LATE or days <= 6:
                no_cap = coin_id == PRICED_ONLY or day == NO_CAP_DAY
                cap = {"market_cap": None, "market_cap_tier": "Unknown"} if no_cap else {}
                rows.append(make(coin_id, day, 1 + days / 1000, **changes, **cap))
    for minutes in range(0, 60 * 44, 30):
        time = NEWEST - timedelta(minutes=minutes)
        for place, coin_id in enumerate([*coins][: 5 if time in PARTIAL_RUNS else 20]):
            rows.append(make(coin_id, time, 1 + minutes / 1e6, price_change_percentage_24h=place - 5 + minutes / 100))
    return rows


def fill(database: Database, rows: list[dict[str, object]]) -> None:
    columns = list(rows[0])
    with database.server.cursor() as cursor:
        for start in range(0, len(rows), 1000):
            cursor.executemany(
                f"INSERT INTO crypto_prices ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})",
                [tuple(row.values()) for row in rows[start : start + 1000]],
            )


def build(folder: Path, *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the build into `folder`, with these settings and no other."""
    env_file = folder.with_name(f"{folder.name}.env")
    env_file.write_text("", encoding="utf-8")
    bare = {key: value for key, value in os.environ.items() if not key.startswith(SETTING_PREFIXES)}
    return subprocess.run(
        [sys.executable, SOURCE / "build_dashboard.py", "--out", folder, "--env-file", env_file, *options],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=bare | settings,
    )


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build makes of the source and the sample market."""
    folder = tmp_path_factory.mktemp("sample")
    built = build(folder)
    assert (built.returncode, built.stderr) == (0, "")
    return folder


class Market:
    """A database with a market, and the dashboard built from it."""

    def __init__(self, database: Database, folder: Path, rows: list[dict[str, object]]) -> None:
        self.database = database
        fill(database, rows)
        built = build(folder, "--from-mysql", **database.settings())
        assert (built.returncode, built.stderr) == (0, "")
        self.dashboard = Dashboard(folder / f"{NAME}.pbix", MODEL)

    def sql(self, query: str) -> list[tuple]:
        """The rows of a query; in it, `prices` are the rows that the dashboard has, `latest` the newest of them."""
        self.database.execute(f"USE {self.database.name}")  # another market may have been made since
        return self.database.execute(
            "WITH newest AS (SELECT MAX(timestamp) AS moment FROM crypto_prices),"
            " prices AS (SELECT c.* FROM crypto_prices c, newest"
            f" WHERE timestamp > moment - INTERVAL {history_days(MODEL)} DAY),"
            f" latest AS (SELECT prices.* FROM prices, newest WHERE timestamp = moment) {query}"
        )

    def groups(self, columns: list[Field], measure: str) -> dict[Any, Any]:
        """A measure by the values of `columns`, without the groups where it is blank."""
        names = [column.name for column in columns]
        return {tuple(row[name] for name in names): row[measure] for row in self.dashboard.groups(columns, [measure])}


@pytest.fixture(scope="module")
def make_market(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Makes markets, whose databases and open dashboards last as long as the tests of this file."""
    markets: list[Market] = []

    def make(rows: list[dict[str, object]]) -> Market:
        markets.append(Market(Database(server), tmp_path_factory.mktemp("market"), rows))
        markets[-1].dashboard.__enter__()
        return markets[-1]

    yield make
    for market in markets:
        market.dashboard.__exit__()
        market.database.drop()


@pytest.fixture(scope="module")
def awkward(make_market: Any) -> Market:
    return make_market(make_awkward_market())


@pytest.fixture(scope="module")
def backfilled(make_market: Any) -> Market:
    return make_market(make_backfilled_market())


# ------------------------------------------------------------------------------------------------ figures against SQL

FIGURES = {
    "Latest Snapshot": "MAX(timestamp)",
    "Coins in Snapshot": "COUNT(*)",
    "Total Market Cap": "SUM(market_cap)",
    "Total 24h Volume": "SUM(total_volume)",
    "Avg 24h Price Change %": "AVG(price_change_percentage_24h) / 100",
    "Avg 24h Price Range": "AVG(high_24h - low_24h)",
    "Avg 24h Price Range %": "AVG((high_24h - low_24h) / NULLIF(current_price, 0))",
    "Market Cap Share": "SUM(market_cap) / (SELECT SUM(market_cap) FROM latest)",
    "Price": "AVG(current_price)",
}
RANKS = {
    "Gainer Rank": ("price_change_percentage_24h", "DESC"),
    "Loser Rank": ("price_change_percentage_24h", "ASC"),
    "Volume Rank": ("total_volume", "DESC"),
}
TRENDS = {"Market Cap (trend)": "SUM(market_cap)", "Price (trend)": "AVG(current_price)"}
TEXTS = {"As Of", "Source", "Trend Note", "Price Label", "Change Colour"}


def comparable(figure: Any) -> Any:
    """A figure of SQL or of the dashboard, so that both compare: times as text, whole numbers as float."""
    if figure is None or isinstance(figure, str):
        return figure
    return figure.isoformat() if isinstance(figure, datetime) else pytest.approx(float(figure), rel=1e-12)


def test_no_measure_goes_untested():
    others = {"Times Left Out", "Coin Price (chart)", "Is Sample Market"}
    assert {*FIGURES, *RANKS, *TRENDS, *TEXTS, *others} == set(MEASURES)


@pytest.mark.parametrize("measure", FIGURES)
def test_a_figure_of_all_coins_is_that_of_sql(awkward: Market, measure: str):
    ((expected,),) = awkward.sql(f"SELECT {FIGURES[measure]} FROM latest")

    assert expected is not None
    assert awkward.dashboard.values([measure])[measure] == comparable(expected)


@pytest.mark.parametrize("measure", [measure for measure in FIGURES if measure != "Latest Snapshot"])
@pytest.mark.parametrize(("column", "field"), [("market_cap_tier", TIER), ("coin_id", COIN_ID)])
def test_a_figure_of_each_tier_and_coin_is_that_of_sql(awkward: Market, measure: str, column: str, field: Field):
    rows = awkward.sql(f"SELECT {column}, {FIGURES[measure]} FROM latest GROUP BY {column}")
    expected = {(group,): comparable(figure) for group, figure in rows if figure is not None}

    assert len(expected) >= 4
    assert awkward.groups([field], measure) == expected


@pytest.mark.parametrize("measure", TRENDS)
@pytest.mark.parametrize("column", ["market_cap_tier", "coin_id", None])
def test_a_trend_is_that_of_sql(awkward: Market, measure: str, column: str | None):
    by = ["timestamp", column] if column else ["timestamp"]
    fields = {"timestamp": TIME, "market_cap_tier": TIER, "coin_id": COIN_ID}
    rows = awkward.sql(f"SELECT {', '.join(by)}, {TRENDS[measure]} FROM prices GROUP BY {', '.join(by)}")
    expected = {(group[0].isoformat(), *group[1:]): comparable(figure) for *group, figure in rows if figure is not None}

    found = awkward.groups([fields[name] for name in by], measure)

    assert len({group[0] for group in expected}) == 4
    assert found == expected


@pytest.mark.parametrize(("trend", "figure"), [("Market Cap (trend)", "Total Market Cap"), ("Price (trend)", "Price")])
@pytest.mark.parametrize("field", [TIER, COIN_ID])
def test_a_period_of_many_snapshots_shows_the_last_of_them(awkward: Market, trend: str, figure: str, field: Field):
    assert ("gone",) not in awkward.groups([COIN_ID], trend)
    assert awkward.groups([field], trend) == awkward.groups([field], figure)


@pytest.mark.parametrize("measure", RANKS)
@pytest.mark.parametrize("field", [COIN_ID, COIN])
def test_a_rank_is_that_of_sql(awkward: Market, measure: str, field: Field):
    column, order = RANKS[measure]
    ranks = dict(
        awkward.sql(f"SELECT coin_id, RANK() OVER (ORDER BY {column} {order}) FROM latest WHERE {column} IS NOT NULL")
    )
    labels = dict(awkward.groups([COIN_ID, COIN], "Coins in Snapshot"))
    key = {coin_id: coin if field is COIN else coin_id for coin_id, coin in labels}

    assert len(ranks) == 23
    assert awkward.groups([field], measure) == {(key[coin_id],): rank for coin_id, rank in ranks.items()}


def shown_coins(market: Market, name: str) -> list[str]:
    """The ids of the coins that a table shows, in its order."""
    limits = VISUALS[name].limits
    order, descending = VISUALS[name].sort
    rows = market.dashboard.groups([COIN_ID], [limits[0].measure, order.name])
    shown = [row for row in rows if all(limit.passes(row[limit.measure]) for limit in limits)]
    shown.sort(key=lambda row: row["coin_id"])
    shown.sort(key=lambda row: row[order.name], reverse=descending)
    return [row["coin_id"] for row in shown]


def test_the_tables_show_the_first_coins_in_their_order_and_both_of_a_tie_at_the_end(awkward: Market):
    assert shown_coins(awkward, "table-gainers") == ["leaps", "twin-a", "climbs", "rises", "tie-1", "tie-2"]
    assert shown_coins(awkward, "table-losers") == ["zero-cap", "twin-b", "twin-c", "tiny", "nameless"]
    assert shown_coins(awkward, "table-volume")[:6] == ["bitcoin", "ether", "twin-a", "twin-b", "tie-1", "tie-2"]


def test_fewer_coins_than_a_table_has_room_for_are_all_shown(make_market: Any):
    falls = {f"coin-{fall}": -float(fall) for fall in (1, 2, 3)}

    market = make_market([make_row(coin, price_change_percentage_24h=change) for coin, change in falls.items()])

    assert shown_coins(market, "table-gainers") == ["coin-1", "coin-2", "coin-3"]
    assert shown_coins(market, "table-losers") == ["coin-3", "coin-2", "coin-1"]
    assert len(shown_coins(market, "table-volume")) == 3


def test_history_never_enters_a_figure_of_the_newest_snapshot(awkward: Market, make_market: Any):
    newest = [row for row in make_awkward_market() if row["timestamp"] == NEWEST]
    history = [
        make_row("bitcoin", NEWEST - timedelta(hours=hours), market_cap=9e13, total_volume=9e13, high_24h=1e6)
        for hours in range(1, 1001)
    ]
    alone, thousand = make_market(newest), make_market(newest + history)

    for field in (None, TIER, COIN_ID):
        for measure in [*FIGURES, *RANKS]:
            if field is None:
                found = [market.dashboard.values([measure]) for market in (alone, thousand, awkward)]
            elif measure != "Latest Snapshot":
                found = [market.groups([field], measure) for market in (alone, thousand, awkward)]
            assert found[0] == found[1] == found[2], measure
    assert len(thousand.groups([TIME], "Market Cap (trend)")) == 1001


def test_the_caption_tells_when_and_of_how_many_coins(awkward: Market):
    assert awkward.dashboard.values(["As Of"]) == {"As Of": "as of 2026-11-22 12:00 UTC, the 24 largest coins"}


def test_a_price_below_a_dollar_is_written_with_four_digits_that_count(awkward: Market):
    labels = awkward.groups([COIN_ID], "Price Label")

    assert labels[("tiny",)] == "$0.000000001234"
    assert labels[("bitcoin",)] == "$87,412.25"
    assert labels[("free",)] == "$0.00"
    assert ("no-price",) not in labels


def test_the_colour_of_a_change_is_that_of_its_sign(awkward: Market):
    colours = awkward.groups([COIN_ID], "Change Colour")

    assert len({colours[coin,] for coin in ("rises", "tiny", "free")}) == 3
    assert colours["rises",] == colours["bitcoin",]
    assert colours["tiny",] == colours["ether",]


def test_the_price_chart_draws_the_largest_coin_until_others_are_picked(awkward: Market):
    prices = awkward.groups([COIN_ID, COIN, TIME], "Price (trend)")
    drawn = awkward.groups([COIN_ID, COIN, TIME], "Coin Price (chart)")
    assert drawn == {key: price for key, price in prices.items() if key[0] == "bitcoin"}

    labels = {coin_id: coin for coin_id, coin, _ in prices}
    for tier, largest in (("Large Cap", "bitcoin"), ("Mid Cap", "no-change")):  # picked by a click on another visual
        rows = awkward.dashboard.groups([COIN], ["Coin Price (chart)"], {"Tier.market_cap_tier": [tier]})
        assert [row["coin"] for row in rows] == [labels[largest]]
    picked = [labels["tiny"], labels["ether"]]
    rows = awkward.dashboard.groups([COIN], ["Coin Price (chart)"], {"Coin.coin": picked})
    assert {row["coin"]: row["Coin Price (chart)"] for row in rows if row["coin"] in picked} == {
        labels["tiny"]: 1.234e-9,
        labels["ether"]: 3100.0,
    }


def read_table(dashboard: Dashboard, name: str) -> list[dict[str, Any]]:
    """The rows of a table in a .pbix, by an independent reader."""
    table = ModelReader(str(dashboard.path)).get_table(name)
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def test_a_coin_s_size_rank_is_its_place_in_the_newest_snapshot_and_those_that_left_come_last(awkward: Market):
    ranks = {row["coin_id"]: row["size_rank"] for row in read_table(awkward.dashboard, "Coin")}

    expected = awkward.sql(
        "SELECT coin_id, ROW_NUMBER() OVER (ORDER BY market_cap IS NULL, market_cap DESC, coin_id) FROM latest"
    )
    assert ranks == dict(expected) | {"gone": len(expected) + 1}


def test_the_slicer_lists_the_coins_by_size(awkward: Market):
    (order,) = [column.get("sortByColumn") for column in TABLES["Coin"]["columns"] if column["name"] == "coin"]
    labels = {row["size_rank"]: row["coin"] for row in read_table(awkward.dashboard, "Coin")}

    assert order == "size_rank"
    assert in_order(awkward.dashboard, VISUALS["slicer-coin"].field("Values")) == [labels[n] for n in sorted(labels)]


# ------------------------------------------------------------------------------- trends over history, then snapshots

# The rule in SQL, by its words: half as many, before and after.
KEPT = (
    "SELECT timestamp FROM (SELECT timestamp, caps,"
    f" MAX(caps) OVER (ORDER BY timestamp ROWS BETWEEN {AROUND} PRECEDING AND 1 PRECEDING) AS before_it,"
    f" MAX(caps) OVER (ORDER BY timestamp ROWS BETWEEN 1 FOLLOWING AND {AROUND} FOLLOWING) AS after_it"
    " FROM (SELECT timestamp, SUM(market_cap > 0 AND market_cap IS NOT NULL) AS caps FROM prices GROUP BY timestamp) t"
    ") judged WHERE NOT (caps * 2 < COALESCE(before_it, 0) AND caps * 2 < COALESCE(after_it, 0))"
)


def test_market_cap_over_time_is_that_of_sql_and_leaves_out_the_times_with_few_coins(backfilled: Market):
    times = {time for (time,) in backfilled.sql("SELECT DISTINCT timestamp FROM prices")}
    rows = backfilled.sql(
        f"SELECT timestamp, SUM(market_cap) FROM prices WHERE timestamp IN ({KEPT}) GROUP BY timestamp"
    )

    assert times - {time for time, _ in rows} == THIN_TIMES
    assert backfilled.groups([TIME], "Market Cap (trend)") == {
        (time.isoformat(),): comparable(total) for time, total in rows
    }
    assert backfilled.dashboard.values(["Times Left Out"]) == {"Times Left Out": len(THIN_TIMES)}


def test_history_then_snapshots_make_one_line_without_teeth(backfilled: Market):
    line = sorted(backfilled.groups([TIME], "Market Cap (trend)").items())
    since_step = [total for (time,), total in line if time >= STEP.isoformat()]

    assert len(since_step) == 59 - 1 - len(LONE_DAYS) - 1 + 88 - len(PARTIAL_RUNS)  # days but for a gap; snapshots
    assert all(abs(after / before - 1) < 0.03 for before, after in pairwise(since_step))


def test_the_tiers_over_time_add_up_to_the_total_at_the_same_times(backfilled: Market):
    total = backfilled.groups([TIME], "Market Cap (trend)")
    tiers: dict[Any, float] = {}
    for (time, _), cap in backfilled.groups([TIME, TIER], "Market Cap (trend)").items():
        tiers[(time,)] = tiers.get((time,), 0) + cap

    assert tiers == {time: pytest.approx(cap, rel=1e-12) for time, cap in total.items()}


def test_the_newest_time_is_shown_however_few_coins_it_has_and_is_that_of_the_cards(make_market: Any):
    times = [NEWEST - timedelta(minutes=30 * place) for place in range(5)]
    market = make_market(
        [make_row(f"coin-{coin}", time) for time in times for coin in range(2 if time == NEWEST else 10)]
    )

    line = market.groups([TIME], "Market Cap (trend)")
    assert line[(NEWEST.isoformat(),)] == market.dashboard.values(["Total Market Cap"])["Total Market Cap"] == 500e6
    assert len(line) == 5


@pytest.mark.parametrize(
    ("counts", "thin"),
    [
        ([1000] * 9 + [250] + [1000] * 9, {9}),
        ([1000] * 9 + [250] * AROUND + [1000] * 9, set(range(9, 9 + AROUND))),
        ([1000, 100] * 9 + [1000], set(range(1, 18, 2))),
        ([1000] * 9 + [499] + [1000] + [500] + [1000] * 9, {9}),
        ([1000] * 9 + [0] + [1000] * 9, {9}),
        ([250] * 9 + [1000] * 9, set()),
        ([1000] * 9 + [250] * 9, set()),
        ([1000] * 9 + [250] * 2 * AROUND + [1000] * 9, set()),
        ([250] * 9 + [1000] + [250] * 9, set()),
        ([250, 1000, 1000, 250], set()),
        ([1000, 250], set()),
        ([0], set()),
        ([1000, 998, 700, 1000, 600, 1000], set()),
        ([round(1000 * 1.05**-place) for place in range(60)][::-1] + [1000] * 9, set()),
    ],
    ids=[
        "a partial run",
        "as many partial runs in a row as are looked around",
        "full and thin by turns",
        "half is enough",
        "no market cap at all",
        "raised for good",
        "lowered for good",
        "lowered for fourteen times",
        "one larger run",
        "few coins at both ends",
        "the newest",
        "the only one",
        "about as many",
        "coins that came one by one",
    ],
)
def test_a_time_is_thin_when_times_shortly_before_and_after_have_more_than_twice_its_coins(counts: list, thin: set):
    times = [NEWEST + timedelta(minutes=30 * place) for place in range(len(counts))]
    rows = pd.DataFrame(
        [
            {"timestamp": time, "market_cap": 5.0 if coin < count else missing}
            for time, count in zip(times, counts, strict=True)
            for coin, missing in zip(range(count + 2), [0.0] * count + [None, 0.0], strict=True)
        ]
    ).sample(frac=1, random_state=1)  # rows in any order

    found = describe_times(rows)

    assert set(found["is_thin"].unique()) <= {0.0, 1.0}
    assert {times.index(time) for time in found.loc[found["is_thin"] == 1, "timestamp"]} == thin


def test_a_period_shows_its_last_time_that_is_not_left_out(backfilled: Market):
    def at(period: list[datetime], column: Field, measure: str) -> dict[str, Any]:
        where = {"Time.timestamp": [time.isoformat() for time in period]}
        return {row[column.name]: row[measure] for row in backfilled.dashboard.groups([column], [measure], where)}

    partial = PARTIAL_RUNS[1]  # the later of two in a row
    period = [partial - timedelta(minutes=30 * place) for place in range(4)]
    alone = period[2:3]

    for column, measure in ((TIER, "Market Cap (trend)"), (COIN_ID, "Market Cap (trend)"), (COIN_ID, "Price (trend)")):
        shown = at(period, column, measure)
        assert shown and shown == at(alone, column, measure), measure
    assert len(at(period, COIN_ID, "Price (trend)")) == 20
    # in a period without any other time, prices are shown and the total is not
    assert len(at([partial], COIN_ID, "Price (trend)")) == 5
    assert at([partial], TIER, "Market Cap (trend)") == {}


def test_the_price_of_a_coin_is_shown_wherever_the_coin_is_and_blank_elsewhere(backfilled: Market):
    rows = backfilled.sql("SELECT timestamp, coin_id, current_price FROM prices")
    prices = {(time.isoformat(), coin_id): comparable(price) for time, coin_id, price in rows}

    assert backfilled.groups([TIME, COIN_ID], "Price (trend)") == prices
    assert (NO_CAP_DAY.isoformat(), PRICED_ONLY) in prices and (STEP.isoformat(), LATE) not in prices


def test_days_of_history_never_enter_the_cards_the_tables_or_a_label(backfilled: Market, make_market: Any):
    alone = make_market([row for row in make_backfilled_market() if row["timestamp"] == NEWEST])

    for measure in [*FIGURES, *RANKS, "As Of", "Price Label", "Change Colour"]:
        assert backfilled.dashboard.values([measure]) == alone.dashboard.values([measure]), measure
        if measure not in ("Latest Snapshot", "As Of"):
            for fields in ([TIER], [COIN_ID, COIN]):
                assert backfilled.groups(fields, measure) == alone.groups(fields, measure), measure
    for table in ("table-gainers", "table-losers", "table-volume"):
        assert shown_coins(backfilled, table) == shown_coins(alone, table)


def test_the_picture_of_the_trends_shows_the_kept_times_and_says_how_many_are_not(backfilled: Market):
    (page,) = (page for page in REPORT.pages if page.title == "Market Trends")

    picture = draw_page(backfilled.dashboard, page, REPORT.theme)

    lines = [set(line.get_xdata()) for axes in picture.axes[1:] for line in axes.lines if len(line.get_xdata()) > 2]
    kept = {time for (time,) in backfilled.sql(KEPT)}
    every = {time for (time,) in backfilled.sql("SELECT DISTINCT timestamp FROM prices")}
    assert len(lines) >= 4  # the total, tiers, a coin
    assert lines[0] == kept
    assert all(times <= kept for times in lines[1:-1])
    assert lines[-1] == every
    note = f"Market cap over time leaves out {len(THIN_TIMES)} of {len(every)} times: they have fewer than half as many"
    assert any(text.get_text().startswith(note) for text in picture.axes[0].texts)


@pytest.mark.parametrize(
    ("counts", "start"),
    [
        ([3], "Market cap over time begins with this snapshot"),
        (
            [4, 1, 4],
            "Market cap over time leaves out 1 of 3 times: it has fewer than half as many coins as one of the 7",
        ),
        ([4, 2, 4], "Market cap over time shows all 3 times: none has fewer than half as many coins as one of the 7"),
    ],
)
def test_the_note_on_the_trends_tells_how_many_times_are_left_out(make_market: Any, counts: list[int], start: str):
    market = make_market(
        [
            make_row(f"coin-{coin}", NEWEST - timedelta(days=days))
            for days, count in enumerate(counts)
            for coin in range(count)
        ]
    )

    assert market.dashboard.values(["Trend Note"])["Trend Note"].startswith(start)


def test_the_query_and_the_texts_look_as_far_around_as_the_build():
    assert f"Around = {AROUND}," in QUERIES["Time"]
    (is_thin,) = (column for column in TABLES["Time"]["columns"] if column["name"] == "is_thin")
    texts = [MEASURES["Market Cap (trend)"]["description"], is_thin["description"]]
    for text in [*texts, MEASURES["Trend Note"]["expression"], (SOURCE / "README.md").read_text(encoding="utf-8")]:
        assert re.search(
            rf"one of the {AROUND} times\s+before( it)? and( at)? one of the {AROUND}\s+(times\s+)?after", text
        )


# ------------------------------------------------------------------------------------------------------------- labels


def test_a_label_is_the_newest_name_of_one_coin_alone(awkward: Market):
    rows = read_table(awkward.dashboard, "Coin")
    coins = {row["coin_id"]: row["coin"] for row in rows}

    assert len(rows) == len(coins) == 25  # a coin has one label, whatever it was called before
    assert coins["renamed"] == "New Name (NEW)"
    assert coins["nameless"] == "nameless"
    assert coins["emoji"] == "Émoji 🏮 =1+1 %(name)s"
    assert coins["twin-a"] == "Twin (TWN) - twin-a"
    assert coins["twin-c"] == "TWIN (TWN) - twin-c"
    assert coins["dash"] == "Twin (TWN) - twin-a - dash"  # its name is the label of another
    assert coins["spaced"] == "Tabbed name (SPAC)"
    assert len({coin.lower() for coin in coins.values()}) == 25


# ------------------------------------------------------------------------------------- a run that lands in a refresh


def make_states() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of a table before and after a run: a coin left, one joined and rose most, one is called otherwise."""
    times = [NEWEST - timedelta(days=days) for days in (3, 2, 1)]
    before = [
        make_row(f"coin-{n}", time, price_change_percentage_24h=n - 4.0 + time.day / 100, market_cap=1e9 * n)
        for time in times
        for n in range(1, 9)
    ]
    landed = [
        make_row(f"coin-{n}", NEWEST, price_change_percentage_24h=8.0 - n, market_cap=2e9 * n, name=f"Renamed {n}")
        for n in range(2, 10)
    ]
    landed[-1]["price_change_percentage_24h"] = 99.0
    return pd.DataFrame(before), pd.DataFrame(before + landed)


@pytest.fixture(scope="module")
def mixed_states(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Opens a .pbix whose tables come from the states of these names, `before` or `after` the run."""
    states = dict(zip(("before", "after"), map(embedded_tables, make_states()), strict=True))
    opened: dict[tuple[str, str, str], Dashboard] = {}

    def open_mixed(time: str, coin: str, prices: str) -> Dashboard:
        if (time, coin, prices) not in opened:
            tables = states[prices] | {"Time": states[time]["Time"], "Coin": states[coin]["Coin"]}
            path = tmp_path_factory.mktemp("mixed") / f"{NAME}.pbix"
            write_container(path, build_parts(MODEL, tables) | REPORT.parts)
            opened[time, coin, prices] = Dashboard(path, MODEL)
            opened[time, coin, prices].__enter__()
        return opened[time, coin, prices]

    yield open_mixed
    for dashboard in opened.values():
        dashboard.__exit__()


MIXES = [mix for mix in product(("before", "after"), repeat=3) if len(set(mix)) == 2]


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "Time {}, Coin {}, crypto_prices {}".format(*mix))
def test_a_run_that_lands_between_the_queries_of_a_refresh_shows_whole_or_not_at_all(mixed_states: Any, mix: Any):
    time, _, prices = mix
    state = "after" if time == prices == "after" else "before"
    mixed, whole = mixed_states(*mix), mixed_states(state, state, state)
    latest = NEWEST if state == "after" else NEWEST - timedelta(days=1)
    known = {row["coin_id"] for row in read_table(mixed, "Coin")}

    assert mixed.values(["Latest Snapshot"]) == {"Latest Snapshot": latest.isoformat()}
    for measure in [*FIGURES, "As Of", "Change Colour", "Coins in Snapshot"]:
        assert mixed.values([measure]) == whole.values([measure]), measure
        for field in (TIER, COIN_ID) if measure not in ("Latest Snapshot", "As Of") else ():
            expected = [row for row in whole.groups([field], [measure]) if field is TIER or row["coin_id"] in known]
            found = [row for row in mixed.groups([field], [measure]) if row[field.name] is not None]
            assert found == expected, (measure, field)
    for measure in RANKS:  # lists
        ranks = {row["coin_id"]: row[measure] for row in mixed.groups([COIN_ID], [measure])}
        assert None not in ranks
        assert ranks == {
            row["coin_id"]: row[measure] for row in whole.groups([COIN_ID], [measure]) if row["coin_id"] in known
        }
    for measure in TRENDS:
        points = {row["timestamp"]: row[measure] for row in mixed.groups([TIME], [measure])}
        assert None not in points and max(points) == latest.isoformat()
        assert points == {row["timestamp"]: row[measure] for row in whole.groups([TIME], [measure])}
        assert mixed.values([measure]) == whole.values([measure])  # a period that holds every time
    drawn = mixed.groups([COIN], ["Coin Price (chart)"])
    assert [row["coin"] for row in drawn if row["Coin Price (chart)"] is not None] and None not in [
        row["coin"] for row in drawn
    ]


def test_the_slicer_does_not_list_a_blank_label():
    (each,) = VISUALS["slicer-coin"].document["filterConfig"]["filters"]
    (condition,) = each["filter"]["Where"]

    assert each["field"]["Column"]["Property"] == "coin"
    assert condition["Condition"]["Not"]["Expression"]["Comparison"]["Right"] == {"Literal": {"Value": "null"}}


# ------------------------------------------------------------------------------------------- the sample, and the credit


def test_the_sample_says_that_it_is_invented_and_any_other_market_credits_coingecko(sample: Path, awkward: Market):
    with Dashboard(sample / f"{NAME}.pbix", MODEL) as dashboard:
        assert dashboard.values(["Source"]) == {"Source": "Sample market, invented: not CoinGecko's data"}
        assert dashboard.values(["Is Sample Market"]) == {"Is Sample Market": 1}

    assert awkward.dashboard.values(["Source"]) == {"Source": "Data provided by CoinGecko"}
    assert awkward.dashboard.values(["Is Sample Market"]) == {"Is Sample Market": None}


@pytest.mark.parametrize("page", REPORT.pages, ids=lambda page: page.title)
def test_the_credit_stands_under_the_title_of_each_page(page: Page):
    title, source = (
        next(visual for visual in page.visuals if visual.document["name"] == name).document["position"]
        for name in ("header-title", "header-source")
    )

    assert source["y"] == title["y"] + title["height"] and source["x"] == title["x"]
    (shown,) = [visual.field("Data").name for visual in page.visuals if visual.document["name"] == "header-source"]
    assert shown == "Source"


def test_the_names_of_the_sample_look_like_a_market(sample: Path):
    rows = {name: ModelReader(str(sample / f"{NAME}.pbix")).get_table(name) for name in ("Coin", "Time")}
    names = [row[rows["Coin"]["columns"].index("coin")] for row in rows["Coin"]["rows"]]

    assert len(names) == len(set(names)) == 100
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+( Dollar)? \([A-Z]{4}\)", name) for name in names)
    assert len(rows["Time"]["rows"]) == 31


# --------------------------------------------------------------------------------------------- the source of the model


def test_the_queries_filter_and_pick_columns_at_the_source_before_any_step_of_their_own():
    for name in ("crypto_prices", "Coin", "Time"):
        own_steps = re.search(r"Table\.(AddColumn|TransformColumnTypes|Expand\w+)|Text\.|List\.Buffer", QUERIES[name])
        at_the_source = QUERIES[name][: own_steps.start()]

        assert "Table.SelectRows(Prices, each [timestamp] > Since and [timestamp] <= Latest)" in at_the_source
        assert "Value.NativeQuery" not in QUERIES[name]
    (picked,) = re.findall(r"Kept = Table\.SelectColumns\(Recent, \{(.*?)\}\)", QUERIES["crypto_prices"])
    assert set(re.findall(r'"(\w+)"', picked)) == {column["name"] for column in TABLES["crypto_prices"]["columns"]}


def test_every_column_is_typed_by_its_query():
    words = {"double": "number", "string": "text", "dateTime": "datetime"}
    for name in ("crypto_prices", "Coin", "Time"):
        columns = {column["name"]: words[column["dataType"]] for column in TABLES[name]["columns"]}
        typed = dict(re.findall(r'\{"(\w+)", type (\w+)\}', QUERIES[name][QUERIES[name].rindex("Typed = ") :]))
        assert typed == columns | ({"date": "date"} if name == "Time" else {})


def test_the_model_is_a_star_of_keys_and_figures():
    ends = {(each["fromTable"], each["fromColumn"], each["toTable"]) for each in MODEL.tmsl["model"]["relationships"]}
    facts = {column["name"]: column for column in TABLES["crypto_prices"]["columns"]}

    assert ends == {
        ("crypto_prices", "coin_id", "Coin"),
        ("crypto_prices", "timestamp", "Time"),
        ("crypto_prices", "market_cap_tier", "Tier"),
    }
    assert {name for name, column in facts.items() if column["dataType"] != "double"} == {key for _, key, _ in ends}


def test_the_tiers_of_the_model_are_those_of_the_pipeline_in_their_order():
    assert re.findall(r'\{"(.+?)", (\d)\}', QUERIES["Tier"]) == [
        (tier, str(order)) for order, tier in enumerate(TIERS, start=1)
    ]


def test_every_measure_and_column_is_explained_and_formatted():
    for measure in MEASURES.values():
        assert measure["description"] and measure["displayFolder"]
        assert measure["name"] in TEXTS or measure["formatString"]
    for table in TABLES.values():
        assert table["description"] and all(column["description"] for column in table["columns"])
    hidden = {column["name"] for table in TABLES.values() for column in table["columns"] if column.get("isHidden")}
    assert hidden == {"timestamp", "coin_id", "market_cap_tier", "tier_order", "size_rank", "is_thin", "coins"}


# -------------------------------------------------------------------------------------------- the source of the report


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """How well two colours tell apart, from 1 to 21, as WCAG 2 reckons it."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_stands_out_from_what_is_behind_it():
    theme = REPORT.theme
    styles = theme["visualStyles"]["*"]["*"]
    texts = {theme["foreground"], *(each["color"] for each in theme["textClasses"].values())}
    texts |= {styles[name][0]["fontColor"]["solid"]["color"] for name in ("title", "subTitle")}
    texts |= {styles[name][0]["labelColor"]["solid"]["color"] for name in ("categoryAxis", "valueAxis", "legend")}
    texts |= set(re.findall(r'"(#\w{6})"', MEASURES["Change Colour"]["expression"]))
    table = json.dumps(VISUALS["table-volume"].document)
    shades = re.findall(r"'(#\w{6})'", table)

    assert len(texts) >= 4 and len(shades) >= 4
    for text in texts:
        assert contrast(text, theme["background"]) >= 4.5, text
    for shade in shades:  # behind the figures, but for the line between them
        assert contrast(theme["foreground"], shade) >= 4.5, shade
    for name, text in (("header-title", "#FFFFFF"), ("header-as-of", "#FFFFFF"), ("header-trend-note", "#4B5768")):
        header, _, behind = json.dumps(VISUALS[name].document).partition('"background"')
        assert text in header
        assert contrast(text, re.search(r"'(#\w{6})'", behind)[1]) >= 4.5


def test_no_visual_overlaps_another_or_leaves_the_page():
    for page in REPORT.pages:
        boxes = [visual.document["position"] for visual in page.visuals]
        for box in boxes:
            assert box["x"] >= 0 and box["x"] + box["width"] <= page.definition["width"]
            assert box["y"] >= 0 and box["y"] + box["height"] <= page.definition["height"]
        for one, other in combinations(boxes, 2):
            apart_in_x = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
            apart_in_y = one["y"] + one["height"] <= other["y"] or other["y"] + other["height"] <= one["y"]
            assert apart_in_x or apart_in_y


def test_every_visual_says_what_it_shows():
    for name, visual in VISUALS.items():
        assert visual.container("general", "altText"), name
        if not name.startswith("header-"):
            assert visual.container("title", "text") and visual.container("subTitle", "text"), name


# --------------------------------------------------------------------------------------------------- the built files


def read_parts(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_metadata(path: Path) -> dict[str, list[tuple]]:
    """What a .pbix says of its model: every table of its own database that a TMDL file has a word for."""
    queries = {
        "model": "SELECT Culture, DefaultPowerBIDataSourceVersion, DiscourageImplicitMeasures FROM Model",
        "tables": "SELECT Name, Description, IsHidden, LineageTag FROM [Table] WHERE Name NOT LIKE '%$%'",
        "columns": "SELECT t.Name, c.ExplicitName, c.ExplicitDataType, c.IsHidden, c.FormatString, c.SummarizeBy,"
        " c.Description, c.LineageTag, s.ExplicitName FROM [Column] c JOIN [Table] t ON t.ID = c.TableID"
        " LEFT JOIN [Column] s ON s.ID = c.SortByColumnID WHERE t.Name NOT LIKE '%$%'",
        "measures": "SELECT Name, Expression, FormatString, Description, DisplayFolder, LineageTag, IsHidden, DataType"
        " FROM Measure",
        "queries": "SELECT Name, QueryDefinition FROM Partition WHERE QueryDefinition IS NOT NULL",
        "parameters": "SELECT Name, Expression, Description FROM Expression",
        "annotations": "SELECT ObjectType, Name, Value FROM Annotation",
    }
    with closing(open_metadata(path)) as metadata:
        return {name: sorted(metadata.execute(query).fetchall(), key=repr) for name, query in queries.items()}


def open_metadata(path: Path) -> sqlite3.Connection:
    metadata = sqlite3.connect(":memory:")
    metadata.deserialize(read_metadata_sqlite(decompress_datamodel(read_parts(path)["DataModel"])))
    return metadata


@pytest.mark.parametrize("name", [f"{NAME}.pbix", f"{NAME}.pbit"])
def test_the_committed_files_are_what_the_source_makes(sample: Path, name: str):
    committed, built = read_parts(SOURCE / name), read_parts(sample / name)

    assert committed.keys() == built.keys()
    for part in committed.keys() - {"DataModel"}:
        assert committed[part] == built[part], f"{part} differs: run python powerbi/build_dashboard.py"


def test_the_committed_model_is_what_the_source_makes(sample: Path):
    committed, built = SOURCE / f"{NAME}.pbix", sample / f"{NAME}.pbix"

    assert read_metadata(committed) == read_metadata(built)
    for table in TABLES:
        one, other = (ModelReader(str(path)).get_table(table) for path in (committed, built))
        assert one["columns"] == other["columns"]
        assert len(one["rows"]) and one["rows"] == other["rows"]


@pytest.mark.parametrize("name", ["preview-market-overview.png", "preview-market-trends.png"])
def test_the_committed_pictures_are_what_the_source_makes(sample: Path, name: str):
    committed, built = (image.imread(folder / name) for folder in (SOURCE, sample))

    assert committed.shape == built.shape
    different = (abs(committed - built) > 0.1).any(axis=2).mean()
    assert different < 0.001, "run python powerbi/build_dashboard.py"  # a machine may round a pixel otherwise


def test_a_built_model_says_all_that_the_source_says(sample: Path):
    metadata = read_metadata(sample / f"{NAME}.pbix")

    said = ("name", "expression", "formatString", "description", "displayFolder", "lineageTag")
    assert {row[:-1] for row in metadata["measures"]} == {
        (*(measure.get(word) for word in said), measure.get("isHidden", False)) for measure in MEASURES.values()
    }
    types, codes = {"string": 2, "int64": 6, "double": 8, "dateTime": 9}, {"none": 2}
    assert {row for row in metadata["columns"] if not str(row[1]).startswith("RowNumber")} == {
        (
            table["name"],
            column["name"],
            types[column["dataType"]],
            column.get("isHidden", False),
            column.get("formatString"),
            codes[column["summarizeBy"]],
            column["description"],
            column["lineageTag"],
            column.get("sortByColumn"),
        )
        for table in TABLES.values()
        for column in table["columns"]
    }
    assert dict(metadata["queries"]) == {
        table["name"]: partition["source"]["expression"]
        for table in TABLES.values()
        for partition in table["partitions"]
    }
    assert metadata["parameters"] == sorted(
        (each["name"], each["expression"], each["description"]) for each in MODEL.tmsl["model"]["expressions"]
    )
    noted = [
        (number, each["name"], each["value"])
        for number, objects in (
            (1, [MODEL.tmsl["model"]]),
            (3, TABLES.values()),
            (4, [column for table in TABLES.values() for column in table["columns"]]),
            (8, MEASURES.values()),
            (41, MODEL.tmsl["model"]["expressions"]),
        )
        for document in objects
        for each in document.get("annotations", [])
    ]
    assert (1, "__PBI_TimeIntelligenceEnabled", "0") in noted
    assert metadata["annotations"] == sorted(noted, key=repr)


def test_the_metadata_is_as_desktop_writes_it(sample: Path):
    with closing(open_metadata(sample / f"{NAME}.pbix")) as metadata:

        def read(query: str) -> set[tuple]:
            return set(metadata.execute(query).fetchall())

        keys = "SELECT TableID FROM [Column] WHERE IsKey GROUP BY TableID HAVING COUNT(*) > 1"
        assert read(keys) == set()  # Desktop refuses a table with two
        assert read("SELECT InferredDataType FROM [Column] WHERE Type = 1") == {(19,)}
        assert 9 not in {code for (code,) in read("SELECT DataType FROM DictionaryStorage")}
        none = "SELECT QueryGroupID, ParameterValuesColumnID, ExpressionSourceID, ModifiedTime IS NULL FROM Expression"
        assert read(none) == {(0, 0, 0, 0)}
        assert read("SELECT LinguisticMetadataID FROM Culture") == {(0,)}
        codes = {name: code for name, code in read("SELECT Name, DataType FROM Measure")}
    assert {codes[name] for name in TEXTS} == {2} and codes["Latest Snapshot"] == 9
    assert {codes[name] for name in codes.keys() - TEXTS - {"Latest Snapshot"}} == {8}


@pytest.mark.parametrize("name", [f"{NAME}.pbix", f"{NAME}.pbit"])
def test_the_container_has_the_version_of_a_report_in_pbir(sample: Path, name: str):
    assert read_parts(sample / name)["Version"].decode("utf-16-le") == "1.32"


def test_the_template_holds_the_whole_model_and_no_row(sample: Path):
    parts = read_parts(sample / f"{NAME}.pbit")

    assert json.loads(parts["DataModelSchema"].decode("utf-16-le")) == MODEL.tmsl
    assert "DataModel" not in parts


@pytest.mark.parametrize("name", [f"{NAME}.pbix", f"{NAME}.pbit"])
def test_the_report_in_a_built_file_is_the_source_byte_for_byte(sample: Path, name: str):
    folder = SOURCE / f"{NAME}.Report"
    source = {
        f"Report/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for part in ("definition", "StaticResources")
        for path in (folder / part).rglob("*.json")
    }

    parts = read_parts(sample / name)

    assert len(source) > 20
    assert {part: data for part, data in parts.items() if part.startswith("Report")} == source


# -------------------------------------------------------------------------------------------------------- the command


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
    assert built.stderr.count("\n") == 1 and "run sql/crypto_prices.sql" in built.stderr


def test_a_dry_run_writes_nothing(tmp_path: Path):
    built = build(tmp_path / "out", "--dry-run")

    assert (built.returncode, built.stderr) == (0, "")
    assert "3,076 rows; times: 31" in built.stdout
    assert not (tmp_path / "out").exists()


def test_the_build_says_what_took_how_long(tmp_path: Path):
    built = build(tmp_path / "out")

    steps = re.findall(r"^(\S.*\S) +\d+\.\d s$", built.stdout, re.M)
    assert steps[:3] == ["read the source", "read the rows", "encoded the data model"]
    assert steps[-2:] == ["drew Market Overview", "drew Market Trends"]
    assert build(tmp_path / "out", "-q").stdout == ""


# ------------------------------------------------------------------------------------------- mistakes in the source

PRICES_TMDL = f"{NAME}.SemanticModel/definition/tables/crypto_prices.tmdl"
TIER_TMDL = f"{NAME}.SemanticModel/definition/tables/Tier.tmdl"
RELATIONSHIPS_TMDL = f"{NAME}.SemanticModel/definition/relationships.tmdl"
DEFINITION = f"{NAME}.Report/definition"
THEME_JSON = f"{NAME}.Report/StaticResources/RegisteredResources/CryptoMarketTheme.json"
(GAINERS,) = (path for path in VISUALS["table-gainers"].path.parents[5].rglob("table-gainers/visual.json"))
GAINERS_JSON = GAINERS.relative_to(SOURCE).as_posix()


@pytest.fixture
def copied_source(tmp_path: Path) -> Path:
    """A copy of the project's files that the build uses."""
    for script in ("etl_crypto.py", "segment_and_load.py"):
        shutil.copy(SOURCE.parent / script, tmp_path)
    shutil.copytree(SOURCE, tmp_path / "powerbi", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(SOURCE.parent / "tests" / "data", tmp_path / "tests" / "data")
    return tmp_path / "powerbi"


def change(source: Path, file: str, old: str, new: str) -> None:
    """Change a file of the source in one place."""
    text = (source / file).read_text(encoding="utf-8")
    assert old in text
    (source / file).write_text(text.replace(old, new, 1), encoding="utf-8")


MISTAKES = {
    "a closing bracket missing in a measure": (PRICES_TMDL, "REMOVEFILTERS())", "REMOVEFILTERS()", "expected"),
    "a measure of a column that is not there": (
        PRICES_TMDL,
        "SUM(crypto_prices[market_cap])",
        "SUM(crypto_prices[cap])",
        "cap",
    ),
    "a measure of a measure that is not there": (
        PRICES_TMDL,
        "DIVIDE([Total Market Cap],",
        "DIVIDE([Total Cap],",
        "Total Cap",
    ),
    "a measure of a function that is not there": (
        PRICES_TMDL,
        "COUNTROWS(crypto_prices)",
        "COUNTROW(crypto_prices)",
        "COUNTROW",
    ),
    "a measure of a variable that is not there": (
        PRICES_TMDL,
        "KEEPFILTERS(crypto_prices[timestamp] = latest)",
        "KEEPFILTERS(crypto_prices[timestamp] = newest)",
        "newest",
    ),
    "a function with too few arguments": (
        PRICES_TMDL,
        "DIVIDE([Total Market Cap], CALCULATE([Total Market Cap], REMOVEFILTERS()))",
        "DIVIDE([Total Market Cap])",
        "DIVIDE",
    ),
    "a variable named like a word of DAX": (
        PRICES_TMDL,
        "VAR price = [Price]",
        "VAR value = [Price]\n\t\t\tVAR price = value",
        "value",
    ),
    "two measures of one name": (PRICES_TMDL, "measure 'Volume Rank'", "measure 'gainer rank'", "twice"),
    "a measure without an expression": (
        PRICES_TMDL,
        "measure 'Market Cap Share' = DIVIDE([Total Market Cap], CALCULATE([Total Market Cap], REMOVEFILTERS()))",
        "measure 'Market Cap Share' =",
        "expression is missing",
    ),
    "a column of an unknown type": (PRICES_TMDL, "dataType: double", "dataType: float", "dataType"),
    "a misspelled word": (PRICES_TMDL, "formatString: #,0", "formatStrng: #,0", "formatStrng"),
    "a word that the .pbix would lose": (TIER_TMDL, "isHidden", "isKey", "isKey"),
    "spaces in place of a tab": (PRICES_TMDL, "\tcolumn coin_id", "    column coin_id", "tab"),
    "a sort by a column that is not there": (
        TIER_TMDL,
        "sortByColumn: tier_order",
        "sortByColumn: order",
        "sorted by order",
    ),
    "a bracket missing in a query": (
        PRICES_TMDL,
        '{{"timestamp", Order.Descending}}), 1)',
        '{{"timestamp", Order.Descending}}, 1)',
        "is not closed",
    ),
    "a bracket too many in a query": (TIER_TMDL, '{"Unknown", 5}}', '{"Unknown", 5}}}', "closes nothing"),
    "a text without an end in a query": (TIER_TMDL, '{"Unknown", 5}}', '{"Unknown, 5}}', "does not end"),
    "a step that the query does not have": (
        f"{NAME}.SemanticModel/definition/tables/Time.tmdl",
        "Table.Distinct(Table.SelectColumns(Recent,",
        "Table.Distinct(Table.SelectColumns(Recentt,",
        "Recentt",
    ),
    "a relationship to a column that is not there": (
        f"{NAME}.SemanticModel/definition/relationships.tmdl",
        "Tier.market_cap_tier",
        "Tier.tier",
        "Tier.tier",
    ),
    "a relationship of two types": (
        f"{NAME}.SemanticModel/definition/relationships.tmdl",
        "toColumn: Tier.market_cap_tier",
        "toColumn: Tier.tier_order",
        "two types",
    ),
    "a table that no file has": (
        f"{NAME}.SemanticModel/definition/model.tmdl",
        "ref table Tier",
        "ref table Tiers",
        "Tiers",
    ),
    "a comma too many in a visual": (GAINERS_JSON, '"visualType": "tableEx",', '"visualType": "tableEx",,', "line"),
    "a visual of a measure that is not there": (
        GAINERS_JSON,
        '"Property": "Price Label"',
        '"Property": "Prices"',
        "Prices",
    ),
    "a visual of a table that is not there": (
        GAINERS_JSON,
        '"Entity": "crypto_prices"',
        '"Entity": "prices"',
        "prices",
    ),
    "a queryRef that is not the field's": (
        GAINERS_JSON,
        '"queryRef": "crypto_prices.Price Label"',
        '"queryRef": "crypto_prices.Price"',
        "queryRef",
    ),
    "a format for a column that is not shown": (
        GAINERS_JSON,
        '"metadata": "crypto_prices.',
        '"metadata": "prices.',
        "does not show",
    ),
    "a number without its letter": (GAINERS_JSON, '"Value": "1L"', '"Value": "one"', "literal"),
    "a visual without a place": (GAINERS_JSON, '"position"', '"place"', "position"),
    "a page that is not there": (
        f"{DEFINITION}/pages/pages.json",
        "07ccb59ede2a29c4ffe0",
        "17ccb59ede2a29c4ffe0",
        "pageOrder",
    ),
    "a theme that is not registered": (
        f"{DEFINITION}/report.json",
        '"name": "CryptoMarketTheme.json",\n      "reportVersion',
        '"name": "Theme.json",\n      "reportVersion',
        "Theme.json",
    ),
}


MISTAKES |= {
    "a calculated column": (TIER_TMDL, "column tier_order", "column tier_order = 1", "calculated"),
    "a relationship twice": (
        RELATIONSHIPS_TMDL,
        "relationship 3a2a",
        "relationship other\n\tfromColumn: crypto_prices.coin_id\n\ttoColumn: Coin.coin_id\n\nrelationship 3a2a",
        "the same columns",
    ),
    "a flag with a value": (TIER_TMDL, "\t\tisHidden", "\t\tisHidden: true", "without a value"),
    "an annotation without a value": (
        TIER_TMDL,
        "annotation PBI_ResultType = Table",
        "annotation PBI_ResultType",
        "value",
    ),
    "a description of nothing": (TIER_TMDL, "\tpartition Tier", "\t/// of nothing\n\n\tpartition Tier", "///"),
    "a column sorted by itself": (TIER_TMDL, "sortByColumn: tier_order", "sortByColumn: market_cap_tier", "no other"),
    "a parameter that is none": (
        f"{NAME}.SemanticModel/definition/expressions.tmdl",
        "HistoryDays = 90 meta [IsParameterQuery=true, ",
        "HistoryDays = 90 meta [",
        "no parameter",
    ),
    "a key twice": (
        GAINERS_JSON,
        '"visualType": "tableEx",',
        '"visualType": "tableEx", "visualType": "tableEx",',
        "twice",
    ),
    "a text in place of a number": (GAINERS_JSON, '"x": ', '"x": "1", "angle": ', "pixels"),
    "an object in place of a list": (GAINERS_JSON, '"grid": [', '"grid": {"0": [', "Expecting"),
    "a number without a suffix": (GAINERS_JSON, '"Value": "1L"', '"Value": "1"', "literal"),
    "a page that is opened and is not there": (
        f"{DEFINITION}/pages/pages.json",
        '"activePageName": "7590ce2b48ed4e957b33"',
        '"activePageName": "none"',
        "activePageName",
    ),
    "no page at all": (
        f"{DEFINITION}/pages/pages.json",
        '"pageOrder": [',
        '"pageOrder": [], "others": [',
        "pageOrder",
    ),
    "a sort by a sum": (
        GAINERS_JSON,
        '"sort": [',
        '"sort": [{"field": {"Aggregation": {"Expression": {}, "Function": 0}}, "direction": "Ascending"}, ',
        "sorted by",
    ),
    "a theme of another name": (THEME_JSON, '"name": "CryptoMarketTheme.json"', '"name": "Theme"', "its name"),
    "a theme of another form": (THEME_JSON, '"visualStyles": {', '"visualStyles": [], "others": {', "visualStyles"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_source_is_named_with_its_file(copied_source: Path, mistake: str):
    file, old, new, reason = MISTAKES[mistake]
    change(copied_source, file, old, new)

    with pytest.raises(SourceError) as raised:
        read_source(copied_source / f"{NAME}.SemanticModel" / "definition", copied_source / f"{NAME}.Report")

    assert str(copied_source) in str(raised.value) and Path(file).name in str(raised.value)
    assert reason in str(raised.value)


def test_what_desktop_and_people_write_otherwise_is_built_all_the_same(copied_source: Path):
    pages = copied_source / DEFINITION / "pages"
    for path in pages.glob("*/page.json"):  # no background of its own, and one title for both
        page = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({key: page[key] for key in page if key != "objects"} | {"displayName": "Market/1"}))
    cultures = copied_source / f"{NAME}.SemanticModel" / "definition" / "cultures"
    cultures.mkdir()
    (cultures / "en-US.tmdl").write_text(
        "cultureInfo en-US\n\n\tlinguisticMetadata =\n"
        '\t\t\t{\n\t\t\t  "Version": "1.0.0"\n\t\t\t}\n\t\tcontentType: json\n'
    )
    change(
        copied_source,
        f"{NAME}.SemanticModel/definition/model.tmdl",
        "ref table Tier",
        "ref cultureInfo en-US\nref table Tier",
    )
    change(copied_source, PRICES_TMDL, "formatString: #,0\n", 'formatString: "#,0"" coins"""\n')
    change(copied_source, PRICES_TMDL, "+0.00%;-0.00%;0.00%", "Percent")
    change(copied_source, PRICES_TMDL, "// COUNT leaves", "// as [Gainer Rank] does, COUNT leaves")
    change(
        copied_source,
        PRICES_TMDL,
        "measure 'Times Left Out' = CALCULATE(COUNTROWS('Time'), REMOVEFILTERS(), 'Time'[is_thin] = 1) + 0",
        "measure 'Times Left Out' = ```\n"
        "\t\t\tCALCULATE(COUNTROWS('Time'), REMOVEFILTERS(), 'Time'[is_thin] = 1) + 0\n\t\t\t```",
    )
    change(copied_source, TIER_TMDL, "\t\tisHidden\n", "\t\tisHidden\n\t\tchangedProperty = IsHidden\n\n")
    gainers = copied_source / GAINERS_JSON
    visual = json.loads(gainers.read_text(encoding="utf-8"))
    visual["visual"]["query"]["sortDefinition"]["sort"] = [
        {
            "field": visual["visual"]["query"]["queryState"]["Values"]["projections"][1]["field"],
            "direction": "Descending",
        }
    ]
    del visual["filterConfig"]
    gainers.write_bytes(b"\xef\xbb\xbf" + json.dumps(visual).replace("\n", "\r\n").encode())

    built = run_copy(copied_source)

    assert (built.returncode, built.stderr) == (0, "")
    assert len(list(copied_source.glob("preview-market-1-*.png"))) == 2
    model = json.loads(read_parts(copied_source / f"{NAME}.pbit")["DataModelSchema"].decode("utf-16-le"))
    assert '#,0" coins"' in json.dumps(model, ensure_ascii=False).replace('\\"', '"')


def run_copy(source: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the build of a copy of the source into that copy."""
    return subprocess.run(
        [sys.executable, source / "build_dashboard.py", *options],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={key: value for key, value in os.environ.items() if not key.startswith(SETTING_PREFIXES)},
    )


def test_a_picture_shows_what_the_report_says_and_else_its_theme(copied_source: Path, awkward: Market):
    change(copied_source, GAINERS_JSON, "'Top 5 Gainers'", "'Five that rose most'")
    change(copied_source, THEME_JSON, '"title": [', '"title": [{"fontColor": {"solid": {"color": "#123456"}}},')

    _, report = read_source(copied_source / f"{NAME}.SemanticModel" / "definition", copied_source / f"{NAME}.Report")
    picture = draw_page(awkward.dashboard, report.pages[0], report.theme)

    (title,) = (text for text in picture.axes[0].texts if text.get_text() == "Five that rose most")
    assert title.get_color() == "#123456"
    below = sorted((text.get_position()[1], text.get_text()) for text in picture.axes[0].texts)
    leaps, climbs = (next(y for y, text in below if text.startswith(name)) for name in ("Leaps", "Climbs"))
    assert title.get_position()[1] < leaps < climbs


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


def test_rows_without_a_tier_are_told(server: Any, tmp_path: Path):
    database = Database(server)
    fill(database, [make_row("one", market_cap_tier=None), make_row("two")])

    built = build(tmp_path / "out", "--from-mysql", **database.settings())
    database.drop()

    assert "1 rows have no tier" in built.stderr and "run segment_and_load.py" in built.stderr


def test_a_folder_that_cannot_be_made_is_named_in_one_line(tmp_path: Path):
    (tmp_path / "out").write_text("a file", encoding="utf-8")

    built = build(tmp_path / "out")

    assert built.returncode == 2
    assert built.stderr.count("\n") == 1 and "name another folder" in built.stderr


@pytest.mark.parametrize("name", [f"{NAME}.pbix", "preview-market-trends.png"])
def test_a_file_that_cannot_be_written_is_named_in_one_line_and_nothing_half_stays(tmp_path: Path, name: str):
    (tmp_path / "out" / name).mkdir(parents=True)

    built = build(tmp_path / "out")

    assert built.returncode == 2
    assert built.stderr.count("\n") == 1 and "cannot write" in built.stderr and name in built.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_a_wrong_password_is_told_in_one_line(server: Any, tmp_path: Path):
    database = Database(server)

    built = build(tmp_path / "out", "--from-mysql", **database.settings() | {"MYSQL_PASSWORD": "not this one"})
    database.drop()

    assert built.returncode == 4
    assert built.stderr.count("\n") == 1 and "MYSQL_PASSWORD" in built.stderr and "not this one" not in built.stderr


@pytest.mark.parametrize(
    ("figure", "pattern", "text"),
    [
        (1512000000000.0, r"\$#,0", "$1,512,000,000,000"),
        (0.000463468, r"\$#,0.00##", "$0.0005"),
        (1e-9, r"\$#,0.00########", "$0.000000001"),
        (87412.0, r"\$#,0.00########", "$87,412.00"),
        (0.1626839, "+0.00%;-0.00%;0.00%", "+16.27%"),
        (-0.1428, "+0.00%;-0.00%;0.00%", "-14.28%"),
        (0.0, "+0.00%;-0.00%;0.00%", "0.00%"),
        (-2.5, "#,0.0", "-2.5"),
        (None, "0", ""),
    ],
)
def test_the_pictures_write_figures_as_the_formats_of_the_model_say(figure: float | None, pattern: str, text: str):
    assert format_figure(figure, pattern) == text
