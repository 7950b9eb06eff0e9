"""What etl_crypto.py asks CoinGecko, and what it does with every kind of answer: pages, rate limit, retries, keys."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
import responses

from etl_crypto import CoinGecko, DataError, fetch_coins
from tests.conftest import Database, Scripts, make_coins, make_settings, one_line_error
from tests.stub_coingecko import FORBIDDEN, Answer, StubCoinGecko

MARKETS = "https://api.coingecko.com/api/v3/coins/markets"


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def market() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture(autouse=True)
def all_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="etl_crypto")


def fetch(clock: Clock, limit: int | None = 100, **settings: str) -> list:
    with closing(CoinGecko(make_settings(**settings), clock.sleep, clock)) as api:
        return fetch_coins(api, limit)[0]


def ids(coins: list) -> list[str]:
    return list(dict.fromkeys(coin["id"] for coin in coins))


# ---------------------------------------------------------------------------------------------------------------- pages


def test_the_first_coins_are_fetched_from_pages_of_constant_size(api: StubCoinGecko, clock: Clock):
    api.coins = make_coins(600)

    coins = fetch(clock, 300, COINGECKO_BASE_URL=api.url)

    assert coins == api.coins[:300]
    assert sorted(api.pages) == [1, 2]
    assert {request.query["per_page"] for request in api.requests} == {"250"}
    assert {request.query["price_change_percentage"] for request in api.requests} == {"1h,24h,7d"}


def test_a_spare_page_makes_up_for_coins_that_come_twice(api: StubCoinGecko, clock: Clock):
    coins = make_coins(750)
    api.coins = coins[:250] + coins[200:450] + coins[430:]  # the ranking moved: 70 repeats

    fetched = fetch(clock, 500, COINGECKO_BASE_URL=api.url)

    assert ids(fetched) == [coin["id"] for coin in coins[:500]]
    assert sorted(api.pages) == [1, 2, 3]


@pytest.mark.parametrize(("count", "last"), [(1100, 5), (1000, 5), (999, 4), (2000, 9)])
def test_all_coins_end_at_a_short_page_that_was_confirmed_and_that_none_follows(
    api: StubCoinGecko, clock: Clock, count: int, last: int
):
    api.coins = make_coins(count)

    fetched = fetch(clock, None, COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE="100")

    assert len(ids(fetched)) == count
    assert api.pages.count(last) == 2
    assert last + 1 in api.pages
    assert max(api.pages) <= last + 4  # so many may be on their way when the last one turns out to be short


def test_an_empty_page_in_mid_list_that_passes_loses_no_coin(api: StubCoinGecko, clock: Clock):
    api.coins = make_coins(900)
    api.script = lambda page, attempt: Answer([]) if (page, attempt) == (2, 1) else None

    assert len(ids(fetch(clock, 900, COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE="100"))) == 900


def test_of_a_last_page_that_is_short_twice_the_longer_answer_counts(api: StubCoinGecko, clock: Clock):
    api.coins = make_coins(400)
    api.script = lambda page, attempt: Answer(api.coins[250:300]) if (page, attempt) == (2, 2) else None

    assert fetch(clock, None, COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE="100") == api.coins


def test_a_list_that_repeats_itself_for_ever_ends(api: StubCoinGecko, clock: Clock):
    api.script = lambda page, attempt: Answer(api.coins)

    assert len(ids(fetch(clock, None, COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE="100"))) == 120
    assert len(api.pages) < 10


def test_four_pages_are_in_flight_at_once(api: StubCoinGecko, clock: Clock):
    api.coins = make_coins(1000)
    together = threading.Barrier(4, timeout=10)
    api.script = lambda page, attempt: together.wait() and None

    assert len(fetch(clock, 1000, COINGECKO_BASE_URL=api.url)) == 1000


# ----------------------------------------------------------------------------------------------------------- rate limit


@pytest.mark.parametrize("limit", [2, 5])
def test_no_minute_has_more_calls_than_the_limit(api: StubCoinGecko, clock: Clock, limit: int):
    api.coins = make_coins(250 * 11)
    calls = []
    api.script = lambda page, attempt: calls.append(clock.now)

    fetch(clock, 250 * 11, COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE=str(limit))

    assert len(calls) == 11
    assert max(sum(start <= call < start + 60 for call in calls) for start in calls) <= limit


def test_a_call_counts_for_a_whole_minute(api: StubCoinGecko, clock: Clock):
    with closing(
        CoinGecko(make_settings(COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE="2"), clock.sleep, clock)
    ) as coingecko:
        for passed in (0, 59.5):
            clock.now += passed
            assert len(list(coingecko.fetch_each("page", coingecko.fetch_page, [1, 2]))) == 2

    assert clock.waits == [0.5]


def test_a_burst_below_the_limit_does_not_wait(api: StubCoinGecko, clock: Clock):
    api.coins = make_coins(1250)

    fetch(clock, 1250, COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE="5")

    assert clock.waits == []


@pytest.mark.parametrize(("key", "plan", "limit"), [("", "pro", 5), ("CG-k", "demo", 30), ("CG-k", "pro", 250)])
def test_the_plan_sets_the_rate_limit(key: str, plan: str, limit: int):
    assert make_settings(COINGECKO_API_KEY=key, COINGECKO_API_PLAN=plan).requests_per_minute == limit


def test_a_fetch_that_takes_minutes_says_so_first_and_then_how_far_it_is(
    api: StubCoinGecko, clock: Clock, caplog: pytest.LogCaptureFixture
):
    api.coins = make_coins(2_000)

    fetch(clock, 2_000, COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE="2")

    told = [record.message for record in caplog.records if record.levelno >= logging.INFO]
    assert told[0] == "about 8 calls are needed, and 2 a minute allowed: this takes about 3 min"
    assert not any("waiting" in line for line in told)
    assert [line for line in told if "left" in line] == ["4 of 8 pages, 2 min left", "8 of 8 pages, 0 min left"]


def test_a_fetch_that_needs_no_wait_is_not_announced(
    api: StubCoinGecko, clock: Clock, caplog: pytest.LogCaptureFixture
):
    fetch(clock, COINGECKO_BASE_URL=api.url)

    assert "calls are needed" not in caplog.text


# -------------------------------------------------------------------------------------------------------------- retries


@pytest.mark.parametrize(
    ("header", "wait"), [("119", 119), ("0", 1), ("1.5", 1.5), ("soon", 1), ("-5", 1), ("nan", 1), (None, 1)]
)
def test_retry_after_is_obeyed_whole(
    market: responses.RequestsMock, clock: Clock, caplog: pytest.LogCaptureFixture, header: str | None, wait: float
):
    market.get(MARKETS, status=429, headers={"Retry-After": header} if header else {})
    market.get(MARKETS, json=make_coins(100))

    assert len(fetch(clock)) == 100
    assert clock.waits == [wait]
    assert f"page 1: status 429; trying again in {wait:.0f} s" in caplog.text


def test_the_first_wait_says_how_long_this_may_go_on_and_without_network_how_to_load_the_sample(
    clock: Clock, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(DataError):
        fetch(clock, COINGECKO_BASE_URL="http://127.0.0.1:1", RETRY_BUDGET_SECONDS="300")

    first, *others = [record.message for record in caplog.records if "trying again in" in record.message]
    assert "Connection refused" in first
    assert "for up to 5 min (RETRY_BUDGET_SECONDS)" in first
    assert "MYSQL_DATABASE=crypto_sample bash sql/local_mysql.sh python pipeline_orchestrator.py --replay" in first
    assert others
    assert not any("for up to" in line or "crypto_sample" in line for line in others)


def test_with_a_network_the_first_wait_does_not_offer_the_sample(
    market: responses.RequestsMock, clock: Clock, caplog: pytest.LogCaptureFixture
):
    market.get(MARKETS, status=503)
    market.get(MARKETS, json=make_coins(100))

    fetch(clock)

    assert "for up to 10 min (RETRY_BUDGET_SECONDS)" in caplog.text
    assert "crypto_sample" not in caplog.text


def test_retry_after_may_be_a_date(market: responses.RequestsMock, clock: Clock):
    at = datetime.now(UTC) + timedelta(seconds=90)
    market.get(MARKETS, status=503, headers={"Retry-After": at.strftime("%a, %d %b %Y %H:%M:%S GMT")})
    market.get(MARKETS, json=make_coins(100))

    fetch(clock)

    assert 85 < clock.waits[0] <= 90


def test_a_wait_beyond_the_budget_is_not_started(market: responses.RequestsMock, clock: Clock):
    market.get(MARKETS, status=429, headers={"Retry-After": "601"})

    with pytest.raises(DataError, match="due in 601 s, and RETRY_BUDGET_SECONDS=600"):
        fetch(clock)
    assert clock.waits == []


def test_a_wait_of_the_whole_budget_is_waited(market: responses.RequestsMock, clock: Clock):
    market.get(MARKETS, status=429, headers={"Retry-After": "600"})
    market.get(MARKETS, json=make_coins(100))

    assert len(fetch(clock)) == 100
    assert clock.waits == [600]


def test_pages_that_fail_together_are_waited_for_together(api: StubCoinGecko, clock: Clock):
    api.coins = make_coins(1000)
    limited = Answer(status=429, headers={"Retry-After": "60"})
    api.script = lambda page, attempt: limited if attempt == 1 else None

    assert len(fetch(clock, 1000, COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE="1000")) == 1000
    assert clock.waits == [60]


def test_all_waiting_after_failures_stays_within_the_budget(market: responses.RequestsMock, clock: Clock):
    market.get(MARKETS, status=500)

    with pytest.raises(DataError, match="RETRY_BUDGET_SECONDS=100"):
        fetch(clock, RETRY_BUDGET_SECONDS="100", REQUESTS_PER_MINUTE="1000")
    assert clock.waits == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 408},
        {"status": 429},
        {"status": 500},
        {"status": 502, "body": "<html>Bad gateway"},
        {"status": 503},
        {"status": 403, "json": FORBIDDEN},
        {"status": 200, "body": "<html>Just a moment"},
        {"status": 200, "body": '[{"id": "a"'},
        {"status": 200, "json": {"status": {"error_code": 429, "error_message": "slow down"}}},
        {"status": 200, "json": {"error": "try later"}},
        {"status": 200, "json": {"coins": []}},
        {"status": 200, "body": "[" * 100_000},
        {"body": requests.ConnectionError("reset")},
        {"body": requests.ReadTimeout()},
        {"body": requests.exceptions.ContentDecodingError("bad gzip")},
    ],
    ids=str,
)
def test_a_failure_that_may_pass_is_tried_again(market: responses.RequestsMock, clock: Clock, answer: dict):
    market.get(MARKETS, **answer)
    market.get(MARKETS, json=make_coins(100))

    assert len(fetch(clock)) == 100


@pytest.mark.parametrize("page", [1, 2, 3, 4])
def test_whatever_passing_failures_a_page_has_no_coin_is_lost_or_doubled(api: StubCoinGecko, clock: Clock, page: int):
    api.coins = make_coins(1000)
    whole = json.dumps(api.coins[:250]).encode()
    failures = [
        Answer(status=429, headers={"Retry-After": "119"}),
        Answer(b"<html>Bad gateway", 502),
        Answer(FORBIDDEN, 403),
        Answer(b"<html>Just a moment"),
        Answer({"status": {"error_code": 429, "error_message": "slow down"}}),
        Answer(whole[:30_000], length=len(whole)),
        Answer(whole[:30_000]),
        Answer(gzip.compress(whole)[:9_000], headers={"Content-Encoding": "gzip"}),
        Answer(b"[" * 100_000),
        Answer(b" " * 21_000_000),
        Answer(status=408),
    ]
    api.script = lambda asked, attempt: failures[attempt - 1] if asked == page and attempt <= len(failures) else None

    fetched = fetch(clock, 1000, COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE="1000")

    assert fetched == api.coins
    assert clock.waits == [119, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]


@pytest.mark.parametrize("status", [400, 401, 404, 410])
def test_a_failure_that_will_not_pass_is_not_tried_again(market: responses.RequestsMock, clock: Clock, status: int):
    market.get(MARKETS, status=status)

    with pytest.raises(DataError, match=str(status)):
        fetch(clock)
    assert len(market.calls) == 1


def test_calls_without_a_network_do_not_wait_for_the_rate_limit(clock: Clock):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"

        with pytest.raises(DataError, match=r"page 1: no answer from .* \('Connection refused'\) \(and 3 more\)"):
            fetch(clock, 1000, COINGECKO_BASE_URL=url, RETRY_BUDGET_SECONDS="100")
    assert clock.waits == [1, 2, 4, 8, 16, 32]


def test_an_unexplained_403_is_asked_again_twice(market: responses.RequestsMock, clock: Clock):
    market.get(MARKETS, status=403, json=FORBIDDEN)

    with pytest.raises(DataError, match=r"temporarily unavailable.*again and again"):
        fetch(clock)
    assert len(market.calls) == 3


@pytest.mark.parametrize(
    ("answer", "waits"),
    [
        (Answer(b"<html>Just a moment", 403), [1, 2, 4]),
        (Answer(b"<html>Just a moment"), [1, 2, 4]),
        (Answer(status=500, headers={"Retry-After": "3600"}), [60, 60, 60]),
        (Answer(status=400), []),
    ],
    ids=str,
)
def test_with_tries_a_key_that_fails_on_its_own_comes_with_its_error_and_spends_no_budget(
    api: StubCoinGecko, clock: Clock, answer: Answer, waits: list[float]
):
    api.script = lambda page, attempt: answer if page == 2 else None
    settings = make_settings(COINGECKO_BASE_URL=api.url, RETRY_BUDGET_SECONDS="0", REQUESTS_PER_MINUTE="1000")
    with closing(CoinGecko(settings, clock.sleep, clock)) as coingecko:
        answers = list(coingecko.fetch_each("page", coingecko.fetch_page, [1, 2, 3], tries=4))

    assert [key for key, _ in answers] == [1, 2, 3]
    assert [isinstance(answer, Exception) for _, answer in answers] == [False, True, False]
    assert clock.waits == waits
    assert (api.pages.count(1), api.pages.count(2)) == (1, 1 + len(waits))


def test_with_tries_the_rate_limit_spends_the_budget_and_no_try(api: StubCoinGecko, clock: Clock):
    api.script = lambda page, attempt: Answer(status=429) if attempt < 7 else None
    settings = make_settings(COINGECKO_BASE_URL=api.url, RETRY_BUDGET_SECONDS="63", REQUESTS_PER_MINUTE="1000")
    with closing(CoinGecko(settings, clock.sleep, clock)) as coingecko:
        [(_, answer)] = coingecko.fetch_each("page", coingecko.fetch_page, [1], tries=4)
        assert len(answer) == 120
        assert clock.waits == [1, 2, 4, 8, 16, 32]
        api.requests.clear()
        with pytest.raises(DataError, match="RETRY_BUDGET_SECONDS=63 has 0 s left"):
            list(coingecko.fetch_each("page", coingecko.fetch_page, [1], tries=4))


def test_a_body_cut_short_is_asked_for_again(api: StubCoinGecko, clock: Clock):
    cut = Answer(json.dumps(api.coins).encode()[:3000], length=70_000)
    api.script = lambda page, attempt: cut if attempt == 1 else None

    assert len(fetch(clock, COINGECKO_BASE_URL=api.url)) == 100


def test_an_answer_that_does_not_come_ends_at_the_timeout(api: StubCoinGecko, clock: Clock):
    api.script = lambda page, attempt: api.hang() if attempt == 1 else None

    assert len(fetch(clock, COINGECKO_BASE_URL=api.url, HTTP_TIMEOUT_SECONDS="0.3")) == 100


def test_a_run_without_network_ends_within_seconds_and_names_the_sample_command(scripts: Scripts, database: Database):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"

        result = scripts.pipeline(COINGECKO_BASE_URL=url)

    one_line_error(result, 3, "Connection refused", "--replay tests/data/*.json.gz")
    assert database.count() == 0


# ----------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("plan", "host", "header"),
    [
        ("demo", "api.coingecko.com", "x-cg-demo-api-key"),
        ("pro", "pro-api.coingecko.com", "x-cg-pro-api-key"),
    ],
)
def test_the_key_goes_into_the_header_of_its_plan(
    market: responses.RequestsMock, clock: Clock, plan: str, host: str, header: str
):
    market.get(f"https://{host}/api/v3/coins/markets", json=make_coins(100))

    fetch(clock, COINGECKO_API_KEY="CG-key", COINGECKO_API_PLAN=plan)

    call = market.calls[0]
    assert call.request.headers[header] == "CG-key"
    assert "CG-key" not in call.request.url
    assert "crypto-market-pipeline" in call.request.headers["User-Agent"]


def test_a_redirect_is_not_followed_and_the_key_stays_here(api: StubCoinGecko, clock: Clock):
    with StubCoinGecko(make_coins(120)) as elsewhere:
        api.script = lambda page, attempt: Answer(status=302, headers={"Location": f"{elsewhere.url}/coins/markets"})

        with pytest.raises(DataError, match="set COINGECKO_BASE_URL"):
            fetch(clock, COINGECKO_BASE_URL=api.url, COINGECKO_API_KEY="CG-key")
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    ("status", "body", "hint"),
    [
        (401, {"status": {"error_code": 10002, "error_message": "API Key Missing"}}, "set COINGECKO_API_KEY"),
        (400, {"error": {"status": {"error_code": 10010, "error_message": "wrong"}}}, "COINGECKO_API_PLAN=pro"),
        (403, {"status": {"error_code": 10011, "error_message": "wrong"}}, "COINGECKO_API_PLAN=demo"),
        (400, {"error_code": 10011, "status": {"error_message": "use the other root URL"}}, "COINGECKO_API_PLAN=demo"),
        (200, {"error_code": 10010}, "COINGECKO_API_PLAN=pro"),
        (403, {"error": {"error_code": 10005, "error_message": "no"}}, "check COINGECKO_API_PLAN"),
        (401, {"error": {"status": {"error_code": 10012, "error_message": "no"}}}, "further back than the plan"),
        (
            429,
            {"status": {"error_code": 10006, "error_message": "used up"}},
            "this month's calls of the key are used up",
        ),
        (
            200,
            {"status": {"error_code": 10006, "error_message": "used up"}},
            "this month's calls of the key are used up",
        ),
        (401, {"error": {"status": {"error_code": 10006}}}, "this month's calls of the key are used up"),
        (401, b"<html>Unauthorized", "check COINGECKO_API_KEY and COINGECKO_API_PLAN"),
        (401, {"status": {"error_code": "9" * 5000}}, "check COINGECKO_API_KEY and COINGECKO_API_PLAN"),
    ],
)
def test_a_refused_key_is_not_tried_again_and_names_the_setting(
    scripts: Scripts, api: StubCoinGecko, status: int, body: object, hint: str
):
    api.script = lambda page, attempt: Answer(body, status)
    scripts.settings["COINGECKO_API_KEY"] = "CG-secret-key"

    result = scripts.pipeline(RETRY_BUDGET_SECONDS="600", COIN_LIMIT="250")

    one_line_error(result, 3, hint)
    assert api.pages == [1]


def test_a_key_where_a_message_is_cut_is_not_shown_in_part(scripts: Scripts, api: StubCoinGecko):
    scripts.settings["COINGECKO_API_KEY"] = "CG-secret-key-of-many-characters"
    api.script = lambda page, attempt: Answer({"error": "x" * 100 + scripts.settings["COINGECKO_API_KEY"]})

    assert "CG-" not in scripts.pipeline("-v", COIN_LIMIT="250").stderr


def test_no_netrc_is_read(
    market: responses.RequestsMock, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.coingecko.com login me password my-own\ndefault login me password my-own\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    market.get(MARKETS, json=make_coins(100))

    fetch(clock)

    assert "Authorization" not in market.calls[0].request.headers


def test_a_proxy_of_the_environment_is_used(scripts: Scripts, api: StubCoinGecko, database: Database):
    proxy = api.url.removesuffix("/api/v3")

    result = scripts.pipeline(
        "--coins",
        "100",
        COINGECKO_BASE_URL="http://coingecko.test/api/v3",
        HTTP_PROXY=proxy,
        http_proxy=proxy,
        NO_PROXY="",
    )

    assert result.returncode == 0, result.stderr
    assert database.count() == 100


def test_a_proxy_that_does_not_answer_is_named(scripts: Scripts):
    url, dead = "http://coingecko.test/api/v3", "http://127.0.0.1:1"

    result = scripts.pipeline(COINGECKO_BASE_URL=url, HTTP_PROXY=dead, http_proxy=dead, NO_PROXY="", no_proxy="")

    one_line_error(result, 3, f"no answer from {url} through the proxy of HTTP(S)_PROXY ('Connection refused')")


def test_a_proxy_is_for_other_machines(scripts: Scripts, database: Database):
    result = scripts.pipeline(
        HTTP_PROXY="http://127.0.0.1:1", http_proxy="http://127.0.0.1:1", NO_PROXY="", no_proxy=""
    )

    assert result.returncode == 0, result.stderr


def test_a_key_that_the_api_sends_back_is_not_shown(scripts: Scripts, api: StubCoinGecko):
    scripts.settings["COINGECKO_API_KEY"] = "CG-secret-key"
    answers = [
        Answer({"error": "CG-secret-key is blocked"}),
        Answer(b"<html>CG-secret-key"),
        Answer({"CG-secret-key": 1}),
        Answer(raw=b"HTTP/1.1 200 OK\r\nno header \x1b[31m CG-secret-key\r\n\r\n{}"),
        Answer(raw=b"CG-secret-key \x1b[31m go away\r\n\r\n"),
    ]
    hidden = 0
    for answer in answers:
        api.script = lambda page, attempt, answer=answer: answer

        result = scripts.pipeline("-v", COIN_LIMIT="250")  # `finish` looks for the key

        assert result.returncode == 3
        assert "\x1b" not in result.stderr
        hidden += "***" in result.stderr
    assert hidden == 4  # the header of the fourth is not shown
