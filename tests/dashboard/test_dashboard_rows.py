"""The coins that the build puts into a .pbix: their labels, and their order by size."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
from build_dashboard import NAME, describe_times
from draw_preview import Line, above_zero, in_order, largest_coins
from pbix_mcp.formats.model_reader import ModelReader

from tests.dashboard.markets import Market, read_table
from tests.dashboard.source import TABLES, VISUALS


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


def test_the_names_of_the_sample_look_like_a_market(sample: Path):
    rows = {name: ModelReader(str(sample / f"{NAME}.pbix")).get_table(name) for name in ("Coin", "Time")}
    names = [row[rows["Coin"]["columns"].index("coin")] for row in rows["Coin"]["rows"]]

    assert len(names) == len(set(names)) == 100
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+( Dollar)? \([A-Z]{4}\)", name) for name in names)
    assert len(rows["Time"]["rows"]) == 31


@pytest.mark.parametrize(
    ("with_market_cap", "is_thin"),
    [
        ([10, 4, 10], [0, 1, 0]),
        ([10, 5, 11], [0, 0, 0]),
        ([11, 5, 10], [0, 0, 0]),
        ([10, 4, 4], [0, 0, 0]),
        ([4, 4, 10], [0, 0, 0]),
    ],
)
def test_a_time_is_thin_when_fewer_than_half_as_many_coins_have_a_market_cap(
    with_market_cap: list[int], is_thin: list[int]
):
    market_caps = [[1.0] * known + [0.0, None] * 5 for known in with_market_cap]  # 0 and NULL are not known
    times = [datetime(2025, 3, day) for day in range(1, len(market_caps) + 1)]
    rows = [(at, cap) for at, caps in zip(times, market_caps, strict=True) for cap in caps]

    described = describe_times(pd.DataFrame(rows, columns=["timestamp", "market_cap"]))

    assert described["is_thin"].tolist() == is_thin
    assert described["date"].tolist() == times


def test_the_largest_coins_come_first(awkward: Market):
    ranks = {row["coin"]: row["size_rank"] for row in read_table(awkward.dashboard, "Coin")}

    assert largest_coins(awkward.dashboard, VISUALS["slicer-coin"].field("Values")) == sorted(ranks, key=ranks.get)


def test_a_logarithmic_scale_has_no_place_for_zero_and_less():
    at = datetime(2025, 3, 14)

    assert above_zero([Line("a", "", [(at, 0.0), (at, 1.0), (at, -1.0)]), Line("b", "", [(at, 0.0)])]) == [
        Line("a", "", [(at, 1.0)])
    ]
