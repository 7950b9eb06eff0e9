"""What the three scripts promise alike: options, exit codes, one line for an expected failure, signals and streams."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etl_crypto import VERSION
from tests.conftest import PROJECT_DIR, Database, Scripts, one_line_error, posix_only, utc_now
from tests.stub_coingecko import SAMPLE_FILES, Answer, StubCoinGecko

SCRIPTS = ["etl_crypto.py", "segment_and_load.py", "pipeline_orchestrator.py"]

# --------------------------------------------------------------------------------------------------- options and errors


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--coins", "many"], "--coins: 'many', not a whole number from 1 to 1000000, or all"),
        (["--max-age", "5"], "--max-age goes with --status"),
        (["--status", "--max-age", "soon"], "--max-age: 'soon', not a number from 0"),
        (["--coins", "5", "--replay", "x"], "not allowed with"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(scripts: Scripts, arguments: list[str], part: str):
    result = scripts.pipeline(*arguments)

    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert part in result.stderr
    assert "--help" in result.stderr


def test_a_package_that_is_missing_is_named_in_one_line(scripts: Scripts):
    result = subprocess.run(
        [sys.executable, "-S", PROJECT_DIR / "pipeline_orchestrator.py", "--dry-run"],
        env=scripts.environment({"PYTHONPATH": None}),
        capture_output=True,
        text=True,
    )

    one_line_error(result, 2, "module dotenv is missing", "-m pip install -r requirements.txt")


@pytest.mark.parametrize("script", [*SCRIPTS, "powerbi/build_dashboard.py"])
def test_an_installed_package_called_sql_is_not_taken_for_the_folder(scripts: Scripts, tmp_path: Path, script: str):
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "__init__.py").write_text("raise SystemExit('not this one')", encoding="utf-8")

    result = subprocess.run(
        [sys.executable, PROJECT_DIR / script, "--help"],
        env=scripts.environment({"PYTHONPATH": str(tmp_path)}),
        capture_output=True,
        text=True,
    )

    assert result.returncode == 0, result.stderr


def test_verbose_adds_the_traceback_of_an_expected_failure(scripts: Scripts):
    result = scripts.pipeline("-v", MYSQL_PORT="1")

    assert result.returncode == 4
    assert "Traceback" in result.stderr


def test_a_bug_stays_a_traceback_and_exit_code_1(scripts: Scripts, tmp_path: Path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("etl_crypto.py", "segment_and_load.py", "pipeline_orchestrator.py"):
        text = (PROJECT_DIR / name).read_text(encoding="utf-8")
        (broken / name).write_text(text.replace("def segment(", "def segment(missing, "), encoding="utf-8")
    shutil.copytree(PROJECT_DIR / "sql", broken / "sql")

    result = subprocess.run(
        [sys.executable, broken / "pipeline_orchestrator.py", "--env-file", scripts.env_file],
        env=scripts.environment({}),
        capture_output=True,
        text=True,
    )

    assert result.returncode == 1
    assert "TypeError" in result.stderr
    assert "load and segment     failed" in result.stdout


# -------------------------------------------------------------------------------------------------------------- signals


@posix_only
@pytest.mark.parametrize(
    ("number", "exit_code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_signal_ends_a_run_at_once(
    scripts: Scripts, api: StubCoinGecko, database: Database, number: int, exit_code: int, name: str
):
    api.script = lambda page, attempt: api.hang()
    process = scripts.start("pipeline_orchestrator.py")
    api.wait_for_requests(1)
    sent = time.monotonic()
    process.send_signal(number)

    result = scripts.finish(process)

    one_line_error(result, exit_code, name)
    assert time.monotonic() - sent < 5  # two seconds are promised, thirty is the timeout of a call
    assert "fetch                failed" in result.stdout
    assert database.count() == 0


@posix_only
def test_a_signal_ends_a_wait_for_another_try(scripts: Scripts, api: StubCoinGecko):
    api.script = lambda page, attempt: Answer(status=429, headers={"Retry-After": "119"})
    process = scripts.start("pipeline_orchestrator.py", COIN_LIMIT="250", RETRY_BUDGET_SECONDS="600")
    waiting = process.stderr.readline()
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)

    assert "page 1: status 429; trying again in 119 s" in waiting
    assert scripts.finish(process).returncode == 143
    assert time.monotonic() - sent < 5


@pytest.mark.parametrize("script", [*SCRIPTS, "sql/create_database.py"])
def test_an_old_python_is_told_which_one_is_needed(script: str):
    by_pyenv = Path.home().glob(".pyenv/versions/3.10.*/bin/python")
    old = next(filter(None, [*map(str, by_pyenv), shutil.which("python3.10"), shutil.which("python3.9")]), None)
    if not old:
        pytest.skip("no Python 3.9 or 3.10 here")

    result = subprocess.run([old, PROJECT_DIR / script], capture_output=True, text=True)

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Python 3.11 or newer is needed")
    assert result.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------------------------- --help, --version


@pytest.mark.parametrize("script", [*SCRIPTS, "sql/create_database.py"])
def test_help_fits_a_screen(script: str):
    shown = subprocess.run(
        [sys.executable, PROJECT_DIR / script, "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
    )

    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if line.startswith(("  python ", "  sudo "))]) == 3


@posix_only
def test_the_examples_in_the_help_work(scripts: Scripts, small_market: StubCoinGecko):
    for coin in small_market.coins:
        coin["last_updated"] = f"{utc_now().isoformat()}Z"
    for script in SCRIPTS:
        shown = scripts.run(script, "--help").stdout
        for example in re.findall(r"^  python (\S+\.py\b(?: \S+)*)", shown, re.M):
            result = scripts.shell(f'"$python" "$here"/{example} --env-file {scripts.env_file}')
            assert result.returncode == 0, (example, result.stderr)


def test_all_scripts_have_one_version(scripts: Scripts):
    versions = {scripts.run(script, "--version").stdout.removeprefix(script) for script in SCRIPTS}

    assert versions == {f" {VERSION}\n"}


# -------------------------------------------------------------------------------------------------------------- streams


@posix_only
@pytest.mark.parametrize("script", SCRIPTS)
def test_without_standard_streams_the_work_is_done(scripts: Scripts, database: Database, script: str):
    assert scripts.run("etl_crypto.py", SNAPSHOT_MINUTES="525600").returncode == 0

    result = scripts.shell(f'"$python" "$here/{script}" <&- >&- 2>&-', SNAPSHOT_MINUTES="525600")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    tiered = 0 if script == "etl_crypto.py" else 120
    assert database.execute("SELECT COUNT(*), COUNT(market_cap_tier) FROM crypto_prices") == [(120, tiered)]


@posix_only
@pytest.mark.parametrize(
    ("arguments", "settings", "exit_code"),
    [
        ("", {"COIN_LIMIT": "none"}, 2),
        ("--nonsense", {}, 2),
        ("", {"COINGECKO_BASE_URL": "http://127.0.0.1:1"}, 3),
        ("", {"MYSQL_PORT": "1"}, 4),
        ("--status", {}, 6),
        ("--status --json", {}, 6),
        ("--help", {}, 0),
    ],
)
def test_without_standard_streams_the_exit_code_is_the_documented_one(
    scripts: Scripts, arguments: str, settings: dict[str, str], exit_code: int
):
    result = scripts.shell(f'"$python" "$here/pipeline_orchestrator.py" {arguments} >&- 2>&-', **settings)

    assert result.returncode == exit_code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_whose_work_is_done_keeps_its_code_when_the_result_cannot_be_written(
    scripts: Scripts, database: Database, script: str
):
    result = scripts.shell(f'"$python" "$here/{script}" >/dev/full')

    assert result.returncode == 0, result.stderr
    assert "the result cannot be written (No space left on device)" in result.stderr
    assert database.count() == (0 if script == "segment_and_load.py" else 120)


@posix_only
def test_a_reader_of_the_result_that_goes_away_is_no_error(scripts: Scripts):
    process = scripts.start("pipeline_orchestrator.py")
    process.stdout.close()

    assert process.wait(60) == 0, process.stderr.read()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("option", ["", "--json"])
def test_a_status_that_cannot_be_written_is_one_line_and_exit_code_1(scripts: Scripts, option: str):
    assert scripts.pipeline("--replay", SAMPLE_FILES[0]).returncode == 0

    result = scripts.shell(f'"$python" "$here/pipeline_orchestrator.py" --status {option} >/dev/full')

    one_line_error(result, 1, "the result cannot be written (No space left on device)")


@posix_only
def test_a_status_into_a_closed_pipe_is_no_error(scripts: Scripts):
    assert scripts.pipeline("--replay", SAMPLE_FILES[0]).returncode == 0
    process = scripts.start("pipeline_orchestrator.py", "--status")
    process.stdout.close()

    assert process.wait(60) == 0, process.stderr.read()


# ---------------------------------------------------------------------------------------------------------- in a thread

IN_A_THREAD = """
import importlib, sys, threading
main = importlib.import_module(sys.argv[1]).main
codes = []
thread = threading.Thread(target=lambda: codes.append(main(sys.argv[2:])))
thread.start()
thread.join()
print("code", codes)
"""


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("arguments", "settings", "exit_code"),
    [([], {}, 0), (["--version"], {}, 0), (["--nonsense"], {}, 2), ([], {"MYSQL_PORT": "1"}, 4)],
    ids=["done", "version", "usage", "no server"],
)
def test_main_runs_in_a_thread(
    scripts: Scripts, script: str, arguments: list[str], settings: dict[str, str], exit_code: int
):
    result = subprocess.run(
        [sys.executable, "-c", IN_A_THREAD, script.removesuffix(".py"), *arguments],
        env=scripts.environment({"PYTHONPATH": str(PROJECT_DIR)} | settings),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert result.stdout.splitlines()[-1] == f"code [{exit_code}]", result.stderr
    assert "Traceback" not in result.stderr
