"""What all three scripts promise alike: exit codes, one line for an expected failure, whatever streams they are given.

They also run in a thread, where no signal arrives.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR, Database, Scripts, one_line_error
from tests.stub_coingecko import SAMPLE_FILES, StubCoinGecko

SCRIPTS = ["etl_crypto.py", "segment_and_load.py", "pipeline_orchestrator.py"]
posix_only = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")


def shell(scripts: Scripts, command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A line of a shell, in which $python and $here stand for the interpreter and the project's folder."""
    environment = scripts.environment({"python": sys.executable, "here": str(PROJECT_DIR)} | settings)
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, cwd=scripts.folder)


# --------------------------------------------------------------------------------------------------- without streams


@posix_only
@pytest.mark.parametrize("script", SCRIPTS)
def test_without_standard_streams_the_work_is_done(scripts: Scripts, database: Database, script: str):
    assert scripts.run("etl_crypto.py", SNAPSHOT_MINUTES="525600").returncode == 0

    result = shell(scripts, f'"$python" "$here/{script}" <&- >&- 2>&-', SNAPSHOT_MINUTES="525600")

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
    result = shell(scripts, f'"$python" "$here/pipeline_orchestrator.py" {arguments} >&- 2>&-', **settings)

    assert result.returncode == exit_code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("option", ["", "--json"])
def test_a_status_that_cannot_be_written_is_one_line_and_exit_code_1(scripts: Scripts, option: str):
    assert scripts.pipeline("--replay", SAMPLE_FILES[0]).returncode == 0

    result = shell(scripts, f'"$python" "$here/pipeline_orchestrator.py" --status {option} >/dev/full')

    one_line_error(result, 1, "the result cannot be written (No space left on device)")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_whose_work_is_done_keeps_its_code_when_the_result_cannot_be_written(
    scripts: Scripts, database: Database, script: str
):
    result = shell(scripts, f'"$python" "$here/{script}" >/dev/full')

    assert result.returncode == 0, result.stderr
    assert "the result cannot be written (No space left on device)" in result.stderr
    assert database.count() == (0 if script == "segment_and_load.py" else 120)


@posix_only
def test_a_status_into_a_closed_pipe_is_no_error(scripts: Scripts):
    assert scripts.pipeline("--replay", SAMPLE_FILES[0]).returncode == 0
    process = scripts.start("pipeline_orchestrator.py", "--status")
    process.stdout.close()

    assert process.wait(60) == 0, process.stderr.read()


# ------------------------------------------------------------------------------------------------------ in a thread

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
    [([], {}, 0), (["--nonsense"], {}, 2), ([], {"MYSQL_PORT": "1"}, 4)],
    ids=["done", "usage", "no server"],
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


# -------------------------------------------------------------------------------------------------- where settings are


@posix_only
def test_the_settings_may_come_through_a_pipe(scripts: Scripts, database: Database):
    secret = scripts.folder / "secret.env"
    secret.write_text("COIN_LIMIT=7\n", encoding="utf-8")

    result = shell(scripts, f'"$python" "$here/pipeline_orchestrator.py" --env-file <(cat "{secret}")')

    assert result.returncode == 0, result.stderr
    assert database.count() == 7


def test_a_misspelt_key_is_warned_of_and_other_keys_are_not(scripts: Scripts):
    misspelt = {
        "COIN_LIMT": "COIN_LIMIT",  # a letter left out
        "MYSQL_PASWORDD": "MYSQL_PASSWORD",
        "COINGECKO_APY_KEY": "COINGECKO_API_KEY",
        "mysql_host": "MYSQL_HOST",
    }
    others = ["MYSQL_ROOT_PASSWORD", "MYSQL_HOSTNAME", "COINS", "LIMIT", "PATH", "AWS_REGION", "SNAPSHOT_DIRECTORY"]
    scripts.env_file.write_text("\n".join(f"{key}=1" for key in [*misspelt, *others]), encoding="utf-8")

    result = scripts.pipeline("--dry-run", COIN_LIMT_OF_THE_ENVIRONMENT="1", COIN_LIMI="1")

    assert result.returncode == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if "is no setting" in line]
    assert len(warnings) == len(misspelt)
    for key, name in misspelt.items():
        assert [line for line in warnings if f"'{key}' in {scripts.env_file} " in line and line.endswith(f" {name}")]


@posix_only
def test_a_tilde_is_the_home_folder(scripts: Scripts, api: StubCoinGecko, tmp_path: Path):
    (tmp_path / "my.env").write_text("COIN_LIMIT=7\nSNAPSHOT_DIR=~/kept\n", encoding="utf-8")
    del scripts.settings["SNAPSHOT_DIR"]
    home = {"HOME": str(tmp_path)}

    result = shell(scripts, '"$python" "$here/pipeline_orchestrator.py" --env-file "~/my.env"', **home)

    assert result.returncode == 0, result.stderr
    [kept] = (tmp_path / "kept").glob("*.json.gz")
    again = shell(scripts, f'"$python" "$here/etl_crypto.py" --dry-run --replay "~/kept/{kept.name}"', **home)
    assert again.returncode == 0, again.stderr
    assert "7 coins would be written" in again.stdout


def test_a_tilde_of_nobody_is_one_line(scripts: Scripts):
    one_line_error(
        scripts.pipeline(SNAPSHOT_DIR="~nobody-here/x"), 2, "SNAPSHOT_DIR is '~nobody-here/x'", "home folder"
    )


def test_a_key_that_is_no_key_is_refused_without_showing_it(scripts: Scripts):
    scripts.settings["COINGECKO_API_KEY"] = "CG-sec ret"

    one_line_error(scripts.pipeline(), 2, "COINGECKO_API_KEY is not usable")
