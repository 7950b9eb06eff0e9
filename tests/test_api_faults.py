"""What CoinGecko, or whatever stands in its place, may answer: the table ends up whole or untouched, in one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import NoReturn

import pytest

from tests.conftest import Database, Scripts, last_line, make_coins, one_line_error
from tests.stub_coingecko import FORBIDDEN, Answer, StubCoinGecko

MARKET = make_coins(1000)
FOUR_PAGES = {"COIN_LIMIT": "1000", "REQUESTS_PER_MINUTE": "1000"}
WHOLE_PAGE = json.dumps(MARKET[:250]).encode()

# What may pass, by what a user would call it. Each is an answer to a call for one page.
PASSING: dict[str, Callable[[StubCoinGecko], Answer]] = {
    "429": lambda api: Answer(status=429),
    "429 with Retry-After 0": lambda api: Answer(status=429, headers={"Retry-After": "0"}),
    "429 with Retry-After 1": lambda api: Answer(status=429, headers={"Retry-After": "1"}),
    "408": lambda api: Answer(status=408),
    "500": lambda api: Answer({"error": "internal"}, 500),
    "502": lambda api: Answer(b"<html>Bad gateway", 502),
    "503": lambda api: Answer(status=503),
    "a passing 403": lambda api: Answer(FORBIDDEN, 403),
    "no HTTP at all": lambda api: Answer(raw=b"\x16\x03\x01"),
    "a reset in mid-body": lambda api: Answer(WHOLE_PAGE, reset=True),
    "a body cut short": lambda api: Answer(WHOLE_PAGE[:30_000], length=len(WHOLE_PAGE)),
    "truncated JSON": lambda api: Answer(WHOLE_PAGE[:30_000]),
    "HTML with status 200": lambda api: Answer(b"<html>Just a moment..."),
    "an error object with status 200": lambda api: Answer({"status": {"error_code": 429, "error_message": "slow"}}),
    "a list of other things": lambda api: Answer([17, None, "coin", []]),
    "50 MB": lambda api: Answer(b" " * 50_000_000),
    "nested arrays": lambda api: Answer(b"[" * 1_000_000),
    "broken gzip": lambda api: Answer(gzip.compress(WHOLE_PAGE)[:9_000], headers={"Content-Encoding": "gzip"}),
    "a gzip bomb": lambda api: Answer(gzip.compress(b" " * 100_000_000), headers={"Content-Encoding": "gzip"}),
    "a hang": lambda api: api.hang(),
}
FINAL = {
    "400": lambda api: Answer(status=400),
    "a wrong key": lambda api: Answer({"status": {"error_code": 10010, "error_message": "no"}}, 400),
    "a used-up month": lambda api: Answer({"status": {"error_code": 10006, "error_message": "no"}}, 403),
    "401": lambda api: Answer(status=401),
    "404": lambda api: Answer({"error": "not found"}, 404),
}


@pytest.fixture
def market(api: StubCoinGecko, scripts: Scripts) -> StubCoinGecko:
    """CoinGecko with four pages of coins."""
    api.coins = MARKET
    scripts.settings |= FOUR_PAGES | {"HTTP_TIMEOUT_SECONDS": "3"}
    return api


# -------------------------------------------------------------------------------------------------- a fault on one page


@pytest.mark.parametrize("fault", PASSING | FINAL)
def test_a_fault_that_lasts_leaves_the_table_untouched_and_is_logged_in_one_line(
    scripts: Scripts, market: StubCoinGecko, database: Database, fault: str
):
    page = 1 + list(PASSING | FINAL).index(fault) % 4
    market.script = lambda asked, attempt: (PASSING | FINAL)[fault](market) if asked == page else None

    result = scripts.pipeline(HTTP_TIMEOUT_SECONDS="1")

    one_line_error(result, 3, "CoinGecko", str(page) if fault in PASSING else "status")
    assert database.count() == 0
    assert scripts.kept() == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [1, 2, 3, 4])
@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_loses_no_coin_on_whatever_page(
    scripts: Scripts, market: StubCoinGecko, database: Database, fault: str, page: int
):
    market.script = lambda asked, attempt: PASSING[fault](market) if (asked, attempt) == (page, 1) else None

    result = scripts.pipeline(RETRY_BUDGET_SECONDS="10")

    assert result.returncode == 0, result.stderr
    assert database.execute("SELECT COUNT(*), COUNT(market_cap_tier) FROM crypto_prices") == [(1000, 1000)]
    assert [line for line in result.stderr.splitlines() if f"page {page}: " in line and "trying again in" in line]


# ---------------------------------------------------------- a list that ends early, leads elsewhere or is partly broken


@pytest.mark.parametrize(("page", "rows"), [(1, 0), (2, 150), (3, 251), (4, 249)])
def test_a_short_page_that_another_follows_is_broken_and_its_list_loaded_by_force_alone(
    scripts: Scripts, market: StubCoinGecko, database: Database, page: int, rows: int
):
    market.coins = make_coins(1250)
    short = market.coins[250 * (page - 1) :][: min(rows, 250)] + make_coins(max(rows - 250, 0), first=2000)
    market.script = lambda asked, attempt: Answer(short) if asked == page else None

    broken = f"page {page} has {rows} rows and not 250, though page {page + 1} follows"
    one_line_error(scripts.pipeline("--dry-run"), 3, "CoinGecko's answer is broken", broken)
    one_line_error(scripts.pipeline(), 3, "CoinGecko's answer is broken", broken, "--force --replay")
    assert market.pages.count(page) == 4
    [pending] = scripts.kept()
    assert scripts.pipeline("--replay", pending).returncode == 3
    assert database.count() == 0

    coins = min(750 + rows, 1000) if page < 3 else 1000
    for forced in (scripts.pipeline("--force"), scripts.pipeline("--force", "--replay", pending)):
        assert forced.returncode == 0, forced.stderr
        assert f"loaded because of --force: {broken}" in forced.stderr
        assert database.execute("SELECT COUNT(*) FROM crypto_prices GROUP BY timestamp")[-1] == (coins,)


@pytest.mark.parametrize("rows", [0, 249])
def test_a_short_page_that_is_whole_when_it_is_requested_again_is_no_fault(
    scripts: Scripts, market: StubCoinGecko, database: Database, rows: int
):
    market.script = lambda page, attempt: Answer(MARKET[:rows]) if (page, attempt) == (1, 1) else None

    result = scripts.pipeline("-q")

    assert result.returncode == 0
    assert "broken" not in result.stderr
    assert database.count() == 1000


def test_a_small_coin_limit_does_not_hide_a_broken_page(scripts: Scripts, market: StubCoinGecko, database: Database):
    market.script = lambda page, attempt: Answer(MARKET[50:250]) if page == 1 else None

    one_line_error(scripts.pipeline("--coins", "100"), 3, "page 1 has 200 rows and not 250, though page 2 follows")
    assert database.count() == 0


def test_a_market_of_short_pages_spends_few_calls(scripts: Scripts, market: StubCoinGecko):
    market.coins = make_coins(3000)
    market.script = lambda page, attempt: Answer(market.coins[(page - 1) * 100 : page * 100])

    one_line_error(scripts.pipeline("--coins", "100"), 3, "page 1 has 100 rows and not 250, though page 2 follows")
    assert market.pages == [1, 1, 2]
    market.requests.clear()
    one_line_error(scripts.pipeline("--coins", "2000"), 3, "page 1 has 100 rows")
    assert len(market.pages) <= 9


def test_a_page_sent_twice_is_broken(scripts: Scripts, market: StubCoinGecko, database: Database):
    market.script = lambda page, attempt: Answer(MARKET[:250]) if page > 1 else None

    one_line_error(scripts.pipeline(), 3, "page 2 has no coin that the pages before it have not")
    assert database.count() == 0


def test_a_server_that_goes_away_in_mid_list_leaves_the_table_untouched(
    scripts: Scripts, market: StubCoinGecko, database: Database
):
    market.coins = make_coins(2000)

    def go_away(page: int, attempt: int) -> NoReturn:
        market.server.socket.close()
        raise ConnectionAbortedError

    market.script = lambda page, attempt: go_away(page, attempt) if page >= 3 else None

    result = scripts.pipeline(COIN_LIMIT="2000")

    one_line_error(result, 3, "no answer from http://127.0.0.1")
    assert database.count() == 0


def test_the_key_does_not_follow_a_redirect_on_whatever_page(
    scripts: Scripts, market: StubCoinGecko, database: Database
):
    scripts.settings["COINGECKO_API_KEY"] = "CG-key"
    with StubCoinGecko(MARKET) as elsewhere:
        for page in range(1, 5):
            away = Answer(status=302, headers={"Location": f"{elsewhere.url}/coins/markets?page={page}"})
            market.script = lambda asked, attempt, page=page, away=away: away if asked == page else None
            one_line_error(scripts.pipeline(), 3, "set COINGECKO_BASE_URL")

    assert elsewhere.requests == []
    assert database.count() == 0


def test_a_broken_page_among_whole_ones_refuses_the_snapshot_and_force_loads_the_others(
    scripts: Scripts, market: StubCoinGecko, database: Database
):
    broken = [coin | {"current_price": "1.0"} for coin in MARKET[250:500]]
    market.script = lambda page, attempt: Answer(broken) if page == 2 else None

    one_line_error(scripts.pipeline(), 3, "250 of the 1,000 coins", "--force --replay")

    result = scripts.pipeline("--force", "--replay", *scripts.kept())
    assert result.returncode == 0, result.stderr
    assert "750 coins, 250 rejected" in result.stdout
    assert database.count() == 750
    assert last_line(result.stderr).endswith("UTC")
