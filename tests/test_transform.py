"""Coins to rows: what is loaded as it is, what is rejected with a reason, and which snapshots are refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest

from etl_crypto import MAX_DEPTH, Snapshot, parse_json, to_row, to_time, transform
from sql.crypto_prices import COLUMNS
from tests.conftest import NOON, ODD_TEXTS, Database, Scripts, last_line, make_coin, make_coins
from tests.stub_coingecko import StubCoinGecko

# ------------------------------------------------------------------------------------------------- rows that are loaded


def test_a_row_has_a_value_for_each_column():
    row = to_row(make_coin(3), NOON)

    assert dict(zip(COLUMNS, row, strict=True))["price_change_percentage_7d"] == -3.2


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


def test_a_field_that_is_missing_is_null(scripts: Scripts, api: StubCoinGecko, database: Database):
    coin = make_coin(1)
    del coin["price_change_percentage_7d_in_currency"], coin["max_supply"]
    api.coins = [coin]

    assert scripts.pipeline().returncode == 0
    assert database.execute("SELECT price_change_percentage_7d, max_supply FROM crypto_prices") == [(None, None)]


# ---------------------------------------------------------------------------------------------------------------- times


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


def test_figures_that_are_old_at_the_fetch_are_warned_of(scripts: Scripts, api: StubCoinGecko):
    api.coins = [make_coin(1, last_updated=(datetime.now(UTC) - timedelta(minutes=17)).isoformat())]
    api.coins.append(make_coin(3, last_updated="9999-01-01T00:00:00Z"))  # no sign of life
    assert "17 minutes before the fetch" in scripts.pipeline().stderr

    api.coins.append(make_coin(2, last_updated=datetime.now(UTC).isoformat()))
    assert "before the fetch" not in scripts.pipeline().stderr


# -------------------------------------------------------------------- rows that are rejected, and coins that come twice

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
    unusable = [make_coin(n, **changes) for n, (changes, _) in enumerate(UNUSABLE, 1)] + [17, None, [], "coin"]
    api.coins = make_coins(600, first=1001) + unusable

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


def test_a_coin_has_one_row_and_the_first_usable_one_wins(scripts: Scripts, api: StubCoinGecko, database: Database):
    api.coins = [
        make_coin(1, id="twice", current_price=1.0),
        make_coin(2, id="broken", current_price="?"),
        make_coin(3, id="twice", current_price=2.0),
        make_coin(4, id="broken", current_price=3.0),
    ]

    assert scripts.pipeline().returncode == 0
    assert dict(database.execute("SELECT coin_id, current_price FROM crypto_prices")) == {"twice": 1.0, "broken": 3.0}


def test_a_rejected_coin_that_comes_twice_counts_once(scripts: Scripts, api: StubCoinGecko, database: Database):
    unusable = [make_coin(number, ath="?") for number in range(1, 5)]
    api.coins = unusable + make_coins(56, first=11) + unusable + make_coins(4, first=101)

    assert scripts.pipeline().returncode == 0
    assert database.count() == 60
    assert len(scripts.kept("*.rejected.jsonl")[0].read_text(encoding="utf-8").splitlines()) == 4


def test_text_from_outside_reaches_the_log_escaped(scripts: Scripts, api: StubCoinGecko):
    api.coins = [make_coin(1), make_coin(2, id="\x1b[2J\nFAKE ERROR", current_price="\x1b]0;\r\n")]

    result = scripts.pipeline()

    assert result.returncode == 0
    assert "\x1b" not in result.stderr
    assert not [line for line in result.stderr.splitlines() if line.startswith("FAKE")]
    assert r"\x1b[2J\nFAKE ERROR" in result.stderr


# ---------------------------------------------------------------------------------------------------- refused snapshots


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


@pytest.mark.parametrize(("usable", "unusable"), [(95, 5), (10, 4)])
def test_a_few_unusable_rows_do_not_refuse_the_snapshot(
    scripts: Scripts, api: StubCoinGecko, database: Database, usable: int, unusable: int
):
    api.coins = make_coins(usable) + [make_coin(n, current_price="?") for n in range(500, 500 + unusable)]

    assert scripts.pipeline().returncode == 0
    assert database.count() == usable


@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a]":', "}")])
@pytest.mark.parametrize("depths", [(1, 48, 49, 500), range(900, 1100), (20_000,)], ids=str)
def test_a_row_of_any_depth_is_loaded_or_rejected_and_can_be_kept(depths: Iterable[int], left: str, right: str):
    for depth in depths:
        assert_other_rows_are_loaded(left * depth + "1" + right * depth)


def depth_of(answer: list) -> int:
    depth, level = 0, [answer]
    while level:
        depth, containers = depth + 1, [each for each in level if isinstance(each, list | dict)]
        level = [inner for each in containers for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def assert_other_rows_are_loaded(nested: str) -> None:
    coins = [make_coin(n) for n in range(1, 5)]
    texts = [json.dumps(coin)[:-1] for coin in coins]
    text = f'[{texts[0]}}}, {texts[1]}, "roi": {nested}}}, {texts[2]}, "atl": {nested}}}, {texts[3]}, "x": "\\"["}}]'

    answer = parse_json(text.encode())
    assert depth_of(answer) <= MAX_DEPTH + 1
    batch = transform(Snapshot(NOON, answer, None))

    assert [row[1] for row in batch.rows] == ["coin-00001", "coin-00002", "coin-00004"]
    [(reason, _)] = batch.rejected
    assert reason.startswith("atl is ")
    assert json.loads(json.dumps(answer))[3] == coins[3] | {"x": '"['}


def test_five_unusable_rows_of_a_small_list_refuse_it(scripts: Scripts, api: StubCoinGecko, database: Database):
    api.coins = make_coins(20) + [make_coin(n, current_price="?") for n in range(21, 26)]

    assert scripts.pipeline().returncode == 3
    assert database.count() == 0
