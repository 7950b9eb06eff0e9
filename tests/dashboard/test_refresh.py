"""A refresh in Power BI while the pipeline writes: some of its queries read the table before a run, some after it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import product
from typing import Any

import pandas as pd
import pytest
from build_dashboard import NAME, build_parts, embedded_tables, write_container
from pbix_query import Dashboard

from tests.dashboard.markets import FIGURES, NEWEST, RANKS, TRENDS, make_row, read_table
from tests.dashboard.source import COIN, COIN_ID, MODEL, REPORT, TIER, TIME, VISUALS


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
