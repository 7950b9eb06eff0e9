"""--backfill: daily history of the newest snapshot's coins, fetched once and written as whole days."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from io import StringIO

import pytest

from etl_crypto import Progress
from tests.conftest import (
    PROJECT_DIR,
    TODAY,
    Database,
    Scripts,
    last_line,
    make_coin,
    make_coins,
    midnight,
    one_line_error,
    posix_only,
    read_log_until,
    wait_until,
)
from tests.stub_coingecko import Answer, StubCoinGecko, make_history

FIGURES = "current_price, market_cap, total_volume, price_change_24h, price_change_percentage_24h, market_cap_tier"


def history(database: Database, coin_id: str = "coin-00001") -> list[tuple]:
    return database.execute(
        f"SELECT timestamp, {FIGURES} FROM crypto_prices WHERE coin_id = %s AND timestamp < %s ORDER BY timestamp",
        (coin_id, TODAY),
    )


# ------------------------------------------------------------------------------------------------------------- the rows


def test_each_day_before_the_newest_snapshot_has_a_row_with_its_change_and_its_tier(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    result = scripts.pipeline("--backfill", 10)

    assert result.returncode == 0, result.stderr
    sent = make_history(small_market.coins[0], 11, datetime.now(UTC))
    prices, caps, volumes = ([figure for _, figure in points] for points in sent.values())
    assert history(database) == [
        (
            midnight(11 - n),
            prices[n],
            caps[n],
            volumes[n],
            prices[n] - prices[n - 1],
            (prices[n] - prices[n - 1]) / prices[n - 1] * 100,
            "Large Cap",
        )
        for n in range(1, 11)
    ]
    assert {request.query["days"] for request in small_market.requests} == {"11"}
    assert {request.query["interval"] for request in small_market.requests} == {"daily"}
    assert "fetch history        done" in result.stdout
    assert "50 rows on 10 days" in result.stdout


def test_a_history_row_holds_what_coingecko_has_of_that_day_and_nothing_else(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    small_market.coins[2] |= {"symbol": "nan", "name": "Moon \U0001f680"}
    scripts.pipeline()
    scripts.pipeline("--backfill", 1)

    columns = [row[0] for row in database.execute("SHOW COLUMNS FROM crypto_prices")]
    [row] = database.execute("SELECT * FROM crypto_prices WHERE coin_id = 'coin-00003' AND timestamp < %s", (TODAY,))
    filled = {column: figure for column, figure in zip(columns, row, strict=True) if figure is not None}
    assert filled.keys() == {"timestamp", "coin_id", "symbol", "name", *FIGURES.split(", ")}
    assert (filled["symbol"], filled["name"]) == ("nan", "Moon \U0001f680")


def test_a_history_day_never_becomes_the_newest_snapshot(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    newest = database.execute("SELECT MAX(timestamp) FROM crypto_prices")

    assert scripts.pipeline("--backfill", 3).returncode == 0
    assert database.execute("SELECT MAX(timestamp) FROM crypto_prices") == newest
    assert database.execute("SELECT DISTINCT timestamp FROM crypto_prices ORDER BY 1")[:-1] == [
        (midnight(day),) for day in (3, 2, 1)
    ]


def test_a_market_cap_that_is_not_known_is_null_and_unknown(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    coin = small_market.coins[0]
    caps = make_history(coin, 5, datetime.now(UTC))["market_caps"]
    caps[1][1], caps[2][1], caps[3] = 0, None, [caps[3][0], -5.0]
    answer = Answer(make_history(coin, 5, datetime.now(UTC)) | {"market_caps": caps})
    small_market.history_script = lambda coin_id, attempt: answer if coin_id == coin["id"] else None

    assert scripts.pipeline("--backfill", 4).returncode == 0
    assert [(row[2], row[-1]) for row in history(database)][:3] == [(None, "Unknown")] * 3


def test_days_before_a_coin_existed_have_no_row_and_its_first_day_no_change(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    coin = small_market.coins[0]
    young = {kind: points[3:] for kind, points in make_history(coin, 6, datetime.now(UTC)).items()}
    small_market.history_script = lambda coin_id, attempt: Answer(young) if coin_id == coin["id"] else None

    assert scripts.pipeline("--backfill", 5).returncode == 0
    rows = history(database)
    assert [row[0] for row in rows] == [midnight(3), midnight(2), midnight(1)]
    assert rows[0][4:6] == (None, None)
    assert rows[1][4] is not None


def test_points_in_mid_day_and_points_that_are_none_make_no_day(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    coin = small_market.coins[0]
    prices = make_history(coin, 6, datetime.now(UTC))["prices"]
    prices[1][0] += 15 * 3_600_000  # the unfinished point of an answer of that day
    prices[2] = [prices[2][0], "1.0"]
    prices[3] = [prices[3][0]]
    prices[4][0] = 10**30
    prices.insert(0, None)
    answer = Answer(make_history(coin, 6, datetime.now(UTC)) | {"prices": prices})
    small_market.history_script = lambda coin_id, attempt: answer if coin_id == coin["id"] else None

    assert scripts.pipeline("--backfill", 5).returncode == 0
    assert [row[0] for row in history(database)] == [midnight(1)]


def test_a_point_up_to_five_minutes_after_midnight_is_that_of_the_day(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    coin = small_market.coins[0]
    answer = make_history(coin, 5, datetime.now(UTC))
    for points in answer.values():
        for point, late in zip(points, (0, 120_836, 300_000, 300_001, 3_000), strict=False):
            point[0] += late
    small_market.history_script = lambda coin_id, attempt: Answer(answer) if coin_id == coin["id"] else None

    assert scripts.pipeline("--backfill", 4).returncode == 0
    assert [row[0] for row in history(database)] == [midnight(day) for day in (4, 3, 1)]


def test_a_price_that_stands_still_has_a_change_of_zero(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    prices = [[at, 1.0] for at, _ in make_history(small_market.coins[0], 3, datetime.now(UTC))["prices"]]
    small_market.history_script = lambda coin_id, attempt: Answer({"prices": prices})

    assert scripts.pipeline("--backfill", 2).returncode == 0
    assert history(database) == [(midnight(day), 1.0, None, None, 0.0, 0.0, "Unknown") for day in (2, 1)]


def test_a_row_that_is_there_is_never_changed(scripts: Scripts, small_market: StubCoinGecko, database: Database):
    database.execute(
        "INSERT INTO crypto_prices (timestamp, coin_id, symbol, name, current_price, market_cap_tier)"
        " VALUES (%s, 'coin-00001', 'mine', 'Mine', 7, 'by hand')",
        (midnight(2),),
    )

    result = scripts.pipeline("--backfill", 3)

    assert "14 rows on 3 days" in result.stdout
    assert history(database)[1] == (midnight(2), 7.0, None, None, None, None, "by hand")


def test_at_the_end_of_the_reach_the_first_day_has_no_change(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    assert scripts.pipeline("--backfill", 365).returncode == 0

    assert {request.query["days"] for request in small_market.requests} == {"365"}
    rows = history(database)
    assert len(rows) == 365
    assert rows[0][4:6] == (None, None)


def test_a_pro_plan_reaches_a_day_further(scripts: Scripts, small_market: StubCoinGecko, database: Database):
    assert scripts.pipeline("--backfill", 365, COINGECKO_API_KEY="k", COINGECKO_API_PLAN="pro").returncode == 0

    assert history(database)[0][4] is not None


# ------------------------------------------------------------------------------------------ once, and from where it was


def test_run_twice_it_asks_for_nothing_and_writes_nothing(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    young = {kind: points[3:] for kind, points in make_history(small_market.coins[0], 6, datetime.now(UTC)).items()}
    gone = Answer({"error": "coin not found"}, 404)
    answers = {"coin-00001": Answer(young), "coin-00002": gone}
    small_market.history_script = lambda coin_id, attempt: answers.get(coin_id)
    assert scripts.pipeline("--backfill", 5).returncode == 0
    rows = database.execute("SELECT * FROM crypto_prices")
    small_market.requests.clear()

    result = scripts.pipeline("--backfill", 5)

    assert result.returncode == 0, result.stderr
    assert small_market.requests == []
    assert database.execute("SELECT * FROM crypto_prices") == rows
    assert "0 rows on 0 days" in result.stdout


@posix_only
def test_an_interrupted_backfill_goes_on_where_it_stopped(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    small_market.history_script = lambda coin_id, attempt: small_market.hang() if coin_id == "coin-00003" else None
    process = scripts.start("pipeline_orchestrator.py", "--backfill", 5)
    small_market.wait_for_requests(4)
    while len(list(scripts.snapshots.glob("history/*.gz"))) < 3:
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    result = scripts.finish(process)
    one_line_error(result, 143)
    assert "the answers that came are kept: run the same command to go on" in result.stderr
    assert database.count() == 5
    small_market.requests.clear()
    small_market.history_script = lambda coin_id, attempt: None

    result = scripts.pipeline("--backfill", 5)

    assert result.returncode == 0, result.stderr
    assert sorted(small_market.histories) == ["coin-00003", "coin-00005"]
    assert database.count() == 5 + 25
    assert "2 coins asked for, 3 kept before" in result.stdout


def test_when_coingecko_fails_it_logs_what_is_kept_and_the_same_command_goes_on(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    small_market.history_script = lambda coin_id, attempt: Answer(status=429) if coin_id == "coin-00004" else None

    result = scripts.pipeline("--backfill", 5)

    one_line_error(result, 3, "coin 'coin-00004': status 429", " answers are kept: run the same command to go on")
    assert database.count() == 5
    assert "fetch history        failed" in result.stdout

    small_market.history_script = lambda coin_id, attempt: None
    assert scripts.pipeline("--backfill", 5).returncode == 0
    assert small_market.histories.count("coin-00001") == 1


def test_a_kept_history_that_cannot_be_read_is_named(scripts: Scripts, small_market: StubCoinGecko, database: Database):
    scripts.pipeline("--backfill", 3)
    database.execute("DELETE FROM crypto_prices WHERE timestamp = %s", (midnight(1),))
    broken = next(scripts.snapshots.glob("history/coin-00002*"))
    broken.write_bytes(b"[")

    one_line_error(scripts.pipeline("--backfill", 3), 3, str(broken), "delete it and run again")


def test_a_history_asked_for_before_the_last_day_was_over_is_asked_for_again_and_replaced(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    assert scripts.pipeline("--backfill", 3).returncode == 0
    database.execute("DELETE FROM crypto_prices WHERE timestamp < %s", (TODAY,))
    for path in scripts.snapshots.glob("history/coin-0000[12].*"):
        path.rename(path.with_name(path.name.replace(f"{TODAY:%Y-%m-%d}", f"{midnight(1):%Y-%m-%d}")))
    small_market.requests.clear()

    assert scripts.pipeline("--backfill", 3).returncode == 0
    assert sorted(small_market.histories) == ["coin-00001", "coin-00002"]
    assert len(list(scripts.snapshots.glob("history/*.json.gz"))) == 5
    assert database.count() == 5 + 15


def test_the_largest_coins_are_asked_for_first(scripts: Scripts, api: StubCoinGecko):
    api.coins = [make_coin(n, market_cap=n * 1e9 if n > 2 else None) for n in range(1, 11)]
    assert scripts.pipeline().returncode == 0

    assert scripts.pipeline("--backfill", 1, REQUESTS_PER_MINUTE="1000").returncode == 0
    asked = [int(coin_id[-2:]) for coin_id in api.histories]
    assert [set(asked[:4]), set(asked[4:8]), set(asked[8:])] == [{7, 8, 9, 10}, {3, 4, 5, 6}, {1, 2}]


def test_a_coin_that_fails_by_itself_spends_no_budget(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    small_market.history_script = lambda coin_id, attempt: Answer(status=503) if attempt == 1 else None

    assert scripts.pipeline("--backfill", 2, RETRY_BUDGET_SECONDS="0").returncode == 0
    assert database.count() == 5 + 10


@pytest.mark.parametrize("answer", [Answer(status=429), Answer({"status": {"error_code": 429, "error_message": "x"}})])
def test_the_rate_limit_spends_the_budget_of_the_run_and_no_coin_is_passed_over(
    scripts: Scripts, small_market: StubCoinGecko, database: Database, answer: Answer
):
    small_market.history_script = lambda coin_id, attempt: answer if coin_id == "coin-00002" else None

    result = scripts.pipeline("--backfill", 2, RETRY_BUDGET_SECONDS="1")

    one_line_error(
        result, 3, "coin 'coin-00002'", "RETRY_BUDGET_SECONDS=1 has 0 s left", "run the same command to go on"
    )
    assert database.count() == 5


@pytest.mark.parametrize(
    ("answer", "calls", "reason"),
    [
        pytest.param(Answer(status=500), 4, "status 500", marks=pytest.mark.slow),
        (Answer({"error": "no such range"}, 422), 1, "status 422: 'no such range'"),
    ],
)
def test_a_coin_whose_history_cannot_be_had_is_passed_over_and_named_and_asked_for_again_next_time(
    scripts: Scripts, small_market: StubCoinGecko, database: Database, answer: Answer, calls: int, reason: str
):
    small_market.history_script = lambda coin_id, attempt: answer if coin_id == "coin-00002" else None

    result = scripts.pipeline("--backfill", 2)

    one_line_error(result, 3, "1 coins ('coin-00002') could not be had", "run the same command to ask for them again")
    assert "coin 'coin-00002' has no history now: " in result.stderr
    assert reason in result.stderr
    assert small_market.histories.count("coin-00002") == calls
    assert database.count() == 5 + 8
    assert "8 rows on 2 days" in result.stdout
    assert "write days           done" in result.stdout
    small_market.history_script = lambda coin_id, attempt: None
    small_market.requests.clear()

    assert scripts.pipeline("--backfill", 2).returncode == 0
    assert small_market.histories == ["coin-00002"]
    assert database.count() == 5 + 10


def test_ten_coins_in_a_row_end_the_backfill_and_those_that_are_gone_do_not_count(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    scripts.settings["REQUESTS_PER_MINUTE"] = "1000"
    api.coins = make_coins(40)
    assert scripts.pipeline().returncode == 0
    gone, rejected = Answer({"error": "coin not found"}, 404), Answer(status=400)
    answers = {n: rejected for n in (*range(1, 10), *range(11, 17), *range(21, 25))} | {n: gone for n in range(17, 21)}
    api.history_script = lambda coin_id, attempt: answers.get(int(coin_id[-5:]))  # the tenth and the 25th have theirs

    result = scripts.pipeline("--backfill", 1)

    one_line_error(result, 3, "coin 'coin-00024' and the 9 before it: ", "status 400", "run the same command to go on")
    assert len(api.histories) == 24
    assert database.count() == 40


@pytest.mark.parametrize("key_is", ["refused", "used up"])
def test_what_concerns_all_coins_ends_the_backfill_at_once(scripts: Scripts, small_market: StubCoinGecko, key_is: str):
    code = {"refused": 10002, "used up": 10006}[key_is]
    answer = Answer({"status": {"error_code": code, "error_message": "no"}}, 429)
    small_market.history_script = lambda coin_id, attempt: answer

    result = scripts.pipeline("--backfill", 2, RETRY_BUDGET_SECONDS="600")

    one_line_error(result, 3, f"error {code}", "0 of 5 answers are kept: run the same command to go on")
    assert len(small_market.histories) == 4


def test_a_coin_that_is_gone_is_named_and_passed_over(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    small_market.coins[1]["id"] = "renamed"

    result = scripts.pipeline("--backfill", 2)

    assert result.returncode == 0
    assert "skipped, gone from CoinGecko: 1 coins, 'coin-00002'" in result.stderr
    assert database.count() == 5 + 8


def test_an_id_of_whatever_characters_has_a_file_of_its_own_in_the_folder(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    names = ["../evil", "CON", "con", "a/b?c#d", "%2e%2e", "caf\u00e9", "cafe", "\u6708" * 100, "x" * 128, "."]
    api.coins = [make_coin(n, id=name) for n, name in enumerate(names, 1)]
    assert scripts.pipeline().returncode == 0

    result = scripts.pipeline("--backfill", 1, REQUESTS_PER_MINUTE="1000")

    assert result.returncode == 0, result.stderr
    assert len({path.name.lower() for path in scripts.snapshots.glob("history/*.json.gz")}) == len(names)
    assert list(scripts.folder.rglob("*evil*")) == list(scripts.snapshots.glob("history/*evil*"))


def test_without_a_snapshot_dir_it_works_and_keeps_nothing(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    assert scripts.pipeline("--backfill", 2, SNAPSHOT_DIR="").returncode == 0
    assert database.count() == 5 + 10
    assert not list(scripts.snapshots.glob("history"))


# ------------------------------------------------------------------------------------------------- before and meanwhile


def test_the_estimate_comes_first_and_a_dry_run_ends_with_it(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    result = scripts.pipeline("--backfill", 90, "--dry-run", REQUESTS_PER_MINUTE="2")

    assert result.returncode == 0, result.stderr
    assert f"backfill of 90 days, {midnight(90):%Y-%m-%d} to {midnight(1):%Y-%m-%d}, for the 5 coins" in result.stdout
    assert "5 coins, a call each: 3 min at 2 a minute, " in result.stdout
    assert "0.1% of the 10,000 calls a month" in result.stdout
    assert "up to 450 rows on 90 days" in last_line(result.stdout)
    assert small_market.requests == []
    assert database.count() == 5
    assert not list(scripts.snapshots.glob("history"))


def test_a_run_goes_on_meanwhile_and_a_second_backfill_ends_at_once(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    small_market.history_script = lambda coin_id, attempt: small_market.hang()
    process = scripts.start("pipeline_orchestrator.py", "--backfill", 2)
    small_market.wait_for_requests(1)

    one_line_error(scripts.pipeline("--backfill", 2), 5, "another backfill is going on")
    assert scripts.pipeline().returncode == 0
    process.kill()


def test_the_days_wait_for_a_run_that_is_writing(scripts: Scripts, small_market: StubCoinGecko, database: Database):
    with database.connect() as other, other.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK(%s, 0)", (f"crypto_prices.{database.name}",))
        cursor.fetchall()
        process = scripts.start("pipeline_orchestrator.py", "--backfill", 2)
        read_log_until(process, "another run is writing")
        assert database.count() == 5
        cursor.execute("SELECT RELEASE_LOCK(%s)", (f"crypto_prices.{database.name}",))
        cursor.fetchall()

    assert scripts.finish(process).returncode == 0
    assert database.count() == 5 + 10


@posix_only
def test_killed_while_it_writes_the_table_holds_whole_days_and_the_rest_comes_later(
    scripts: Scripts, small_market: StubCoinGecko, database: Database
):
    process = scripts.start("pipeline_orchestrator.py", "--backfill", 300)
    while database.count() < 5 + 50:
        assert process.poll() is None
    process.kill()
    process.communicate()

    days = "SELECT COUNT(*), COUNT(market_cap_tier) FROM crypto_prices GROUP BY timestamp FOR UPDATE"
    assert set(database.execute(days)) == {(5, 5)}
    assert scripts.pipeline("--backfill", 300).returncode == 0
    assert database.count() == 5 + 1500
    assert len(small_market.histories) == 5


@pytest.mark.parametrize("days", ["0", "366", "-1", "ten", "1.5"])
def test_days_out_of_reach_are_refused_with_the_reason(scripts: Scripts, days: str):
    result = scripts.pipeline(f"--backfill={days}")

    assert result.returncode == 2
    assert "not a whole number from 1 to 365" in result.stderr


def test_an_empty_table_has_no_coins_to_ask_for(scripts: Scripts, api: StubCoinGecko):
    one_line_error(scripts.pipeline("--backfill", 3), 3, "is empty", "run python pipeline_orchestrator.py")
    assert api.requests == []


def test_a_log_has_a_line_a_minute_with_what_is_done_and_the_time_left(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    now = [0.0]
    progress = Progress("coins", 100, seconds=1_200, clock=lambda: now[0])
    for done in range(1, 26):
        now[0] += 12
        progress.update(done)

    assert caplog.messages == [f"{done} of 100 coins, {(100 - done) // 5} min left" for done in range(5, 26, 5)]


def test_under_q_a_terminal_has_none(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    caplog.set_level(logging.WARNING, logger="etl_crypto")
    terminal = StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)

    with Progress("coins", 100, seconds=1_200) as progress:
        progress.update(50)

    assert terminal.getvalue() == ""


@posix_only
def test_a_terminal_has_a_bar(scripts: Scripts, small_market: StubCoinGecko):
    import pty  # which Windows lacks

    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    process = subprocess.Popen(
        [sys.executable, PROJECT_DIR / "pipeline_orchestrator.py", "--backfill", "1", "--env-file", scripts.env_file],
        env=scripts.environment({"REQUESTS_PER_MINUTE": "4"}),
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    shown = ""

    def has_bar() -> bool:
        nonlocal shown
        with suppress(BlockingIOError):
            shown += os.read(ours, 65_536).decode()
        return "[########################......] 4 of 5 coins, 1 min left" in shown

    try:
        wait_until(has_bar, "the bar")
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
