"""--status: how up to date the table is, for people and for programs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.conftest import TODAY, Database, Scripts, last_line, make_coin, make_coins, midnight, one_line_error
from tests.stub_coingecko import SAMPLE_FILES, StubCoinGecko, read_sample

# ----------------------------------------------------------------------------------------------------------- for people


def test_status_shows_the_newest_snapshot_its_age_and_the_rows(scripts: Scripts, api: StubCoinGecko):
    scripts.pipeline("--replay", *SAMPLE_FILES)
    fresh = (datetime.now(UTC) - timedelta(minutes=7, seconds=30)).isoformat()
    api.coins = [make_coin(1, last_updated=fresh), make_coin(2)]
    scripts.pipeline("--force")
    scripts.run("etl_crypto.py", "--force", SNAPSHOT_MINUTES="525600")

    one_line_error(scripts.pipeline("--status", "--max-age", "7"), 6, "more than --max-age 7")
    result = scripts.pipeline("--status", "--max-age", "30")

    assert result.returncode == 0, result.stderr
    facts = {line[:20].strip(): line[20:].strip() for line in result.stdout.splitlines()}
    rows = sum(len(read_sample(path)) for path in SAMPLE_FILES) + 4
    assert facts["newest snapshot"].startswith(f"{datetime.now(UTC):%Y-%m-%d} ")
    assert facts["newest snapshot"].endswith("2 coins")
    assert facts["age"].startswith("7 min") or facts["age"].startswith("8 min")
    assert facts["table"].endswith(
        f".crypto_prices at {scripts.settings['MYSQL_HOST']}:{scripts.settings['MYSQL_PORT']}"
    )
    assert facts["total market cap"] == "$1.50T"
    assert facts["largest coins"] == "'coin-00001' 66.7%, 'coin-00002' 33.3%"
    assert facts["tiers"] == "2 large"
    assert facts["rows in all"] == f"{rows:,}"
    assert facts["rows without a tier"] == "2"


def test_status_shows_how_far_the_table_reaches_and_its_gaps(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    scripts.pipeline("--backfill", 10)
    database.execute("DELETE FROM crypto_prices WHERE timestamp IN (%s, %s)", (midnight(4), midnight(7)))

    result = scripts.pipeline("--status")

    line = f"history              {midnight(10):%Y-%m-%d} to {TODAY:%Y-%m-%d}: 11 days, 2 without a snapshot"
    assert line in result.stdout.splitlines()


def test_status_and_the_summary_count_the_coins_whose_figures_are_stale_and_name_the_largest(
    scripts: Scripts, api: StubCoinGecko
):
    now = datetime.now(UTC)
    ages = [timedelta(0), timedelta(hours=4), timedelta(days=14), timedelta(hours=2, minutes=50)]
    api.coins = [make_coin(n, last_updated=(now - age).isoformat()) for n, age in enumerate(ages, 1)]
    api.coins.append(make_coin(5, last_updated=None))

    run, status = scripts.pipeline(), scripts.pipeline("--status")

    stale = "2 over 3 h older than the snapshot, the largest 'coin-00002'"
    assert last_line(run.stdout) == f"stale coins: {stale}"
    assert last_line(status.stdout) == f"stale coins          {stale}"
    api.coins = api.coins[:1]
    assert "stale" not in scripts.pipeline("--force").stdout + scripts.pipeline("--status").stdout


# The coins of the days before today, the oldest first, and how many days ago there were fewer.
@pytest.mark.parametrize(
    ("coins", "fewer"),
    [
        ([10, 10, 8, 10, 10], [3]),
        ([10, 8, 8, 8, 10, 10], [5, 4, 3]),
        ([10, 10, 9, 10, 10], []),
        ([10, 10, 10, 8], [1]),  # nobody knows yet whether it lasts
        ([10, 10, 8, 8], [2, 1]),  # nor of these
        ([10, 10] + 8 * [8], [7, 6, 5, 4, 3, 2]),  # of the oldest it is known: a lasting step
        ([8, 8, 10, 10], []),
        ([10] + 14 * [7] + [10, 10], []),  # fewer for two weeks
    ],
)
def test_days_with_fewer_coins_than_those_before_and_after_are_marked(
    scripts: Scripts, coins: list[int], fewer: list[int]
):
    days = {midnight(ago): make_coins(size) for ago, size in zip(range(len(coins), 0, -1), coins, strict=True)}
    thin = {midnight(len(coins) + 1) + timedelta(hours=1): make_coins(3)}  # in mid-day: the last of the day counts
    whole = {midnight(len(coins) + 1) + timedelta(hours=2): make_coins(coins[0])}
    scripts.load(thin | whole | days)

    marked = sorted(f"{midnight(ago):%Y-%m-%d}" for ago in fewer)
    result = scripts.pipeline("--status")
    shown = [line.removeprefix("fewer coins          on ") for line in result.stdout.splitlines() if "fewer" in line]
    more = f" and {len(marked) - 5} days before" if len(marked) > 5 else ""
    assert shown == ([", ".join(reversed(marked[-5:])) + more] if marked else [])
    facts = json.loads(scripts.pipeline("--status", "--json").stdout)
    assert sorted(facts["days_with_fewer_coins"]) == marked


def test_status_counts_the_coins_of_each_tier(scripts: Scripts):
    scripts.pipeline("--replay", SAMPLE_FILES[-1])

    shown = scripts.pipeline("--status").stdout

    assert "\ntiers                14 large, 27 mid, 29 small, 21 micro/nano, 8 unknown\n" in shown
    assert "\ntotal market cap     $2.97T\n" in shown


def test_coins_that_have_no_tier_yet_are_in_none(scripts: Scripts, api: StubCoinGecko):
    api.coins = make_coins(3)
    scripts.run("etl_crypto.py")

    assert "\ntiers                none yet\n" in scripts.pipeline("--status").stdout
    assert json.loads(scripts.pipeline("--status", "--json").stdout)["coins_by_tier"] == {}


def test_status_needs_no_more_than_the_right_to_read(scripts: Scripts, database: Database):
    scripts.pipeline("--replay", SAMPLE_FILES[-1])
    database.execute(f"REVOKE INSERT, UPDATE ON crypto_prices FROM '{database.user}'@'%'")

    assert scripts.pipeline("--status").returncode == 0


# ---------------------------------------------------------------------------------------------------- is it up to date?


def test_status_exits_6_when_the_figures_are_too_old(scripts: Scripts):
    scripts.pipeline("--replay", SAMPLE_FILES[-1])

    one_line_error(scripts.pipeline("--status", "--max-age", "60"), 6, "more than --max-age 60")


def test_a_figure_dated_in_the_future_does_not_hide_the_age(scripts: Scripts, api: StubCoinGecko):
    api.coins = [make_coin(1), make_coin(2, last_updated="9999-01-01T00:00:00Z")]
    scripts.pipeline()

    one_line_error(scripts.pipeline("--status", "--max-age", "60"), 6, "more than --max-age 60")


def test_status_exits_6_when_the_table_is_empty(scripts: Scripts):
    one_line_error(scripts.pipeline("--status"), 6, "is empty", "run python pipeline_orchestrator.py")


# --------------------------------------------------------------------------------------------------------- for programs


def test_status_for_programs_holds_the_same_facts(scripts: Scripts, small_market: StubCoinGecko, database: Database):
    scripts.pipeline("--backfill", 10)
    database.execute("DELETE FROM crypto_prices WHERE timestamp = %s", (midnight(4),))
    database.execute("UPDATE crypto_prices SET market_cap_tier = NULL WHERE timestamp = %s LIMIT 2", (midnight(1),))

    facts = json.loads(scripts.pipeline("--status", "--json").stdout)

    assert facts.pop("age_minutes") > 60 * 24 * 365
    [(newest,)] = database.execute("SELECT MAX(timestamp) FROM crypto_prices")
    assert facts == {
        "table": f"{database.name}.crypto_prices",
        "newest_snapshot": f"{newest.isoformat()}Z",
        "coins": 5,
        "market_cap": sum(coin["market_cap"] for coin in small_market.coins),
        "coins_by_tier": {"Large Cap": 5},
        "largest_coins": {coin["id"]: coin["market_cap"] for coin in small_market.coins[:3]},
        "newest_figure": "2025-03-14T23:59:31Z",
        "stale_coins": 5,
        "largest_stale_coin": "coin-00001",
        "oldest_snapshot": f"{midnight(10).isoformat()}Z",
        "days": 11,
        "days_without_snapshot": 1,
        "days_with_fewer_coins": [],
        "rows": 50,
        "rows_are_estimated": False,
        "rows_without_tier": 2,
        "rows_past_retention": None,
        "future_snapshots": 0,
    }


def test_status_for_programs_of_an_empty_table_is_json_too(scripts: Scripts):
    result = scripts.pipeline("--status", "--json", "-q")

    assert result.returncode == 6
    facts = json.loads(result.stdout)
    assert facts["newest_snapshot"] is facts["market_cap"] is None
