"""Every measure of the dashboard against SQL over the same rows: in total, per tier, per coin and over time."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from build_dashboard import NAME
from pbix_query import Dashboard
from report_source import Field

from tests.dashboard.markets import (
    FIGURES,
    NEWEST,
    RANKS,
    TRENDS,
    Market,
    comparable,
    make_awkward_market,
    make_row,
    shown_coins,
)
from tests.dashboard.source import COIN, COIN_ID, MEASURES, MODEL, TEXTS, TIER, TIME


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


@pytest.mark.slow
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


def test_the_caption_names_the_time_and_the_number_of_coins(awkward: Market):
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


def test_the_sample_says_that_it_is_invented_and_any_other_market_credits_coingecko(sample: Path, awkward: Market):
    with Dashboard(sample / f"{NAME}.pbix", MODEL) as dashboard:
        assert dashboard.values(["Source"]) == {"Source": "Sample market, invented: not CoinGecko's data"}
        assert dashboard.values(["Is Sample Market"]) == {"Is Sample Market": 1}

    assert awkward.dashboard.values(["Source"]) == {"Source": "Data provided by CoinGecko"}
    assert awkward.dashboard.values(["Is Sample Market"]) == {"Is Sample Market": None}
