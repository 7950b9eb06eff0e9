"""Extract and load: CoinGecko's behaviour over real HTTP, what is done with every kind of row, and settings."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
import responses

if sys.platform == "linux":
    import resource

from etl_crypto import (
    FIELDS,
    CoinGecko,
    ConfigError,
    DataError,
    Settings,
    Snapshot,
    fetch_coins,
    read_environment,
    to_row,
    to_time,
    transform,
)
from sql.crypto_prices import COLUMNS
from tests.conftest import ODD_TEXTS, Database, Scripts, last_line, make_coin, make_coins, make_settings
from tests.stub_coingecko import SAMPLE_FILES, Answer, StubCoinGecko, read_sample

MARKETS = "https://api.coingecko.com/api/v3/coins/markets"
NOON = datetime(2025, 3, 14, 12, 0)


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


def fetch(clock: Clock, limit: int | None = 100, **settings: str) -> list:
    with closing(CoinGecko(make_settings(**settings), clock.sleep, clock)) as api:
        return fetch_coins(api, limit)


def ids(coins: list) -> list[str]:
    return list(dict.fromkeys(coin["id"] for coin in coins))


# ------------------------------------------------------------------------------------------------------------- pages


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


def test_all_coins_end_at_an_empty_page_that_was_confirmed(api: StubCoinGecko, clock: Clock):
    api.coins = make_coins(1100)

    fetched = fetch(clock, None, COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE="100")

    assert len(ids(fetched)) == 1100
    assert api.pages.count(6) == 2
    assert max(api.pages) <= 9  # so many were on their way when page 6 turned out to be empty


def test_an_empty_page_in_mid_list_that_passes_loses_no_coin(api: StubCoinGecko, clock: Clock):
    api.coins = make_coins(900)
    api.script = lambda page, attempt: Answer([]) if (page, attempt) == (2, 1) else None

    assert len(ids(fetch(clock, 900, COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE="100"))) == 900


def test_a_list_that_repeats_itself_for_ever_ends(api: StubCoinGecko, clock: Clock, caplog: pytest.LogCaptureFixture):
    api.script = lambda page, attempt: Answer(api.coins)

    assert len(ids(fetch(clock, None, COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE="100"))) == 120
    assert "no new coin" in caplog.text


# ----------------------------------------------------------------------------------------------- rate limit and retry


@pytest.mark.parametrize("limit", [2, 5])
def test_never_more_calls_than_the_limit_in_any_minute(api: StubCoinGecko, clock: Clock, limit: int):
    api.coins = make_coins(250 * 11)
    calls = []
    api.script = lambda page, attempt: calls.append(clock.now)

    fetch(clock, 250 * 11, COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE=str(limit))

    assert len(calls) == 11
    assert max(sum(start <= call < start + 60 for call in calls) for start in calls) <= limit


def test_a_burst_below_the_limit_does_not_wait(api: StubCoinGecko, clock: Clock):
    api.coins = make_coins(1250)

    fetch(clock, 1250, COINGECKO_BASE_URL=api.url, REQUESTS_PER_MINUTE="5")

    assert clock.waits == []


@pytest.mark.parametrize(("key", "plan", "limit"), [("", "pro", 5), ("CG-k", "demo", 30), ("CG-k", "pro", 250)])
def test_the_plan_sets_the_pace(key: str, plan: str, limit: int):
    assert make_settings(COINGECKO_API_KEY=key, COINGECKO_API_PLAN=plan).requests_per_minute == limit


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


def test_retry_after_may_be_a_date(market: responses.RequestsMock, clock: Clock):
    at = datetime.now(UTC) + timedelta(seconds=90)
    market.get(MARKETS, status=503, headers={"Retry-After": at.strftime("%a, %d %b %Y %H:%M:%S GMT")})
    market.get(MARKETS, json=make_coins(100))

    fetch(clock)

    assert 85 < clock.waits[0] <= 90


def test_a_wait_beyond_the_budget_is_not_begun(market: responses.RequestsMock, clock: Clock):
    market.get(MARKETS, status=429, headers={"Retry-After": "601"})

    with pytest.raises(DataError, match="due in 601 s, and RETRY_BUDGET_SECONDS=600"):
        fetch(clock)
    assert clock.waits == []


def test_all_waiting_after_failures_stays_within_the_budget(market: responses.RequestsMock, clock: Clock):
    market.get(MARKETS, status=500)

    with pytest.raises(DataError, match="RETRY_BUDGET_SECONDS=100"):
        fetch(clock, RETRY_BUDGET_SECONDS="100", REQUESTS_PER_MINUTE="1000")
    assert clock.waits == [1, 2, 4, 8, 16, 32]


FORBIDDEN = {"status": {"error_code": 403, "error_message": "This endpoint is temporarily unavailable"}}


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


def test_an_unexplained_403_is_asked_again_twice(market: responses.RequestsMock, clock: Clock):
    market.get(MARKETS, status=403, json=FORBIDDEN)

    with pytest.raises(DataError, match=r"temporarily unavailable.*again and again"):
        fetch(clock)
    assert len(market.calls) == 3


def test_a_body_cut_short_is_asked_for_again(api: StubCoinGecko, clock: Clock):
    cut = Answer(json.dumps(api.coins).encode()[:3000], length=70_000)
    api.script = lambda page, attempt: cut if attempt == 1 else None

    assert len(fetch(clock, COINGECKO_BASE_URL=api.url)) == 100


def test_an_answer_that_does_not_come_ends_at_the_timeout(api: StubCoinGecko, clock: Clock):
    api.script = lambda page, attempt: api.hang() if attempt == 1 else None

    assert len(fetch(clock, COINGECKO_BASE_URL=api.url, HTTP_TIMEOUT_SECONDS="0.3")) == 100


def test_a_redirect_is_not_followed_and_the_key_stays_here(api: StubCoinGecko, clock: Clock):
    with StubCoinGecko(make_coins(120)) as elsewhere:
        api.script = lambda page, attempt: Answer(status=302, headers={"Location": f"{elsewhere.url}/coins/markets"})

        with pytest.raises(DataError, match="set COINGECKO_BASE_URL"):
            fetch(clock, COINGECKO_BASE_URL=api.url, COINGECKO_API_KEY="CG-key")
    assert elsewhere.requests == []


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

    [call] = market.calls
    assert call.request.headers[header] == "CG-key"
    assert "CG-key" not in call.request.url
    assert "crypto-market-pipeline" in call.request.headers["User-Agent"]


def test_four_pages_are_in_flight_at_once(api: StubCoinGecko, clock: Clock):
    api.coins = make_coins(1000)
    together = threading.Barrier(4, timeout=10)
    api.script = lambda page, attempt: together.wait() and None

    assert len(fetch(clock, 1000, COINGECKO_BASE_URL=api.url)) == 1000


# -------------------------------------------------------------------------------------------------------------- rows


def test_every_figure_and_text_of_the_sample_is_read_back_as_it_was_sent(scripts: Scripts, database: Database):
    assert scripts.pipeline("--replay", *SAMPLE_FILES).returncode == 0

    sent = {
        (path.name[:10], coin["id"]): tuple(
            coin.get(key) for key in ("symbol", "name", "market_cap_rank", *FIELDS.values())
        )
        for path in SAMPLE_FILES
        for coin in read_sample(path)
    }
    columns = ", ".join(COLUMNS[:-1])
    stored = {
        (f"{timestamp:%Y-%m-%d}", coin_id): tuple(rest)
        for timestamp, coin_id, *rest in database.execute(f"SELECT {columns} FROM crypto_prices")
    }
    assert stored == sent


AWKWARD = [
    *ODD_TEXTS,
    {"name": "Moon \U0001f680\u200b \u6708"},
    {"symbol": ""},
    {"name": ""},
    {"symbol": "null", "name": "%(symbol)s"},
    {"name": "%s %d %%"},
    {"name": "Robert'); DROP TABLE crypto_prices;--"},
    {"name": '"quoted" \\ back\\\\slash'},
    {"name": " spaced \u00a0"},
    {"name": "x" * 255, "id": "y" * 128},
    {"name": "line\nbreak\x1b[31m\x00"},
    {"current_price": 1e-18, "circulating_supply": 420000000000000000},
    {"current_price": 1.23456789012345e-13, "ath": 123456789.12345679},
    {"current_price": -1, "market_cap": -5},
    {"ath": 1e300, "atl": 5e-324},
    {"market_cap_rank": None, "market_cap": None},
    {"market_cap_rank": 2**31 - 1},
]


@pytest.mark.parametrize("changes", AWKWARD, ids=str)
def test_odd_but_possible_values_are_loaded_as_they_are(
    scripts: Scripts, api: StubCoinGecko, database: Database, changes: dict
):
    api.coins = [make_coin(1, **changes)]

    assert scripts.run("etl_crypto.py").returncode == 0

    columns = ["coin_id" if key == "id" else key for key in changes]
    assert database.execute(f"SELECT {', '.join(columns)} FROM crypto_prices") == [tuple(changes.values())]


UNUSABLE = [
    ({"id": None}, "id is None, not a string"),
    ({"id": ""}, "id is ''"),
    ({"id": "bitcoin "}, "white space at an end"),
    ({"id": "\u00a0x"}, "white space at an end"),
    ({"id": "x" * 129}, "129 characters"),
    ({"id": 7}, "not a string"),
    ({"symbol": None}, "symbol is"),
    ({"name": ["x"]}, "name is"),
    ({"name": "x" * 256}, "256 characters"),
    ({"name": "\ud800"}, "not valid Unicode"),
    ({"current_price": "12,5"}, "current_price is '12,5', not a number"),
    ({"current_price": True}, "not a number"),
    ({"market_cap": float("nan")}, "market_cap is nan"),
    ({"total_volume": float("inf")}, "not a finite number"),
    ({"total_supply": 10**400}, "not a finite number"),
    ({"ath": {}}, "ath is"),
    ({"market_cap_rank": 1e30}, "market_cap_rank is 1e+30"),
    ({"market_cap_rank": 0}, "market_cap_rank is 0"),
    ({"market_cap_rank": 1.5}, "market_cap_rank is 1.5"),
    ({"market_cap_rank": 2**31}, "market_cap_rank is"),
    ({"market_cap_rank": "1"}, "not a number"),
]


def test_unusable_rows_are_rejected_with_a_reason_and_kept_and_the_rest_is_loaded(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    spoilt = [make_coin(n, **changes) for n, (changes, _) in enumerate(UNUSABLE, 1)] + [17, None, [], "coin"]
    api.coins = make_coins(600, first=1001) + spoilt

    result = scripts.pipeline()

    assert result.returncode == 0, result.stderr
    assert database.count() == 600
    [path] = scripts.kept("*.rejected.jsonl")
    kept = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [json.dumps(line["row"]) for line in kept[-4:]] == ["17", "null", "[]", '"coin"']
    for line, (changes, reason) in zip(kept, UNUSABLE, strict=False):
        assert reason in line["reason"]
        [(key, value)] = changes.items()
        if key == "total_supply":  # a figure beyond any DOUBLE
            value = float("inf")
        assert json.dumps(line["row"][key]) == json.dumps(value)
    assert "row rejected: current_price is '12,5', not a number (coin 'coin-00011')" in result.stderr
    assert f"25 rows rejected; kept in {path}" in result.stderr
    assert scripts.kept()[0].name.removesuffix(".json.gz") == path.name.removesuffix(".rejected.jsonl")


def test_one_row_per_coin_and_the_first_usable_one_wins(scripts: Scripts, api: StubCoinGecko, database: Database):
    api.coins = [
        make_coin(1, id="twice", current_price=1.0),
        make_coin(2, id="spoilt", current_price="?"),
        make_coin(3, id="twice", current_price=2.0),
        make_coin(4, id="spoilt", current_price=3.0),
    ]

    assert scripts.pipeline().returncode == 0
    assert dict(database.execute("SELECT coin_id, current_price FROM crypto_prices")) == {"twice": 1.0, "spoilt": 3.0}


def test_a_rejected_coin_that_comes_twice_counts_once(scripts: Scripts, api: StubCoinGecko, database: Database):
    spoilt = [make_coin(number, ath="?") for number in range(1, 5)]
    api.coins = spoilt + make_coins(56, first=11) + spoilt + make_coins(4, first=101)

    assert scripts.pipeline().returncode == 0
    assert database.count() == 60
    assert len(scripts.kept("*.rejected.jsonl")[0].read_text(encoding="utf-8").splitlines()) == 4


def test_ids_that_differ_in_case_or_accent_alone_are_two_coins(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    api.coins = [make_coin(n, id=coin) for n, coin in enumerate(["luna", "Luna", "l\u00fana"], 1)]

    assert scripts.pipeline().returncode == 0
    assert database.count() == 3


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-04-28T02:27:02.402Z", datetime(2026, 4, 28, 2, 27, 2, 402000)),
        ("2025-12-31T23:30:00.9999-01:00", datetime(2026, 1, 1, 0, 30, 0, 999000)),
        ("2025-01-14T07:30:00+08:00", datetime(2025, 1, 13, 23, 30)),
        ("2025-01-14T07:30:00", datetime(2025, 1, 14, 7, 30)),
        ("yesterday", None),
        ("0001-01-01T00:00:00+08:00", None),
        ("0200-01-01T00:00:00Z", None),
        (1714271222, None),
        (None, None),
    ],
)
def test_last_updated_is_utc_to_the_millisecond_or_null(text: object, time: datetime | None):
    assert to_time(text) == time


def test_a_last_updated_that_is_no_time_becomes_null_with_a_warning(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    api.coins = [make_coin(1, last_updated="yesterday")]

    result = scripts.pipeline()

    assert result.returncode == 0
    assert database.execute("SELECT last_updated FROM crypto_prices") == [(None,)]
    assert "last_updated of 1 coins is no time and becomes NULL: 'coin-00001'" in result.stderr


def test_a_field_that_is_missing_is_null(scripts: Scripts, api: StubCoinGecko, database: Database):
    coin = make_coin(1)
    del coin["price_change_percentage_7d_in_currency"], coin["max_supply"]
    api.coins = [coin]

    assert scripts.pipeline().returncode == 0
    assert database.execute("SELECT price_change_percentage_7d, max_supply FROM crypto_prices") == [(None, None)]


def test_text_from_outside_reaches_the_log_escaped(scripts: Scripts, api: StubCoinGecko):
    api.coins = [make_coin(1), make_coin(2, id="\x1b[2J\nFAKE ERROR", current_price="\x1b]0;\r\n")]

    result = scripts.pipeline()

    assert result.returncode == 0
    assert "\x1b" not in result.stderr
    assert not [line for line in result.stderr.splitlines() if line.startswith("FAKE")]
    assert r"\x1b[2J\nFAKE ERROR" in result.stderr


def test_the_rows_are_in_the_order_of_the_primary_key(database: Database, scripts: Scripts, api: StubCoinGecko):
    coins = [make_coin(n, id=coin) for n, coin in enumerate(["b", "\uff5e", "a", "\U0001f680", "B"], 1)]
    rows = transform(Snapshot(NOON, coins, None, "")).rows
    api.coins = coins
    scripts.run("etl_crypto.py")

    in_table = [coin for (coin,) in database.execute("SELECT coin_id FROM crypto_prices ORDER BY timestamp, coin_id")]
    assert [row[1] for row in rows] == in_table


def test_a_row_has_a_value_for_each_column():
    row = to_row(make_coin(3), NOON)

    assert dict(zip(COLUMNS, row, strict=True))["price_change_percentage_7d"] == -3.2


# ------------------------------------------------------------------------------------------------ refused snapshots


def test_an_empty_list_is_refused_even_with_force(scripts: Scripts, api: StubCoinGecko, database: Database):
    api.coins = []

    result = scripts.pipeline("--force")

    assert result.returncode == 3
    assert "the list of coins is empty" in last_line(result.stderr)
    assert database.count() == 0


def test_too_many_unusable_rows_refuse_the_snapshot_and_keep_it(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    api.coins = make_coins(94) + [make_coin(n, current_price="?") for n in range(95, 101)]

    refused = scripts.pipeline()

    assert refused.returncode == 3
    assert "6 of the 100 coins" in last_line(refused.stderr)
    assert "--force" in last_line(refused.stderr)
    assert database.count() == 0
    assert len(scripts.kept("*.rejected.jsonl")[0].read_text(encoding="utf-8").splitlines()) == 6

    [kept] = scripts.kept()
    assert scripts.pipeline("--force", "--replay", kept).returncode == 0
    assert database.count() == 94


@pytest.mark.parametrize(("usable", "spoilt"), [(95, 5), (10, 4)])
def test_a_few_unusable_rows_do_not_refuse_the_snapshot(
    scripts: Scripts, api: StubCoinGecko, database: Database, usable: int, spoilt: int
):
    api.coins = make_coins(usable) + [make_coin(n, current_price="?") for n in range(500, 500 + spoilt)]

    assert scripts.pipeline().returncode == 0
    assert database.count() == usable


def test_a_list_that_ended_early_is_refused(scripts: Scripts, api: StubCoinGecko, database: Database):
    scripts.pipeline("--replay", *SAMPLE_FILES)
    rows = database.count()
    api.coins = make_coins(89)

    refused = scripts.pipeline()
    assert refused.returncode == 3
    assert "89 coins came where" in last_line(refused.stderr)
    assert database.count() == rows

    assert scripts.pipeline("--force").returncode == 0
    assert database.count() == rows + 89


def test_fewer_coins_than_before_are_taken_when_fewer_are_asked_for(scripts: Scripts, database: Database):
    scripts.pipeline()

    assert scripts.pipeline("--coins", "20").returncode == 0


def test_a_row_that_surprises_is_loaded_as_it_is(scripts: Scripts, api: StubCoinGecko, database: Database):
    api.coins = [
        make_coin(1, current_price=99.0, high_24h=98.0),
        make_coin(2, current_price=1.0, low_24h=1.1, high_24h=None),
        make_coin(3, circulating_supply=2e9, total_supply=1e9),
        make_coin(4, price_change_percentage_24h=1191.0),
        make_coin(5, total_volume=1e15),
    ]

    result = scripts.pipeline()

    assert result.returncode == 0, result.stderr
    assert " rejected" not in result.stderr
    assert database.count() == 5


def test_figures_that_are_old_at_the_fetch_are_warned_of(scripts: Scripts, api: StubCoinGecko):
    api.coins = [make_coin(1, last_updated=(datetime.now(UTC) - timedelta(minutes=17)).isoformat())]
    api.coins.append(make_coin(3, last_updated="9999-01-01T00:00:00Z"))  # no sign of life
    assert "17 minutes before the fetch" in scripts.pipeline().stderr

    api.coins.append(make_coin(2, last_updated=datetime.now(UTC).isoformat()))
    assert "before the fetch" not in scripts.pipeline().stderr


# ----------------------------------------------------------------------------------------------------- kept answers


def test_the_answer_is_on_disk_before_the_database_is_written(scripts: Scripts, api: StubCoinGecko):
    before = datetime.now(UTC).replace(microsecond=0)

    assert scripts.pipeline("--coins", "100", SNAPSHOT_MINUTES="60").returncode == 0

    [path] = scripts.kept()
    named = datetime.strptime(path.name, "%Y-%m-%dT%H-%M-%SZ.json.gz").replace(tzinfo=UTC)
    assert before <= named <= datetime.now(UTC)
    kept = json.loads(gzip.decompress(path.read_bytes()))
    assert kept == {"timestamp": f"{named:%Y-%m-%dT%H}:00:00Z", "coins": api.coins[:100]}


def test_of_the_loaded_snapshots_the_newest_are_kept_and_of_the_pending_ones_all(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    scripts.snapshots.mkdir()
    others = [scripts.snapshots / name for name in ("2020-01-01.json.gz", "before-the-crash.json.gz")]
    for path in others:
        path.write_bytes(b"")
    good, api.coins = api.coins, make_coins(94) + [make_coin(n, current_price="?") for n in range(95, 101)]
    assert scripts.pipeline().returncode == 3
    [refused] = scripts.kept("*.pending.json.gz")
    api.coins = good
    loaded = []
    for _ in range(4):
        assert scripts.pipeline(SNAPSHOT_KEEP="2").returncode == 0
        loaded += [path for path in scripts.kept() if path not in (*others, refused, *loaded)]

    assert scripts.kept() == sorted([*others, refused, *loaded[-2:]])
    assert scripts.kept("*.pending.json.gz") == [refused]


def test_a_snapshot_is_pending_until_it_is_loaded_and_found_under_both_names(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    api.script = lambda page, attempt: database.execute("DROP TABLE IF EXISTS crypto_prices") and None
    assert scripts.pipeline(COIN_LIMIT="100").returncode == 4
    [pending] = scripts.kept()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ\.pending\.json\.gz", pending.name)
    database.create_table()

    for _ in range(2):
        result = scripts.pipeline("--replay", pending)
        assert result.returncode == 0, result.stderr
        assert [path.name for path in scripts.kept()] == [pending.name.replace(".pending", "")]
    assert database.count() == 100


def test_a_pending_snapshot_elsewhere_and_one_that_is_refused_keep_the_mark(
    scripts: Scripts, api: StubCoinGecko, tmp_path: Path
):
    elsewhere = tmp_path / "2025-03-01T00-00-00Z.pending.json.gz"
    elsewhere.write_bytes(SAMPLE_FILES[0].read_bytes())
    assert scripts.pipeline("--replay", elsewhere).returncode == 0
    assert elsewhere.exists()

    api.coins = [make_coin(n, current_price="?") for n in range(1, 10)]
    assert scripts.pipeline().returncode == 3
    [refused] = scripts.kept()
    assert scripts.pipeline("--replay", refused).returncode == 3
    assert scripts.kept() == [refused]


def test_read_only_snapshots_of_the_first_edition_are_pruned(scripts: Scripts):
    scripts.snapshots.mkdir()
    for day in (1, 2):
        path = scripts.snapshots / f"2026-01-0{day}T00-00-00Z.json.gz"
        path.write_bytes(SAMPLE_FILES[0].read_bytes())
        path.chmod(0o440)
        path.with_name(f"2026-01-0{day}T00-00-00Z.rejected.jsonl").write_text("{}")

    assert scripts.pipeline(SNAPSHOT_KEEP="2").returncode == 0
    assert scripts.kept()[0].name.startswith("2026-01-02")
    assert len(scripts.kept()) == 2
    assert [path.name[:10] for path in scripts.kept("*.rejected.jsonl")] == ["2026-01-02"]


@pytest.mark.skipif(os.name == "nt", reason="only administrators make links on Windows")
def test_a_link_under_a_name_that_is_written_or_pruned_is_not_followed(
    scripts: Scripts, api: StubCoinGecko, tmp_path: Path
):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    victim.chmod(0o400)
    scripts.snapshots.mkdir()
    planted = []
    now = datetime.now(UTC)
    for second in range(-1, 30):
        name = f"{now + timedelta(seconds=second):%Y-%m-%dT%H-%M-%SZ}"
        for suffix in (".pending.json.gz", ".json.gz", ".rejected.jsonl"):
            planted.append(scripts.snapshots / f"{name}{suffix}")
            planted[-1].symlink_to(victim)
    api.coins.append(make_coin(121, current_price="?"))

    result = scripts.pipeline(SNAPSHOT_KEEP="0")

    assert result.returncode == 0, result.stderr
    assert victim.read_text() == "mine"
    assert victim.stat().st_mode & 0o777 == 0o400
    assert [path for path in planted if path.suffix == ".gz" and not path.is_symlink()] == []


def test_no_snapshot_dir_keeps_nothing_and_loads_all(scripts: Scripts, database: Database, tmp_path: Path):
    before = sorted(tmp_path.iterdir())

    assert scripts.pipeline(SNAPSHOT_DIR="").returncode == 0
    assert database.count() == 120
    assert sorted(tmp_path.iterdir()) == before


def test_a_snapshot_dir_that_cannot_be_written_is_warned_of_and_the_market_loaded(
    scripts: Scripts, api: StubCoinGecko, database: Database, tmp_path: Path
):
    (tmp_path / "file").write_text("")
    api.coins.append(make_coin(121, current_price="?"))

    result = scripts.pipeline(SNAPSHOT_DIR=str(tmp_path / "file"))

    assert result.returncode == 0
    assert "the raw snapshot cannot be kept" in result.stderr
    assert database.count() == 120


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
def test_a_snapshot_dir_without_room_is_warned_of_and_the_market_loaded(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    api.coins.append(make_coin(121, name=None))
    process = scripts.start("pipeline_orchestrator.py")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1_000, 1_000))  # no file may get larger
    result = scripts.finish(process)

    assert result.returncode == 0, result.stderr
    assert f"the raw snapshot cannot be kept in {scripts.snapshots} (File too large)" in result.stderr
    assert "free disk space or change SNAPSHOT_DIR" in result.stderr
    assert scripts.kept("*.gz*") == []
    assert database.count() == 120


def test_what_a_killed_run_left_half_written_is_removed_later(scripts: Scripts):
    scripts.snapshots.mkdir()
    left = "2026-01-01T00-00-00Z.json.gz.1.tmp"
    for name, age in ((left, 7200), (left.replace("1.tmp", "2.tmp"), 0), ("thesis.tmp", 7200)):
        path = scripts.snapshots / name
        path.write_text("half")
        at = datetime.now(UTC).timestamp() - age
        os.utime(path, (at, at))

    assert scripts.pipeline().returncode == 0
    assert [path.name for path in scripts.kept("*.tmp")] == [left.replace("1.tmp", "2.tmp"), "thesis.tmp"]


def test_the_rejected_rows_of_a_replay_are_kept_once(scripts: Scripts, tmp_path: Path):
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps([make_coin(1), make_coin(2, current_price="?")]), encoding="utf-8")

    scripts.pipeline("--replay", plain)
    scripts.pipeline("--replay", plain)

    [path] = scripts.kept("*.rejected.jsonl")
    assert path.name == "2025-03-14T23-59-00Z.rejected.jsonl"
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1


# ---------------------------------------------------------------------------------------------------- the script alone


def test_it_alone_loads_without_tiers_and_says_what_it_wrote(scripts: Scripts, database: Database):
    result = scripts.run("etl_crypto.py", "--coins", "50")

    assert result.returncode == 0, result.stderr
    assert last_line(result.stdout).endswith(" UTC: 50 coins written, 0 rejected")
    assert database.execute("SELECT COUNT(*), COUNT(market_cap_tier) FROM crypto_prices") == [(50, 0)]


def test_a_renewed_row_is_without_a_tier_until_it_is_segmented(scripts: Scripts, database: Database):
    scripts.pipeline(SNAPSHOT_MINUTES="525600")

    scripts.run("etl_crypto.py", SNAPSHOT_MINUTES="525600")

    assert database.execute("SELECT COUNT(*), COUNT(market_cap_tier) FROM crypto_prices") == [(120, 0)]


def test_its_dry_run_needs_no_database(scripts: Scripts, database: Database):
    result = scripts.run("etl_crypto.py", "--dry-run", MYSQL_USER=None, MYSQL_PORT="1")

    assert result.returncode == 0, result.stderr
    assert "120 coins would be written" in result.stdout
    assert (database.count(), scripts.snapshots.exists()) == (0, False)


# ---------------------------------------------------------------------------------------------------------- settings


def test_the_environment_wins_over_the_file_even_when_empty(scripts: Scripts, monkeypatch: pytest.MonkeyPatch):
    scripts.env_file.write_text("MYSQL_PASSWORD=in-the-file\nCOIN_LIMIT=7\n", encoding="utf-8")
    monkeypatch.setenv("MYSQL_PASSWORD", "")
    monkeypatch.delenv("COIN_LIMIT", raising=False)

    values = read_environment(scripts.env_file)

    assert (values["MYSQL_PASSWORD"], values["COIN_LIMIT"]) == ("", "7")


def test_a_file_from_notepad_is_read_and_no_value_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "notepad.env"
    path.write_bytes(b"\xef\xbb\xbfMYSQL_USER=me\r\nMYSQL_PASSWORD='a${HOME}#b c'\r\n")
    monkeypatch.delenv("MYSQL_USER", raising=False)
    monkeypatch.delenv("MYSQL_PASSWORD", raising=False)

    values = read_environment(path)

    assert (values["MYSQL_USER"], values["MYSQL_PASSWORD"]) == ("me", "a${HOME}#b c")


@pytest.mark.parametrize("content", [None, "MYSQL_USER=me".encode("utf-16")])
def test_a_settings_file_that_cannot_be_read_is_said(tmp_path: Path, content: bytes | None):
    path = tmp_path / "my.env"
    if content:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"my\.env"):
        read_environment(path)


def test_a_line_that_is_no_setting_is_said(tmp_path: Path):
    path = tmp_path / "my.env"
    path.write_text("MYSQL_USER=me\nMYSQL_PASSWORD='without an end\n", encoding="utf-8")

    with pytest.raises(ConfigError, match=r"my\.env, line 2, is not KEY=value"):
        read_environment(path)


def test_an_empty_password_is_a_password():
    assert make_settings(MYSQL_PASSWORD="").mysql_password == ""


def test_settings_do_not_show_their_secrets():
    text = repr(make_settings(MYSQL_PASSWORD="hunter2", COINGECKO_API_KEY="CG-key"))

    assert "hunter2" not in text
    assert "CG-key" not in text


@pytest.mark.parametrize(
    "values",
    [
        {"COINGECKO_API_KEY": "CG-secret\nx"},
        {"COINGECKO_BASE_URL": "https://u:secret@example.com"},
        {"COINGECKO_BASE_URL": "https://example.com/?x_cg_pro_api_key=secret"},
    ],
)
def test_a_setting_that_holds_a_secret_in_the_wrong_place_is_refused_without_showing_it(values: dict[str, str]):
    with pytest.raises(ConfigError) as refused:
        make_settings(**values)
    assert "secret" not in str(refused.value)


def test_a_relative_snapshot_dir_lies_beside_the_scripts():
    from etl_crypto import PROJECT_DIR

    assert make_settings(SNAPSHOT_DIR="kept").snapshot_dir == PROJECT_DIR / "kept"


def test_every_setting_is_in_the_example_with_its_default():
    example = read_example()

    assert {key.lower() for key in example} == set(Settings.__dataclass_fields__)
    assert make_settings(**example) == make_settings(MYSQL_USER="crypto_etl", MYSQL_PASSWORD="")


def read_example() -> dict[str, str]:
    from dotenv import dotenv_values

    from etl_crypto import PROJECT_DIR

    return {key: value or "" for key, value in dotenv_values(PROJECT_DIR / ".env.example").items()}


def test_a_pattern_that_matches_nothing_is_named(scripts: Scripts, tmp_path: Path):
    result = scripts.pipeline("--replay", tmp_path / "*.gz")

    assert result.returncode == 3
    assert f"{tmp_path / '*.gz'}: cannot read JSON or gzip (No such file or directory)" in result.stderr


def test_a_name_with_brackets_is_found(scripts: Scripts, tmp_path: Path):
    path = tmp_path / "market[1].json.gz"
    path.write_bytes(SAMPLE_FILES[0].read_bytes())

    assert scripts.pipeline("--replay", path).returncode == 0


@pytest.fixture(autouse=True)
def all_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="etl_crypto")
