"""Raw snapshots on disk, from pending to pruned, with the files of rejected rows; and how --replay loads them."""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import Database, Scripts, last_line, make_coin, make_coins, one_line_error, posix_only
from tests.stub_coingecko import SAMPLE_FILES, StubCoinGecko, read_sample

if sys.platform == "linux":
    import resource


# ----------------------------------------------------------------------------------------------------- kept and pending


def test_the_raw_snapshot_is_on_disk_before_the_database_is_written(scripts: Scripts, api: StubCoinGecko):
    before = datetime.now(UTC).replace(microsecond=0)

    assert scripts.pipeline("--coins", "100", SNAPSHOT_MINUTES="60").returncode == 0

    [path] = scripts.kept()
    named = datetime.strptime(path.name, "%Y-%m-%dT%H-%M-%SZ.json.gz").replace(tzinfo=UTC)
    assert before <= named <= datetime.now(UTC)
    kept = json.loads(gzip.decompress(path.read_bytes()))
    assert kept == {"timestamp": f"{named:%Y-%m-%dT%H}:00:00Z", "coins": api.coins[:100]}


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


def test_a_load_that_fails_names_the_raw_snapshot_and_how_to_load_it(
    scripts: Scripts, api: StubCoinGecko, database: Database
):
    def drop_the_table(page: int, attempt: int) -> None:
        database.execute("DROP TABLE IF EXISTS crypto_prices")

    api.script = drop_the_table
    result = scripts.pipeline(COIN_LIMIT="100")
    database.create_table()

    [kept] = scripts.kept()
    one_line_error(result, 4, "sql/crypto_prices.sql", f"--env-file {scripts.env_file} --replay {kept}")
    assert scripts.pipeline("--replay", kept).returncode == 0
    assert database.count() == 100


# --------------------------------------------------------------------------------------------------------------- pruned


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


# ------------------------------------------------------- links, and a folder that is switched off, not writable or full


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


@posix_only
def test_the_text_behind_a_link_is_not_copied_among_the_rejected_rows(scripts: Scripts, tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    scripts.snapshots.mkdir()
    planted = scripts.snapshots / "2025-03-14T23-59-00Z.rejected.jsonl"
    planted.symlink_to(victim)
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps([make_coin(1), make_coin(2, current_price="?")]), encoding="utf-8")

    assert scripts.pipeline("--replay", plain).returncode == 0
    assert not planted.is_symlink()
    assert len(planted.read_text(encoding="utf-8").splitlines()) == 1
    assert victim.read_text() == "mine"


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


# ------------------------------------------------------------------------------------------------------------- --replay


def test_the_sample_market_loads_with_a_tier_on_every_row_and_a_second_time_changes_no_count(
    scripts: Scripts, database: Database
):
    first = scripts.pipeline("--replay", *SAMPLE_FILES)
    rows = database.count()
    second = scripts.pipeline("--replay", *reversed(SAMPLE_FILES))

    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert rows == database.count() == sum(len(read_sample(path)) for path in SAMPLE_FILES)
    assert "0 rejected" in first.stdout
    assert "snapshot 2025-03-31 00:00 UTC: 99 coins" in second.stdout
    assert database.execute("SELECT COUNT(*) FROM crypto_prices WHERE market_cap_tier IS NULL") == [(0,)]
    assert len(database.execute("SELECT DISTINCT market_cap_tier FROM crypto_prices")) == 5


def test_a_raw_snapshot_gives_the_same_rows_again(scripts: Scripts, database: Database):
    scripts.pipeline()
    before = database.execute("SELECT * FROM crypto_prices ORDER BY coin_id")
    database.execute("DELETE FROM crypto_prices")

    assert scripts.pipeline("--replay", *scripts.kept(), SNAPSHOT_MINUTES="60").returncode == 0
    assert database.execute("SELECT * FROM crypto_prices ORDER BY coin_id") == before


def test_a_replay_is_loaded_whole_and_makes_no_copy(scripts: Scripts, database: Database):
    result = scripts.pipeline("--replay", SAMPLE_FILES[-1], COIN_LIMIT="3")

    assert result.returncode == 0, result.stderr
    assert database.count() == len(read_sample(SAMPLE_FILES[-1]))
    assert scripts.kept() == []


def test_a_plain_list_is_dated_by_its_newest_last_updated(scripts: Scripts, database: Database, tmp_path: Path):
    plain = tmp_path / "plain.json"
    times = ["2024-05-06T07:08:09.500Z", "2024-05-06T15:08:58+08:00"]
    plain.write_text(json.dumps([make_coin(n, last_updated=at) for n, at in enumerate(times, 1)]), encoding="utf-8")

    assert scripts.pipeline("--replay", plain).returncode == 0
    assert database.execute("SELECT DISTINCT timestamp FROM crypto_prices") == [(datetime(2024, 5, 6, 7, 8),)]


def test_the_rejected_rows_of_a_replay_are_kept_once(scripts: Scripts, tmp_path: Path):
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps([make_coin(1), make_coin(2, current_price="?")]), encoding="utf-8")

    scripts.pipeline("--replay", plain)
    scripts.pipeline("--replay", plain)

    [path] = scripts.kept("*.rejected.jsonl")
    assert path.name == "2025-03-14T23-59-00Z.rejected.jsonl"
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1


def test_files_that_cannot_be_used_are_named_and_the_others_loaded(
    scripts: Scripts, database: Database, tmp_path: Path
):
    contents = {
        "truncated.json.gz": SAMPLE_FILES[0].read_bytes()[:5000],
        "text.json": b"<html>",
        "other.json": b'{"prices": []}',
        "undated.json": json.dumps([make_coin(1, last_updated=None)]).encode(),
        "no-time.json": b'{"timestamp": "yesterday", "coins": []}',
        "empty.json": b'{"timestamp": "2024-01-01T00:00:00Z", "coins": []}',
        "deep.json": b"[" * 100_000,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    result = scripts.pipeline("--replay", *(tmp_path / name for name in contents), tmp_path / "absent", SAMPLE_FILES[1])

    assert result.returncode == 3
    for name in (*contents, "absent"):
        assert f"ERROR   etl_crypto: {tmp_path / name}: " in result.stderr
    assert "8 of 9 files were not loaded" in last_line(result.stderr)
    assert "read files           failed" in result.stdout
    assert "1 snapshots, 99 coins" in result.stdout
    assert "Traceback" not in result.stderr
    assert database.count() == len(read_sample(SAMPLE_FILES[1]))


@posix_only
def test_what_is_no_regular_file_or_unpacks_to_too_much_is_passed_over_without_a_hang_or_much_memory(
    scripts: Scripts, database: Database, tmp_path: Path
):
    fifo, folder, bomb = tmp_path / "fifo", tmp_path / "folder", tmp_path / "bomb.json.gz"
    os.mkfifo(fifo)
    folder.mkdir()
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        for _ in range(1_000):
            file.write(b"[" + b" " * 1_000_000)
    large = tmp_path / "large.json"
    large.write_bytes(b" " * 64_000_001)

    process = scripts.start(
        "pipeline_orchestrator.py", "--replay", fifo, "/dev/zero", folder, bomb, large, SAMPLE_FILES[1]
    )
    if sys.platform == "linux":
        resource.prlimit(process.pid, resource.RLIMIT_AS, (1_200_000_000, 1_200_000_000))  # most of it is never touched
    result = scripts.finish(process)

    assert result.returncode == 3
    for path in (fifo, "/dev/zero", folder):
        assert f"{path}: it is no regular file: leave it out" in result.stderr
    for path in (bomb, large):
        assert f"{path}: it holds more than 64 MB" in result.stderr
    assert "5 of 6 files were not loaded" in last_line(result.stderr)
    assert database.count() == len(read_sample(SAMPLE_FILES[1]))


def test_a_file_of_the_largest_size_is_read(scripts: Scripts, database: Database, tmp_path: Path):
    content = json.dumps([make_coin(1)]).encode()
    plain = tmp_path / "plain.json"
    plain.write_bytes(content + b" " * (64_000_000 - len(content)))

    assert scripts.pipeline("--replay", plain).returncode == 0
    assert database.count() == 1


def test_a_pattern_that_the_shell_left_alone_is_expanded(scripts: Scripts, database: Database):
    result = scripts.pipeline("--replay", SAMPLE_FILES[0].parent / "2025-03-0*.json.gz")

    assert result.returncode == 0, result.stderr
    assert database.execute("SELECT COUNT(DISTINCT timestamp) FROM crypto_prices") == [(9,)]


def test_a_pattern_that_matches_nothing_is_named(scripts: Scripts, tmp_path: Path):
    result = scripts.pipeline("--replay", tmp_path / "*.gz")

    assert result.returncode == 3
    assert f"{tmp_path / '*.gz'}: cannot read JSON or gzip (No such file or directory)" in result.stderr


def test_a_name_with_brackets_is_found(scripts: Scripts, tmp_path: Path):
    path = tmp_path / "market[1].json.gz"
    path.write_bytes(SAMPLE_FILES[0].read_bytes())

    assert scripts.pipeline("--replay", path).returncode == 0
