"""Mutated answers: every good row is loaded as it was sent, every other one is kept as rejected, nothing else happens.

What is expected is derived from the rule for usable rows alone, not from the script.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from etl_crypto import FIELDS
from sql.crypto_prices import COLUMNS
from tests.conftest import Database, Scripts
from tests.stub_coingecko import SAMPLE_FILES, read_sample

BEGIN = datetime(2020, 1, 1)
FILES_A_RUN = 500
COINS_AN_ANSWER = 5
SAMPLE = [coin for path in SAMPLE_FILES for coin in read_sample(path)]
TEXTS = [
    "", " ", "null", "nan", "%(symbol)s", "%s", "Robert'); DROP TABLE crypto_prices;--", '"', "\\", "\x00", "\r\n",
    "\x1b[31mred\x1b[0m", "\u200b", "\u00a0", "\u202egnp.exe", "\U0001f680" * 3, "\u6708\u4eae", "\u0627\u0644\u0639",
    "e\u0301", "\ud83d", "x" * 128, "x" * 129, "\U0001f600" * 255, "x" * 256, "y" * 65_536, "=1+1", "@SUM", "true",
]  # fmt: skip
FIGURES_SENT = [
    0, -0.0, -1, 1, 1e-18, 5e-324, 1.7976931348623157e308, -1e300, 420000000000000000, 2**53 + 1, 2**64, 10**25,
    10**400, 0.1 + 0.2, 1.23456789012345e-13, float("nan"), float("inf"), -float("inf"), True, False, "1", "", "12,5",
    [], [[1]], {}, {"usd": 1}, None, 2**31 - 1, 2**31, 1.5, 1.0,
]  # fmt: skip


def change_a_text(random: Random, coin: dict) -> None:
    coin[random.choice(["id", "symbol", "name"])] = random.choice(TEXTS)


def change_a_figure(random: Random, coin: dict) -> None:
    coin[random.choice(["market_cap_rank", *FIELDS.values()])] = random.choice(FIGURES_SENT)


def swap_types(random: Random, coin: dict) -> None:
    one, other = random.sample(sorted(coin), 2)
    coin[one], coin[other] = coin[other], coin[one]


def lose_a_key(random: Random, coin: dict) -> None:
    del coin[random.choice(sorted(coin))]


def change_the_time(random: Random, coin: dict) -> None:
    coin["last_updated"] = random.choice(
        ["", "soon", 5, None, "2025-13-01T00:00:00Z", "2025-03-14", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59Z"]
    )


def look_like_another(random: Random, coin: dict) -> None:
    coin["id"] = random.choice([coin["id"].upper(), coin["id"] + " ", " " + coin["id"], coin["id"] + "\u0301"])


MUTATIONS: list[Callable[[Random, dict], None]] = [
    change_a_text,
    change_a_figure,
    swap_types,
    lose_a_key,
    change_the_time,
    look_like_another,
]


def make_answer(random: Random) -> list:
    """Some coins of the sample: two as they are, the others mutated; some come twice, some are no coins."""
    coins: list = deepcopy(random.sample(SAMPLE, COINS_AN_ANSWER))
    for coin in coins[2:]:
        for mutate in random.choices(MUTATIONS, k=random.choice([1, 1, 2])):
            if isinstance(coin.get("id"), str):
                mutate(random, coin)
    if random.random() < 0.2:
        coins.append(deepcopy(random.choice(coins)))
        if random.random() < 0.5:
            change_a_figure(random, coins[-1])
    if random.random() < 0.1:
        coins.append(random.choice([17, None, "coin", [], {}, [[[]]], True, 1e400]))
    random.shuffle(coins)
    return coins


def is_text(value: object, longest: int) -> bool:
    if not isinstance(value, str) or len(value) > longest:
        return False
    return not any(0xD800 <= ord(char) <= 0xDFFF for char in value)


def is_figure(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return value is None or (isinstance(value, int | float) and abs(value) <= 1.7976931348623157e308)


def is_usable(coin: object) -> bool:
    """The rule: what may be in a row."""
    if not isinstance(coin, dict):
        return False
    if not is_text(coin.get("id"), 128) or not coin["id"] or coin["id"] != coin["id"].strip():
        return False
    if not is_text(coin.get("symbol"), 255) or not is_text(coin.get("name"), 255):
        return False
    rank = coin.get("market_cap_rank")
    if not is_figure(rank) or (rank is not None and not (1 <= rank < 2**31 and rank == math.floor(rank))):
        return False
    return all(is_figure(coin.get(key)) for key in FIELDS.values())


def as_stored(coin: dict) -> tuple:
    """Symbol, name, rank and figures as a DOUBLE holds them."""
    rank = coin.get("market_cap_rank")
    figures = (coin.get(key) for key in FIELDS.values())
    return (
        coin["symbol"],
        coin["name"],
        None if rank is None else int(rank),
        *(None if figure is None else float(figure) for figure in figures),
    )


def canonical(row: object) -> str:
    """A row as JSON, a figure beyond any DOUBLE as what Python reads it as."""
    text = json.dumps(row, sort_keys=True)
    return json.dumps(json.loads(text, parse_int=lambda d: int(d) if len(d) < 20 else float(d)), sort_keys=True)


@pytest.mark.parametrize("answers", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_of_mutated_answers_good_rows_are_loaded_as_sent_and_the_others_kept_as_rejected(
    scripts: Scripts, database: Database, tmp_path: Path, answers: int
):
    random = Random(answers)
    files: dict[Path, tuple[datetime, list]] = {}
    for number in range(answers):
        taken = BEGIN + timedelta(minutes=number)
        path = tmp_path / f"{number}.json"
        coins = make_answer(random)
        path.write_text(json.dumps({"timestamp": f"{taken.isoformat()}Z", "coins": coins}), encoding="utf-8")
        files[path] = (taken, coins)

    paths = list(files)
    for start in range(0, answers, FILES_A_RUN):
        result = scripts.pipeline("-q", "--force", "--replay", *paths[start : start + FILES_A_RUN])
        assert result.returncode in (0, 3), result.stderr
        assert "Traceback" not in result.stderr
        assert result.stderr.isascii()
        assert result.stderr.replace("\n", "").isprintable()

    columns = ", ".join(COLUMNS[:-1])
    stored = {
        (timestamp, coin_id): tuple(rest)
        for timestamp, coin_id, *rest in database.execute(f"SELECT {columns} FROM crypto_prices")
    }
    expected: dict[tuple[datetime, str], tuple] = {}
    for taken, coins in files.values():
        for coin in filter(is_usable, coins):
            expected.setdefault((taken, coin["id"]), as_stored(coin))
    assert stored.keys() == expected.keys()
    assert {key: (stored[key], row) for key, row in expected.items() if stored[key] != row} == {}
    assert database.execute("SELECT COUNT(*) FROM crypto_prices WHERE market_cap_tier IS NULL") == [(0,)]

    for taken, coins in files.values():
        path = scripts.snapshots / f"{taken:%Y-%m-%dT%H-%M-%SZ}.rejected.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = {canonical(json.loads(line)["row"]) for line in lines}
        assert kept == {canonical(coin) for coin in coins if not is_usable(coin)}
