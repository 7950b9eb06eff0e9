"""--status: how up to date the table is, for people and for programs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from tests.conftest import TODAY, Database, Scripts, make_coin, midnight, one_line_error
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
        "newest_figure": "2025-03-14T23:59:31Z",
        "oldest_snapshot": f"{midnight(10).isoformat()}Z",
        "days": 11,
        "days_without_snapshot": 1,
        "rows": 50,
        "rows_are_estimated": False,
        "rows_without_tier": 2,
    }


def test_status_for_programs_of_an_empty_table_is_json_too(scripts: Scripts):
    result = scripts.pipeline("--status", "--json", "-q")

    assert result.returncode == 6
    assert json.loads(result.stdout)["newest_snapshot"] is None
