"""Settings from AWS Secrets Manager: what they fill in, what is stronger, and no value of theirs in any message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cloud.lambda_sandbox import CREDENTIALS, REGION, SecretsManager, Unavailable
from tests.conftest import Database, Scripts, one_line_error
from tests.stub_coingecko import StubCoinGecko

KEY = "CG-abcdefghijklmnopqrstuvwx"
SCRIPTS = ("etl_crypto.py", "segment_and_load.py", "pipeline_orchestrator.py")
MYSQL_KEYS = ("MYSQL_HOST", "MYSQL_PORT", "MYSQL_DATABASE", "MYSQL_USER", "MYSQL_PASSWORD")


@pytest.fixture
def manager() -> Iterator[SecretsManager]:
    try:
        manager = SecretsManager()
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield manager
    manager.close()


def variables(manager: SecretsManager) -> dict[str, str]:
    """With these the scripts find it."""
    where = {"AWS_ENDPOINT_URL_SECRETS_MANAGER": manager.url, "AWS_DEFAULT_REGION": REGION}
    return CREDENTIALS | where | {"AWS_EC2_METADATA_DISABLED": "true"}


def account(database: Database, **changes: Any) -> dict[str, Any]:
    """A secret as RDS writes it."""
    values = database.settings()
    return {
        "username": values["MYSQL_USER"],
        "password": values["MYSQL_PASSWORD"],
        "engine": "mysql",
        "host": values["MYSQL_HOST"],
        "port": int(values["MYSQL_PORT"]),
        "dbname": values["MYSQL_DATABASE"],
    } | changes


@pytest.fixture
def cloud_scripts(scripts: Scripts, manager: SecretsManager, database: Database) -> Scripts:
    """The scripts with no other account than the one in the secret "etl"."""
    for key in MYSQL_KEYS:
        del scripts.settings[key]
    manager.put("etl", account(database))
    scripts.settings |= variables(manager) | {"MYSQL_SECRET_ID": "etl", "MYSQL_SSL_CA": "none"}
    return scripts


# ---------------------------------------------------------------------------------------------------- what they fill in


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_finds_its_account_in_the_secret(cloud_scripts: Scripts, script: str):
    result = cloud_scripts.run(script)

    assert result.returncode == 0, result.stderr


def test_a_secret_is_found_by_its_arn_whatever_the_region_here_is(
    cloud_scripts: Scripts, manager: SecretsManager, database: Database
):
    arn = manager.put("etl", account(database))

    result = cloud_scripts.pipeline(MYSQL_SECRET_ID=arn, AWS_DEFAULT_REGION="eu-west-3")

    assert result.returncode == 0, result.stderr
    assert database.count() == 120


def test_the_key_of_coingecko_comes_from_its_secret_and_shows_nowhere(
    cloud_scripts: Scripts, manager: SecretsManager, api: StubCoinGecko
):
    manager.put("coingecko", {"api_key": KEY, "api_plan": "pro"})

    result = cloud_scripts.pipeline("-v", COINGECKO_SECRET_ID="coingecko")

    assert result.returncode == 0, result.stderr
    assert {request.headers["x-cg-pro-api-key"] for request in api.requests} == {KEY}
    assert KEY not in result.stdout + result.stderr


def test_a_password_that_was_changed_counts_from_the_next_run(
    cloud_scripts: Scripts, manager: SecretsManager, database: Database
):
    assert cloud_scripts.pipeline().returncode == 0
    try:
        database.execute(f"ALTER USER '{database.user}'@'%' IDENTIFIED BY 'changed'")
        between = cloud_scripts.pipeline()
        manager.put("etl", account(database, password="changed"))
        after = cloud_scripts.pipeline()
    finally:
        database.execute(f"ALTER USER '{database.user}'@'%' IDENTIFIED BY '{database.password}'")

    one_line_error(between, 4, "refused the login", "deploy the stack again, which gives")
    assert after.returncode == 0, after.stderr


def test_what_a_secret_leaves_empty_has_its_default(
    cloud_scripts: Scripts, manager: SecretsManager, api: StubCoinGecko
):
    manager.put("coingecko", {"api_key": "", "api_plan": None})

    result = cloud_scripts.pipeline(COINGECKO_SECRET_ID="coingecko")

    assert result.returncode == 0, result.stderr
    assert not any(name.startswith("x-cg-") for request in api.requests for name in request.headers)


# ----------------------------------------------------------------------------------------------------- what is stronger


def test_the_environment_wins_over_env_which_wins_over_the_secret(
    cloud_scripts: Scripts, manager: SecretsManager, database: Database
):
    manager.put("etl", account(database, dbname="of_the_secret", host="of-the-secret.example.com"))
    cloud_scripts.env_file.write_text(
        f"MYSQL_DATABASE=of_the_file\nMYSQL_HOST={database.settings()['MYSQL_HOST']}\n", encoding="utf-8"
    )

    result = cloud_scripts.pipeline(MYSQL_DATABASE=database.name)

    assert result.returncode == 0, result.stderr
    assert "MYSQL_HOST, MYSQL_DATABASE of the environment or .env: not taken from the secret" in result.stderr
    assert database.count() == 120


def test_a_setting_of_the_environment_counts_even_when_empty(cloud_scripts: Scripts):
    result = cloud_scripts.pipeline("--status", MYSQL_PASSWORD="")

    one_line_error(result, 4, "refused the login")


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("hunter2", "is no JSON object of texts (it is not shown here): give it username and password"),
        (["hunter2"], "is no JSON object of texts"),
        ({"username": "hunter2", "password": {"is": "hunter2"}}, "is no JSON object of texts"),
        ({"username": "hunter2", "password": ["hunter2"]}, "is no JSON object of texts"),
        ({"username": "", "password": "hunter2"}, "MYSQL_USER is not set, and the secret 'odd' does not hold it"),
        ({"username": "hunter2", "password": ""}, "MYSQL_PASSWORD is not set, and the secret 'odd' does not hold it"),
    ],
)
@pytest.mark.parametrize("verbosity", ["-q", "-v"])
def test_an_odd_secret_is_refused_without_showing_it(
    cloud_scripts: Scripts, manager: SecretsManager, api: StubCoinGecko, value: object, problem: str, verbosity: str
):
    manager.put("odd", value)

    result = cloud_scripts.pipeline(verbosity, MYSQL_SECRET_ID="odd")

    assert result.returncode == 2
    assert problem in result.stderr
    assert "hunter2" not in result.stderr
    assert api.requests == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"MYSQL_SECRET_ID": "nobody"}, "AWS refuses the secret 'nobody' of MYSQL_SECRET_ID (\"ResourceNotFound"),
        ({"COINGECKO_SECRET_ID": "nobody"}, "AWS refuses the secret 'nobody' of COINGECKO_SECRET_ID"),
        ({"AWS_ENDPOINT_URL_SECRETS_MANAGER": "http://127.0.0.1:1"}, "could not be read ('Could not connect"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "could not be read ('Unable to locate credentials')"),
    ],
)
def test_a_secret_that_cannot_be_had_ends_the_run_before_any_connection(
    cloud_scripts: Scripts, api: StubCoinGecko, changes: dict[str, str], problem: str
):
    result = cloud_scripts.pipeline(**changes, AWS_SHARED_CREDENTIALS_FILE="/none", AWS_CONFIG_FILE="/none")

    one_line_error(result, 2, problem, ": check ")
    assert api.requests == []


@pytest.mark.parametrize("key", ["MYSQL_SECRET_ID", "COINGECKO_SECRET_ID"])
def test_with_a_secret_any_host_needs_a_ca_file(
    scripts: Scripts, manager: SecretsManager, api: StubCoinGecko, database: Database, key: str
):
    manager.put("any", account(database))

    result = scripts.pipeline(**variables(manager), **{key: "any"})

    one_line_error(result, 2, "MYSQL_SSL_CA is empty, so whoever answers as", "would get the password", "none")
    assert api.requests == []


# ----------------------------------------------------------------------------------------------------- without a secret


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_a_secret_the_packages_of_aws_are_not_imported(scripts: Scripts, script: str):
    result = scripts.run(script, PYTHONPROFILEIMPORTTIME="1")

    assert result.returncode == 0, result.stderr
    assert "mysql.connector" in result.stderr
    assert not re.search(r"\| +boto", result.stderr)


def test_help_reads_no_secret(scripts: Scripts):
    assert scripts.pipeline("--help", MYSQL_SECRET_ID="x", AWS_ENDPOINT_URL="http://127.0.0.1:1").returncode == 0


def test_where_boto3_is_missing_the_error_says_how_to_install_it(scripts: Scripts, tmp_path: Path):
    (tmp_path / "boto3.py").write_text("raise ModuleNotFoundError('No module named boto3', name='boto3')\n")

    result = scripts.pipeline(MYSQL_SECRET_ID="etl", PYTHONPATH=str(tmp_path))

    one_line_error(result, 2, "MYSQL_SECRET_ID needs the module boto3", "-m pip install boto3")
