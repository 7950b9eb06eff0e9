"""Is what came the whole market? A list is compared with the snapshots in the table before it is loaded."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.conftest import Database, Scripts, make_coin, make_coins, one_line_error, utc_now
from tests.stub_coingecko import StubCoinGecko

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def load_sizes(scripts: Scripts, sizes: dict[int, int]) -> None:
    """Snapshots of so many coins, by their age in hours."""
    scripts.load({utc_now() - age * HOUR: make_coins(size) for age, size in sizes.items()})


def newest_size(database: Database) -> int:
    statement = "SELECT COUNT(*) FROM crypto_prices GROUP BY timestamp ORDER BY timestamp DESC LIMIT 1"
    return database.execute(statement)[0][0]


# ------------------------------------------------------------------------------------------------------- how many coins


@pytest.mark.parametrize(("coins", "exit_code"), [(90, 0), (89, 3)])
def test_the_largest_of_the_last_five_snapshots_says_how_many_coins_are_expected(
    scripts: Scripts, api: StubCoinGecko, coins: int, exit_code: int
):
    load_sizes(scripts, dict(enumerate([70, 70, 70, 70, 100, 200], 1)))
    api.coins = make_coins(coins)

    result = scripts.pipeline()

    if exit_code:
        one_line_error(result, 3, "ended early", "89 coins came where 100 were expected", "--force", "--replay")
    else:
        assert result.returncode == 0, result.stderr
        assert "90 coins came where 100 were expected: 10 are missing" in result.stderr


def test_a_list_that_shrinks_slowly_is_compared_with_the_snapshot_of_the_day_before(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    load_sizes(scripts, {50: 300, 25: 200, 5: 196, 4: 192, 3: 188, 2: 184, 1: 181})
    api.coins = make_coins(179)

    one_line_error(scripts.pipeline(), 3, "179 coins came where 200 were expected")
    assert newest_size(database) == 181

    result = scripts.pipeline("--force", "-q")
    assert (result.returncode, newest_size(database)) == (0, 179)


def test_a_snapshot_of_less_than_a_day_before_counts_among_the_last_five_alone(scripts: Scripts, api: StubCoinGecko):
    load_sizes(scripts, {23: 200, 5: 100, 4: 100, 3: 100, 2: 100, 1: 100})
    api.coins = make_coins(100)

    assert scripts.pipeline().returncode == 0


def test_a_list_of_as_many_coins_as_before_is_not_warned_of(scripts: Scripts):
    scripts.load({utc_now() - HOUR: make_coins(120)})

    assert "expected" not in scripts.pipeline().stderr


def test_a_first_list_that_ends_before_coin_limit_is_warned_of_once(scripts: Scripts):
    assert "the list ends with 120 coins, before COIN_LIMIT=1000" in scripts.pipeline().stderr
    assert "COIN_LIMIT" not in scripts.pipeline().stderr


@pytest.mark.parametrize("limit", ["120", "1", "all"])
def test_a_first_list_that_reaches_coin_limit_is_not_warned_of(scripts: Scripts, limit: str):
    result = scripts.pipeline("--coins", limit)

    assert result.returncode == 0
    assert "COIN_LIMIT" not in result.stderr


# ---------------------------------------------------------------------------------------------------------- which coins


def test_missing_coins_that_held_much_of_the_market_refuse_the_list_and_force_once_gets_through(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    load_sizes(scripts, {2: 500, 1: 500})
    api.coins = make_coins(500, first=40)
    scripts.settings["COIN_LIMIT"] = "500"

    named = "missing: 39 coins, the largest 'coin-00001', which held 62.6% of the market cap"
    one_line_error(scripts.pipeline(), 3, named, "--force once", "--replay")
    assert database.count() == 1000
    assert len(scripts.kept("*.pending.json.gz")) == 1

    assert scripts.pipeline("--force").returncode == 0
    result = scripts.pipeline()
    assert result.returncode == 0, result.stderr


# of 100 coins, where the hundredth held a fifth of the market cap of the first
@pytest.mark.parametrize(("missing_cap", "exit_code"), [(5.3, 3), (4.9, 0)])
def test_missing_coins_refuse_the_list_above_a_twentieth_of_the_market_cap(
    scripts: Scripts, api: StubCoinGecko, missing_cap: float, exit_code: int
):
    others = [make_coin(n, market_cap=1.0) for n in range(2, 97)]
    scripts.load({utc_now() - HOUR: [make_coin(1, market_cap=missing_cap), *others]})
    api.coins = [*others, make_coin(97, market_cap=0.5)]

    assert scripts.pipeline().returncode == exit_code


@pytest.mark.parametrize(("market_cap", "exit_code"), [(4.0, 0), (4.1, 3)])
def test_a_missing_coin_of_up_to_twice_the_smallest_may_have_fallen_below_the_limit(
    scripts: Scripts, api: StubCoinGecko, market_cap: float, exit_code: int
):
    scripts.settings["COIN_LIMIT"] = "4"
    before = [make_coin(n, market_cap=cap) for n, cap in ((1, 5.0), (2, market_cap), (3, 3.9), (4, 3.8), (5, 3.7))]
    scripts.load({utc_now() - HOUR: before})
    api.coins = [make_coin(n, market_cap=cap) for n, cap in ((6, 6.0), (1, 5.0), (7, 2.0), (8, 0), (9, 1.0))]

    assert scripts.pipeline().returncode == exit_code


@pytest.mark.parametrize("small", [make_coins(5), [make_coin(900)]], ids=["of few coins", "of another coin"])
def test_a_small_snapshot_in_between_is_no_measure(scripts: Scripts, api: StubCoinGecko, small: list[dict]):
    scripts.load({utc_now() - 2 * HOUR: make_coins(120), utc_now() - HOUR: small})
    whole, api.coins = api.coins, [coin for coin in api.coins if not 5 < coin["market_cap_rank"] < 45]
    assert scripts.pipeline("--coins", "80").returncode == 3

    api.coins = whole
    assert scripts.pipeline().returncode == 0


def test_coins_without_a_market_cap_say_nothing(scripts: Scripts, api: StubCoinGecko):
    unknown = [make_coin(n, market_cap=cap) for n, cap in ((8, 0), (9, None))]
    scripts.load({utc_now() - HOUR: [*make_coins(7), *unknown]})
    api.coins = [*make_coins(7), make_coin(10, market_cap=0), make_coin(11, market_cap=None)]

    assert scripts.pipeline().returncode == 0
    assert scripts.pipeline("--coins", "5").returncode == 0


def test_the_largest_of_the_missing_coins_is_named(scripts: Scripts, api: StubCoinGecko):
    scripts.load(
        {
            utc_now() - HOUR: [
                *make_coins(120),
                make_coin(121, id="aa", market_cap=1e11),
                make_coin(122, id="zz", market_cap=1e12),
            ]
        }
    )

    one_line_error(scripts.pipeline(), 3, "missing: 2 coins, the largest 'zz', which held ")


@pytest.mark.parametrize("limit", [1, 5, 120])
def test_a_changed_coin_limit_is_no_fault(scripts: Scripts, limit: int):
    scripts.load({utc_now() - HOUR: make_coins(60)})

    assert scripts.pipeline("--coins", limit).returncode == 0


def test_a_coin_that_is_rejected_is_warned_of_and_not_missing(scripts: Scripts, api: StubCoinGecko, database: Database):
    scripts.load({utc_now() - HOUR: make_coins(120)})
    api.coins[0] |= {"current_price": "?"}

    result = scripts.pipeline()

    assert result.returncode == 0
    assert "rejected: 1 coins, the largest 'coin-00001', which held 18.6% of the market cap" in result.stderr
    assert "the totals lack them" in result.stderr
    assert newest_size(database) == 119


# ------------------------------------------------------------------------------------------- what says nothing about it


def test_snapshots_in_the_future_say_nothing(scripts: Scripts, api: StubCoinGecko):
    others = [make_coin(n, id=f"other-{n}") for n in range(1, 121)]
    scripts.load({utc_now() + 6 * MINUTE: make_coins(500), utc_now() + 24 * HOUR: others}, "--force")

    result = scripts.pipeline()

    assert result.returncode == 0, result.stderr
    assert "before COIN_LIMIT=1000" in result.stderr  # the table counts as empty


def test_a_replayed_list_is_not_compared(scripts: Scripts, database: Database):
    scripts.load({utc_now() - HOUR: make_coins(120)})
    scripts.settings["COIN_LIMIT"] = "120"

    scripts.load({utc_now() - MINUTE: make_coins(5, first=100)})

    assert newest_size(database) == 5
