"""The trends over days of history and then snapshots: what they show, and which times market cap leaves out."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
from build_dashboard import AROUND, SOURCE, describe_times
from draw_preview import draw_page
from report_source import Field

from tests.dashboard.markets import FIGURES, NEWEST, RANKS, Market, comparable, make_row, shown_coins
from tests.dashboard.source import COIN, COIN_ID, MEASURES, QUERIES, REPORT, TABLES, TIER, TIME

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


@pytest.fixture(scope="module")
def backfilled(make_market: Any) -> Market:
    return make_market(make_backfilled_market())


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


def test_the_picture_of_the_trends_shows_the_kept_times_and_names_how_many_are_left_out(backfilled: Market):
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
def test_the_note_on_the_trends_names_how_many_times_are_left_out(make_market: Any, counts: list[int], start: str):
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
