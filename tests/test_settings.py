"""The settings: .env and the environment, defaults, bad values, and secrets that are never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from dotenv import dotenv_values

from etl_crypto import ConfigError, Settings, read_environment
from tests.conftest import PROJECT_DIR, Database, Scripts, make_settings, one_line_error, posix_only
from tests.stub_coingecko import StubCoinGecko

# ----------------------------------------------------------------------------------------- the file and the environment


def test_the_environment_wins_over_the_file_even_when_empty(scripts: Scripts, monkeypatch: pytest.MonkeyPatch):
    scripts.env_file.write_text("MYSQL_PASSWORD=in-the-file\nCOIN_LIMIT=7\n", encoding="utf-8")
    monkeypatch.setenv("MYSQL_PASSWORD", "")
    monkeypatch.delenv("COIN_LIMIT", raising=False)

    values = read_environment(scripts.env_file)

    assert (values["MYSQL_PASSWORD"], values["COIN_LIMIT"]) == ("", "7")


def test_a_file_from_notepad_is_read_and_no_value_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "notepad.env"
    path.write_bytes(b"\xef\xbb\xbfMYSQL_USER=me\r\nMYSQL_PASSWORD='a${HOME}#b c'\r\n")
    monkeypatch.delenv("MYSQL_USER", raising=False)
    monkeypatch.delenv("MYSQL_PASSWORD", raising=False)

    values = read_environment(path)

    assert (values["MYSQL_USER"], values["MYSQL_PASSWORD"]) == ("me", "a${HOME}#b c")


@pytest.mark.parametrize("content", [None, "MYSQL_USER=me".encode("utf-16")])
def test_a_settings_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None):
    path = tmp_path / "my.env"
    if content:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"my\.env"):
        read_environment(path)


def test_a_line_that_is_no_setting_is_named(tmp_path: Path):
    path = tmp_path / "my.env"
    path.write_text("MYSQL_USER=me\nMYSQL_PASSWORD='without an end\n", encoding="utf-8")

    with pytest.raises(ConfigError, match=r"my\.env, line 2, is not KEY=value"):
        read_environment(path)


@posix_only
@pytest.mark.parametrize(
    ("mode", "content", "is_warned_of"),
    [
        (0o644, "MYSQL_PASSWORD=p", True),
        (0o604, "COINGECKO_API_KEY=some-key", True),
        (0o640, "MYSQL_PASSWORD=p", False),  # a group of its owner's choice
        (0o600, "MYSQL_PASSWORD=p", False),
        (0o644, "COIN_LIMIT=7\nMYSQL_PASSWORD=", False),
    ],
)
def test_passwords_that_everybody_may_read_are_warned_of_once_with_the_command(
    scripts: Scripts, mode: int, content: str, is_warned_of: bool
):
    scripts.env_file.write_text(content, encoding="utf-8")
    scripts.env_file.chmod(mode)

    shown, quiet = scripts.pipeline("--dry-run"), scripts.pipeline("--dry-run", "-q")

    assert shown.stderr.count(f"chmod 600 {scripts.env_file}") == is_warned_of
    assert "chmod" not in quiet.stderr  # cron would mail it with every run


@posix_only
def test_the_settings_may_come_through_a_pipe(scripts: Scripts, database: Database):
    secret = scripts.folder / "secret.env"
    secret.write_text("COIN_LIMIT=7\n", encoding="utf-8")

    result = scripts.shell(f'"$python" "$here/pipeline_orchestrator.py" --env-file <(cat "{secret}")')

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


# --------------------------------------------------------------------------------------------------------------- values


def test_every_setting_is_in_the_example_with_its_default():
    example = read_example()

    assert {key.lower() for key in example} == set(Settings.__dataclass_fields__)
    assert make_settings(**example) == make_settings(MYSQL_USER="crypto_etl", MYSQL_PASSWORD="")


def read_example() -> dict[str, str]:
    return {key: value or "" for key, value in dotenv_values(PROJECT_DIR / ".env.example").items()}


def test_an_empty_password_is_a_password():
    assert make_settings(MYSQL_PASSWORD="").mysql_password == ""


def test_a_relative_snapshot_dir_lies_beside_the_scripts():
    assert make_settings(SNAPSHOT_DIR="kept").snapshot_dir == PROJECT_DIR / "kept"


@posix_only
def test_a_tilde_is_the_home_folder(scripts: Scripts, api: StubCoinGecko, tmp_path: Path):
    (tmp_path / "my.env").write_text("COIN_LIMIT=7\nSNAPSHOT_DIR=~/kept\n", encoding="utf-8")
    del scripts.settings["SNAPSHOT_DIR"]
    home = {"HOME": str(tmp_path)}

    result = scripts.shell('"$python" "$here/pipeline_orchestrator.py" --env-file "~/my.env"', **home)

    assert result.returncode == 0, result.stderr
    [kept] = (tmp_path / "kept").glob("*.json.gz")
    again = scripts.shell(f'"$python" "$here/etl_crypto.py" --dry-run --replay "~/kept/{kept.name}"', **home)
    assert again.returncode == 0, again.stderr
    assert "7 coins would be written" in again.stdout


def test_a_tilde_of_nobody_is_named_in_one_line(scripts: Scripts):
    one_line_error(
        scripts.pipeline(SNAPSHOT_DIR="~nobody-here/x"), 2, "SNAPSHOT_DIR is '~nobody-here/x'", "home folder"
    )


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"MYSQL_USER": None}, ["MYSQL_USER is not set", ".env.example"]),
        ({"MYSQL_PORT": "33o6"}, ["MYSQL_PORT is '33o6'", "1 to 65535"]),
        ({"COIN_LIMIT": "0"}, ["COIN_LIMIT is '0'", "all"]),
        ({"COIN_LIMIT": ""}, ["COIN_LIMIT is ''"]),
        ({"TIER_MID_CAP_MIN": "10e9"}, ["TIER_LARGE_CAP_MIN=1e+10", "are not descending"]),
        ({"HTTP_TIMEOUT_SECONDS": "nan"}, ["HTTP_TIMEOUT_SECONDS is 'nan'"]),
        ({"COINGECKO_API_PLAN": "gold"}, ["COINGECKO_API_PLAN is 'gold'", "demo or pro"]),
        ({"COINGECKO_BASE_URL": "api.coingecko.com"}, ["COINGECKO_BASE_URL is 'api.coingecko.com'"]),
        ({"COINGECKO_BASE_URL": "http://example.com/x", "COINGECKO_API_KEY": "k"}, ["in the clear", "https"]),
        ({"MYSQL_SSL_CA": "/no/such/ca.pem"}, ["MYSQL_SSL_CA is '/no/such/ca.pem'"]),
    ],
)
def test_a_bad_setting_stops_the_run_before_any_connection(
    scripts: Scripts, api: StubCoinGecko, settings: dict[str, str | None], parts: list[str]
):
    result = scripts.pipeline(**settings)

    one_line_error(result, 2, *parts)
    assert result.stdout == ""
    assert api.requests == []


# -------------------------------------------------------------------------------------------------------------- secrets


def test_settings_do_not_show_their_secrets():
    text = repr(make_settings(MYSQL_PASSWORD="hunter2", COINGECKO_API_KEY="CG-key"))

    assert "hunter2" not in text
    assert "CG-key" not in text


@pytest.mark.parametrize(
    "values",
    [
        {"COINGECKO_API_KEY": "CG-secret\nx"},
        {"COINGECKO_BASE_URL": "https://u:secret@example.com"},
        {"COINGECKO_BASE_URL": "https://example.com/?x_cg_pro_api_key=secret"},
    ],
)
def test_a_setting_that_holds_a_secret_in_the_wrong_place_is_refused_without_showing_it(values: dict[str, str]):
    with pytest.raises(ConfigError) as refused:
        make_settings(**values)
    assert "secret" not in str(refused.value)


def test_a_key_that_is_no_key_is_refused_without_showing_it(scripts: Scripts):
    scripts.settings["COINGECKO_API_KEY"] = "CG-sec ret"

    one_line_error(scripts.pipeline(), 2, "COINGECKO_API_KEY is not usable")
