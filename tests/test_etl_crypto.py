"""etl_crypto.py run alone: it loads the market without tiers, and its dry run needs no database."""

from __future__ import annotations

from tests.conftest import Database, Scripts, last_line


def test_it_alone_loads_without_tiers_and_prints_what_it_wrote(scripts: Scripts, database: Database):
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
