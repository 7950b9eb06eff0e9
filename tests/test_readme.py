"""The README: its commands work as they stand, its output is the scripts', its links lead somewhere."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from dotenv import dotenv_values

from tests.conftest import PROJECT_DIR, Database, Scripts, make_coin, posix_only
from tests.installation import COUNT, SBIN, Checkout
from tests.make_sample_market import make_snapshots
from tests.stub_coingecko import SAMPLE_FILES, read_sample

README = (PROJECT_DIR / "README.md").read_text(encoding="utf-8")
DASHBOARD_README = (PROJECT_DIR / "powerbi" / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
PROGRAMS = ("mysqld", "mariadbd", "mysql", "mariadb", "mysqldump", "mariadb-dump")
NEEDED = {name: shutil.which(name, path=SBIN) for name in PROGRAMS}
needs_server = pytest.mark.skipif(not (NEEDED["mysqld"] or NEEDED["mariadbd"]), reason="no server binary here")
needs_client = pytest.mark.skipif(not (NEEDED["mysql"] or NEEDED["mariadb"]), reason="no MySQL client in PATH")
needs_dump = pytest.mark.skipif(not (NEEDED["mysqldump"] or NEEDED["mariadb-dump"]), reason="no mysqldump in PATH")


def code(*parts: str) -> str:
    """The one block of code that holds `parts`."""
    [block] = [block for _, block in CODE if all(part in block for part in parts)]
    return block


def as_bytes(row: tuple) -> tuple:
    """Floats as their very bits."""
    return tuple(value.hex() if isinstance(value, float) else value for value in row)


# ---------------------------------------------------------------------------------------------------- its commands work


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """What `git clone` gives, with the sample market in the private server, as the README says."""
    checkout = Checkout(tmp_path_factory.mktemp("home") / "my crypto")
    loaded = checkout.shell(code("MYSQL_DATABASE=crypto_sample", "--replay"))
    assert loaded.returncode == 0, loaded.stderr
    checkout.loaded = loaded.stdout
    yield checkout
    checkout.run("--stop")


@needs_server
def test_the_quick_start_prints_what_the_readme_says(checkout: Checkout):
    def without_seconds(summary: str) -> str:
        return re.sub(r"(done) +[0-9.]+ ", r"\1", summary)

    assert without_seconds(checkout.loaded) == without_seconds(code("read files"))


@needs_server
def test_the_status_is_what_the_readme_says(checkout: Checkout):
    command, _, quoted = code("--status\ntable").partition("\n")

    shown = checkout.shell(command.removeprefix("$ ")).stdout

    def facts(status: str) -> list[str]:
        lines = [line for line in status.splitlines() if not line.startswith("age ")]
        return [lines[0].partition(" at ")[0], *lines[1:]]

    assert facts(shown) == facts(quoted)


def statements() -> list[str]:
    [block] = [block for language, block in CODE if language == "sql"]
    return [statement for statement in block.split(";") if statement.strip()]


def test_there_are_six_questions_in_sql():
    assert len(statements()) == 6


@pytest.fixture
def market(scripts: Scripts, database: Database) -> Database:
    """The sample market without two of its days, and bitcoin on one of them."""
    assert scripts.pipeline("-q", "--replay", *SAMPLE_FILES).returncode == 0
    database.execute("DELETE FROM crypto_prices WHERE DATE(timestamp) IN ('2025-03-07', '2025-03-08')")
    scripts.load({datetime(2025, 3, 7, 1): [make_coin(1, id="bitcoin")]})
    database.execute("COMMIT")
    return database


def newest(*columns: str) -> list[list]:
    """Columns of the newest snapshot of the sample market."""
    return [[coin[column] for column in columns] for coin in read_sample(SAMPLE_FILES[-1])]


def test_the_questions_in_sql_are_answered(market: Database):
    gainers, tiers, history, dominance, gaps = map(market.execute, statements()[:5])

    changes = sorted((change for [change] in newest("price_change_percentage_24h") if change is not None), reverse=True)
    assert [row[3] for row in gainers] == changes[:10]
    caps = sorted((cap for [cap] in newest("market_cap") if cap), reverse=True)
    assert [row[1] for row in dominance] == caps[:10]
    assert [row[2] for row in dominance] == pytest.approx([100 * cap / sum(caps) for cap in caps[:10]])
    last = [row[1:3] for row in tiers if row[0] == datetime(2025, 3, 31)]
    assert last == [("Large Cap", 14), ("Mid Cap", 27), ("Small Cap", 29), ("Micro/Nano Cap", 21), ("Unknown", 8)]
    assert [row[0] for row in history] == [datetime(2025, 3, 7, 1)]
    assert [tuple(map(str, row)) for row in gaps] == [("2025-03-07", "2025-03-09", "1")]


def check_csv(text: str, coins: list[dict]) -> None:
    assert text.startswith("\ufeff")
    rows = list(csv.DictReader(text.removeprefix("\ufeff").splitlines()))
    found = {row["coin_id"]: (row["price"], row["market_cap"], row["change_24h"]) for row in rows}
    figures = ("current_price", "market_cap", "price_change_percentage_24h")
    assert {coin: [float(figure) if figure else None for figure in row] for coin, row in found.items()} == {
        coin["id"]: [coin[figure] for figure in figures] for coin in coins
    }


def test_the_csv_holds_the_newest_snapshot_and_no_formula(scripts: Scripts, market: Database):
    coins = read_sample(SAMPLE_FILES[-1])
    coins += [make_coin(1, id="odd", name='=1+"1",\N{IZAKAYA LANTERN}', market_cap=None), make_coin(2, name="@x")]
    scripts.load({datetime(2025, 4, 1): coins})
    market.execute("COMMIT")

    lines = [line for (line,) in market.execute(statements()[5])]

    check_csv("\n".join(lines), coins)
    names = {row["coin_id"]: row["name"] for row in csv.DictReader(line.lstrip("\ufeff") for line in lines)}
    assert names["odd"] == '\'=1+"1",\N{IZAKAYA LANTERN}'
    assert names["coin-00002"] == "'@x"


@needs_server
@needs_client
def test_the_csv_is_written_by_the_command_in_the_readme(checkout: Checkout):
    (checkout.folder / "pasted.sql").write_text(statements()[5], encoding="utf-8")
    command = code("newest.csv").replace("cat |", "cat pasted.sql |")
    written = checkout.shell(command, MYSQL_DATABASE="crypto_sample")

    assert written.returncode == 0, written.stderr
    check_csv((checkout.folder / "newest.csv").read_text(encoding="utf-8"), read_sample(SAMPLE_FILES[-1]))


@needs_server
@needs_dump
def test_the_private_history_moves_to_another_server_bit_for_bit(checkout: Checkout, database: Database):
    checkout.load_sample()
    command = code("mysqldump", "| mysql").replace("crypto_db crypto_prices", "crypto_sample crypto_prices")
    client = NEEDED["mysql"] or NEEDED["mariadb"]
    there = f"{client} --protocol=tcp -h 127.0.0.1 -P {os.environ['TEST_MYSQL_PORT']} -u root {database.name}"
    command = command.replace("mysql -u root -p crypto_db", there)

    moved = checkout.shell(command, MYSQL_PWD=os.environ.get("TEST_MYSQL_PASSWORD", ""))

    assert moved.returncode == 0, moved.stderr
    loaded = [
        tuple(value for value in (coin["id"], coin["current_price"], coin["market_cap"], coin["price_change_24h"]))
        for coin in read_sample(SAMPLE_FILES[-1])
    ]
    found = database.execute(
        "SELECT coin_id, current_price, market_cap, price_change_24h FROM crypto_prices WHERE timestamp = '2025-03-31'"
    )
    as_floats = [(row[0], *(None if figure is None else float(figure) for figure in row[1:])) for row in loaded]
    assert sorted(map(as_bytes, found)) == sorted(map(as_bytes, as_floats))
    assert database.count() == sum(len(read_sample(path)) for path in SAMPLE_FILES)


@needs_server
def test_a_backup_of_the_private_server_is_restored(checkout: Checkout):
    assert checkout.shell(code("tar -czf")).returncode == 0
    made = "the database crypto_later is ready"
    assert made in checkout.run("true", MYSQL_DATABASE="crypto_later").stderr

    restored = checkout.shell(code("tar -xzf"))

    assert restored.returncode == 0, restored.stderr
    assert made in checkout.run("true", MYSQL_DATABASE="crypto_later").stderr  # as the backup has none
    assert checkout.run("python", "-c", COUNT, MYSQL_DATABASE="crypto_sample").stdout == "3076\n"


@posix_only
def test_the_command_before_an_update_names_what_the_first_edition_left_unloaded(tmp_path: Path):
    folder = tmp_path / "snapshots"
    folder.mkdir()
    for name, mode in {"left.json.gz": 0o644, "loaded.json.gz": 0o444, "left.rejected.jsonl": 0o644}.items():
        (folder / name).touch()
        (folder / name).chmod(mode)

    found = subprocess.run(["bash", "-c", code("find snapshots")], cwd=tmp_path, capture_output=True, text=True)

    assert found.stdout.split() == ["snapshots/left.json.gz"]


# ------------------------------------------------------------------------------------------------------------ schedules


def cron_lines(block: str) -> list[str]:
    """The commands of a crontab as cron runs them: a % ends a command, unless a backslash stands before it."""
    lines = [line.split(maxsplit=5)[5] for line in block.splitlines() if line.startswith(("*", "1"))]
    return [re.sub(r"(?<!\\)%.*", "", line).replace("\\%", "%") for line in lines]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with a copy of the project where the README has it."""
    Checkout(tmp_path / "my crypto")
    return tmp_path


def run_by_cron(line: str, home: Path, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"} | settings
    return subprocess.run(["/bin/sh", "-c", line], env=environment, capture_output=True, text=True, cwd=home)


@posix_only
def test_the_line_for_cron_mails_nothing_but_failures_and_keeps_a_log_for_each_time_of_the_day(
    home: Path, scripts: Scripts, database: Database
):
    [line] = cron_lines(code("*/30"))
    settings = scripts.settings | {"COIN_LIMIT": "100"}

    good = [run_by_cron(line, home, settings) for _ in range(3)]
    bad = run_by_cron(line, home, settings | {"MYSQL_PASSWORD": "wrong"})

    assert [(run.returncode, run.stdout, run.stderr) for run in good] == [(0, "", "")] * 3
    assert database.count() > 0
    assert "refused the login" in bad.stdout
    logs = list((home / "my crypto" / "logs").iterdir())
    assert all(re.fullmatch(r"\d{4}\.log", log.name) for log in logs)
    assert max(log.read_text().count("step ") for log in logs) == 1  # of one run


@posix_only
def test_the_line_for_cron_that_looks_for_old_figures_mails_when_they_are_old(
    home: Path, scripts: Scripts, database: Database
):
    [line] = cron_lines(code("15 *"))
    fresh = (datetime.now() - timedelta(minutes=5)).astimezone().isoformat()
    scripts.load({datetime.now(): [make_coin(1, last_updated=fresh)]})
    good = run_by_cron(line, home, scripts.settings)
    database.execute("UPDATE crypto_prices SET last_updated = last_updated - INTERVAL 2 HOUR")

    old = run_by_cron(line, home, scripts.settings)

    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    assert (old.returncode, "more than --max-age 60" in old.stderr) == (6, True)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_the_units_for_systemd_are_valid(tmp_path: Path):
    units = re.findall(r"# (crypto\.\w+)\n(.*?)(?=\n# |\Z)", code("[Timer]"), re.S)
    assert [name for name, _ in units] == ["crypto.service", "crypto.timer"]
    for name, text in units:
        (tmp_path / name).write_text(text.replace("%h/my crypto/.venv/bin/python", sys.executable), encoding="utf-8")

    result = subprocess.run(
        ["systemd-analyze", "verify", *sorted(map(str, tmp_path.iterdir()))], capture_output=True, text=True
    )

    assert (result.returncode, result.stderr) == (0, "")


# ---------------------------------------------------------------------------------------------- its words and its links


def test_the_help_of_the_build_stands_in_the_readme_of_the_dashboard():
    command = [sys.executable, PROJECT_DIR / "powerbi" / "build_dashboard.py", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"}).stdout

    # Python versions break the usage line at different places
    quoted = f"``` $ python powerbi/build_dashboard.py --help {shown}```"
    assert " ".join(quoted.split()) in " ".join(DASHBOARD_README.split())


@pytest.mark.parametrize("folder", [PROJECT_DIR, PROJECT_DIR / "powerbi"])
def test_every_file_that_a_readme_links_to_is_there(folder: Path):
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", (folder / "README.md").read_text(encoding="utf-8"))

    assert links
    assert [link for link in links if not (folder / link).exists()] == []


def test_every_script_and_option_in_the_readme_is_there():
    options = set(re.findall(r"pipeline_orchestrator\.py\S* (?:[^\n`]* )?(--[a-z-]+)", README))
    shown = subprocess.run(
        [sys.executable, PROJECT_DIR / "pipeline_orchestrator.py", "--help"], capture_output=True, text=True
    ).stdout

    assert len(options) >= 5
    assert [option for option in options if option not in shown] == []
    scripts = re.findall(r"(?:python|bash|Scripts\\python) ((?:[\w-]+[/\\])?\w+\.(?:py|sh))\b", README)
    assert [name for name in scripts if not (PROJECT_DIR / name.replace("\\", "/")).exists()] == []


def test_every_setting_stands_in_the_readme():
    settings = README.partition("## Settings")[2].partition("\n## ")[0]

    assert set(re.findall(r"`([A-Z_]+)`", settings)) == set(dotenv_values(PROJECT_DIR / ".env.example"))


def test_every_link_within_the_readme_leads_to_a_heading():
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in re.findall(r"^#+ .*$", README, re.M)
    }

    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings


def test_the_sample_files_are_what_their_script_makes():
    made = make_snapshots()

    assert len(made) == len(SAMPLE_FILES) == 31
    for snapshot, path in zip(made, SAMPLE_FILES, strict=True):
        assert path.name == snapshot["timestamp"].replace(":", "-") + ".json.gz"
        assert read_sample(path) == json.loads(json.dumps(snapshot["coins"]))
