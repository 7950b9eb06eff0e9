"""The functions on AWS Lambda: the package under AWS's own runtime client in a sandbox.

Around it, on loopback: a MySQL that takes nothing but TLS, Secrets Manager, and CoinGecko.

What these tests cannot show is in README.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import mysql.connector
import pytest

from sql.crypto_prices import RUN_LOCK
from tests.cloud.lambda_sandbox import (
    CA_FILE,
    FILES,
    Answer,
    Certificates,
    Sandbox,
    SecretsManager,
    Unavailable,
    database_secret,
    find_runtime,
    make_certificates,
    unpack,
)
from tests.conftest import ODD_TEXTS, Scripts, make_coin, make_coins, wait_until
from tests.installation import DATABASES
from tests.own_server import Command, OwnDatabase, OwnServer, free_port
from tests.stub_coingecko import Answer as ApiAnswer
from tests.stub_coingecko import StubCoinGecko

LOGINS = "general.log"
RULE = {  # what a rule of EventBridge sends that has no input of its own
    "version": "0",
    "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa",
    "detail-type": "Scheduled Event",
    "source": "aws.events",
    "account": "123456789012",
    "time": "2026-11-25T19:00:00Z",
    "region": "us-east-1",
    "resources": ["arn:aws:events:us-east-1:123456789012:rule/crypto"],
    "detail": {},
}
# of RDS's master user: no SUPER, no SYSTEM_USER
MASTER_RIGHTS = (
    "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, RELOAD, PROCESS, REFERENCES, INDEX, ALTER, SHOW DATABASES,"
    " CREATE TEMPORARY TABLES, LOCK TABLES, EXECUTE, REPLICATION SLAVE, REPLICATION CLIENT, CREATE VIEW, SHOW VIEW,"
    " CREATE ROUTINE, ALTER ROUTINE, CREATE USER, EVENT, TRIGGER"
)
FOR_A_SHELL = ("python ", ".env", "cron", "--help | ")  # what no message on Lambda should advise


def arguments(*words: str) -> dict[str, list[str]]:
    """The event that is a command line."""
    return {"arguments": list(words)}


# ------------------------------------------------------------------------------------------------------ what is around


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    try:
        return make_certificates(tmp_path_factory.mktemp("certificates"))
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def needs_sandbox() -> None:
    try:
        find_runtime()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def task(
    needs_sandbox: None,
    server_command: Command,  # without a server no package is built
    package: Path,
    certificates: Certificates,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """The package, unpacked, that trusts the tests' server."""
    folder = tmp_path_factory.mktemp("function")
    yield unpack(package, folder / "task", certificates.ca)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def secrets() -> Iterator[SecretsManager]:
    try:
        manager = SecretsManager()
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield manager
    manager.close()


@pytest.fixture(scope="module")
def rds(
    needs_sandbox: None,
    server_command: Command,
    server_data: Path,
    certificates: Certificates,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OwnServer]:
    """A server that takes nothing but TLS and logs who comes."""
    folder = tmp_path_factory.mktemp("rds") / "server"
    logs = ("--general-log=ON", f"--general-log-file={LOGINS}")
    own = OwnServer(server_command, server_data, folder, *certificates.server_options, *logs)
    yield own
    own.remove()


class Cloud:
    """What the template sets up, here: the functions' settings and secrets, files, database, and sandboxes on demand.

    No secret may show in what a function answers or logs.
    """

    def __init__(self, task: Path, folder: Path, database: OwnDatabase, secrets: SecretsManager, url: str) -> None:
        self.task = task
        self.folder = folder
        self.database = database
        self.secrets = secrets
        self.files = folder / "files"
        self.files.mkdir()
        self.key = f"CG-{uuid4().hex}"
        self.hidden = {database.password, self.key}
        self.sandboxes: list[Sandbox] = []
        self.answers: list[Answer] = []
        self.secret_id = f"{database.name}/etl"
        self.settings = {
            "MYSQL_SECRET_ID": self.put_account(),
            "MYSQL_DATABASE": database.name,
            "MYSQL_SSL_CA": CA_FILE,
            "COINGECKO_SECRET_ID": secrets.put(f"{database.name}/coingecko", {"api_key": self.key}),
            "COINGECKO_BASE_URL": url,
            "SNAPSHOT_DIR": FILES,
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": secrets.url,
        }

    def put_account(self, **changes: object) -> str:
        """Write the pipeline's account into its secret, with `changes`; the secret's ARN."""
        return self.secrets.put(self.secret_id, database_secret(self.database) | changes)

    def start(self, *, task: Path | None = None, options: dict[str, Any] | None = None, **settings: str) -> Sandbox:
        folder = self.folder / f"sandbox-{len(self.sandboxes)}"
        sandbox = Sandbox(task or self.task, folder, self.files, self.settings | settings, **options or {})
        self.sandboxes.append(sandbox)
        return sandbox

    def script(self, *words: str, **settings: str | None) -> Scripts:
        """The script of a shell, with the same settings, and the result of `words`."""
        folder = self.folder / f"script-{uuid4().hex[:8]}"
        folder.mkdir()
        scripts = Scripts(folder, self.settings | {"MYSQL_SSL_CA": str(self.task / CA_FILE), "PYTHONWARNINGS": ""})
        aws = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        return scripts.pipeline(*words, **{"SNAPSHOT_DIR": "", "RETRY_BUDGET_SECONDS": None} | aws | settings)

    def has_login(self) -> bool:
        log = (self.database.own.folder / "data" / LOGINS).read_text(encoding="utf-8", errors="replace")
        return f"\t{self.database.user}@" in log

    def wait_for_no_session(self) -> None:
        """Return once the server has ended the pipeline's sessions. Raises TimeoutError."""
        wait_until(lambda: not self.database.sessions(), "the end of the last session")

    def kept(self) -> list[Path]:
        return sorted(self.files.glob("*.json.gz"))

    def stop(self) -> None:
        shown = ""
        for sandbox in self.sandboxes:
            sandbox.stop()
            shown += sandbox.all_text() + json.dumps(sandbox.answers)
        self.database.drop()
        for secret in self.hidden:
            assert secret not in shown
            assert ascii(secret)[1:-1] not in shown
            assert json.dumps(secret)[1:-1] not in shown


@pytest.fixture
def cloud(task: Path, tmp_path: Path, rds: OwnServer, secrets: SecretsManager, api: StubCoinGecko) -> Iterator[Cloud]:
    """What the template sets up, with a database in which the pipeline's account is."""
    rds.start()
    api.coins = fresh_coins(120)
    database = OwnDatabase(rds)
    database.execute(f"ALTER USER '{database.user}'@'%' REQUIRE SSL")
    cloud = Cloud(task, tmp_path, database, secrets, api.url)
    yield cloud
    cloud.stop()


@contextmanager
def task_with(task: Path, folder: Path, **files: str) -> Iterator[Path]:
    """A copy of the unpacked package in which some packages of modules have another text."""
    shutil.copytree(task, folder, copy_function=os.link)
    for name, text in files.items():
        path = folder / name / "__init__.py"
        path.unlink()
        path.write_text(text, encoding="utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()
    yield folder
    shutil.rmtree(folder)


def fresh_coins(count: int, first: int = 1) -> list[dict]:
    """Coins with figures of now, of which nothing is to be warned."""
    now = datetime.now(UTC).isoformat()
    return [coin | {"last_updated": now} for coin in make_coins(count, first)]


def serves_the_next(sandbox: Sandbox) -> bool:
    """Does the same process answer another event?"""
    return sandbox.invoke(arguments("--version")).result.startswith("pipeline_orchestrator.py ")


def without_seconds(text: str) -> str:
    """A summary without what the steps took."""
    return re.sub(r"(?m)^(.{32}) *\d+\.\d ", r"\1 ", text)


# -------------------------------------------------------------------------------------------------------------- events


def test_any_event_without_arguments_is_a_plain_run(cloud: Cloud, api: StubCoinGecko):
    sandbox = cloud.start()

    for event in (RULE, arguments(), {}, None, [], [1, "--status"], "--status", 5, {"detail": ["--status"]}):
        api.requests.clear()
        cloud.database.execute("DELETE FROM crypto_prices")
        result = sandbox.invoke(event).result
        assert "120 coins, total market cap" in result, event
        assert cloud.database.count() == 120, event
        assert set(api.pages) == {1, 2, 3, 4}, event


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        ({"arguments": "--status"}, "\"arguments\" of the event is '--status': make it a list of texts, such as {"),
        ({"arguments": [1]}, '"arguments" of the event is [1]: make it'),
        ({"arguments": None}, '"arguments" of the event is None: make it'),
        ({"arguments": {"--status": True}}, "\"arguments\" of the event is {'--status': True}: make it"),
        (arguments("--no-such"), "unrecognized arguments: --no-such"),
        (arguments("--coins", "many"), "--coins"),
        (arguments("--max-age", "5"), "--max-age goes with --status"),
        (arguments("--env-file", "/var/task/none"), "there is no file /var/task/none"),
    ],
)
def test_an_event_that_is_no_command_line_is_refused_and_the_process_lives(
    cloud: Cloud, api: StubCoinGecko, event: object, problem: str
):
    sandbox = cloud.start()

    answer = sandbox.invoke(event)

    assert answer.error.startswith("exit code 2: ")
    assert problem in answer.error
    assert api.requests == []
    assert not cloud.has_login()
    assert serves_the_next(sandbox)


def test_help_and_version_are_results_and_do_not_end_the_process(cloud: Cloud):
    sandbox = cloud.start()
    process = sandbox.inner_pid()

    assert sandbox.invoke(arguments("--help")).result == cloud.script("--help").stdout
    assert sandbox.invoke(arguments("--version")).result == cloud.script("--version").stdout
    assert sandbox.invoke().result
    assert sandbox.inner_pid() == process


def test_a_run_prints_and_writes_what_the_script_does(cloud: Cloud, api: StubCoinGecko):
    api.coins = [make_coin(number, **changes) for number, changes in enumerate(ODD_TEXTS, 1)]
    api.coins += fresh_coins(980, first=21)
    daily = {"SNAPSHOT_MINUTES": "1440"}  # both are of the same time
    read = "SELECT * FROM crypto_prices ORDER BY coin_id"

    script = cloud.script(**daily)
    rows = cloud.database.execute(read)
    cloud.database.execute("DELETE FROM crypto_prices")
    sandbox = cloud.start(**daily)
    answer = sandbox.invoke(RULE)

    assert script.returncode == 0, script.stderr
    assert len(rows) == 1_000
    assert cloud.database.execute(read) == rows
    assert without_seconds(answer.result) == without_seconds(script.stdout)
    assert sandbox.peak_mb() < 300
    assert len(cloud.kept()) == 1


def test_status_is_what_the_script_says(cloud: Cloud):
    sandbox = cloud.start()
    sandbox.invoke()

    as_json = json.loads(sandbox.invoke(arguments("--status", "--json")).result)
    script = json.loads(cloud.script("--status", "--json").stdout)
    assert as_json["coins"] == 120
    assert as_json | {"age_minutes": 0} == script | {"age_minutes": 0}
    assert "120 coins" in sandbox.invoke(arguments("--status", "--max-age", "5")).result


def test_runs_in_one_process_do_not_depend_on_each_other(cloud: Cloud, api: StubCoinGecko):
    sandbox = cloud.start()

    first = sandbox.invoke(arguments("-v", "--coins", "10", "--dry-run")).result
    second = sandbox.invoke(arguments("-q")).result
    logged = len(sandbox.events())
    third = sandbox.invoke().result

    assert "10 coins, total market cap" in first
    assert second == ""
    assert "120 coins, total market cap" in third
    assert cloud.database.count() in (120, 240)  # by the minute
    cloud.wait_for_no_session()
    assert not any('"DEBUG"' in event.text for event in sandbox.events()[logged:])


# ------------------------------------------------------------------------------------------------------ every exit code


def with_a_bad_setting(cloud: Cloud, api: StubCoinGecko) -> dict[str, str]:
    return {"COIN_LIMIT": "many"}


def with_an_api_that_refuses(cloud: Cloud, api: StubCoinGecko) -> dict[str, str]:
    problem = {"status": {"error_code": 10011, "error_message": f"no such key:\n{cloud.key}"}}
    api.script = lambda page, attempt: ApiAnswer(problem, 401)
    return {}


def with_an_api_that_answers_nonsense(cloud: Cloud, api: StubCoinGecko) -> dict[str, str]:
    api.coins = []
    return {}


def with_a_wrong_password(cloud: Cloud, api: StubCoinGecko) -> dict[str, str]:
    cloud.hidden.add("wr0ng-'pass\\word")
    cloud.put_account(password="wr0ng-'pass\\word")
    return {}


def without_a_table(cloud: Cloud, api: StubCoinGecko) -> dict[str, str]:
    cloud.database.execute("DROP TABLE crypto_prices")
    return {}


def without_a_server(cloud: Cloud, api: StubCoinGecko) -> dict[str, str]:
    cloud.put_account(port=free_port())
    return {}


def with_another_run(cloud: Cloud, api: StubCoinGecko) -> dict[str, str]:
    name = f"{RUN_LOCK.name}.{cloud.database.name}"
    assert cloud.database.execute("SELECT GET_LOCK(%s, 0)", (name,)) == [(1,)]
    return {}


def with_an_empty_table(cloud: Cloud, api: StubCoinGecko) -> dict[str, str]:
    return {}


def with_old_figures(cloud: Cloud, api: StubCoinGecko) -> dict[str, str]:
    insert = "INSERT INTO crypto_prices (timestamp, coin_id, symbol, name) VALUES (%s, 'a', 'a', 'A')"
    cloud.database.execute(insert, ("2025-03-14 12:00:00",))
    return {}


@pytest.mark.parametrize(
    ("exit_code", "prepare", "event", "problem"),
    [
        (2, with_a_bad_setting, {}, "COIN_LIMIT is 'many'"),
        (3, with_an_api_that_refuses, {}, "CoinGecko refused the call (status 401, error 10011: 'no such key:"),
        (3, with_an_api_that_answers_nonsense, {}, "the list of coins is empty"),
        (4, with_a_wrong_password, {}, "refused the login of"),
        (4, without_a_table, {}, "no table"),
        (4, without_a_server, {}, "no MySQL server answers at localhost"),
        (5, with_another_run, {}, "another run is writing to"),
        (6, with_an_empty_table, arguments("--status"), 'is empty: run {"arguments": []}'),
        (6, with_old_figures, arguments("--status", "--max-age", "90"), "old, more than --max-age 90"),
    ],
)
def test_a_failure_is_an_error_with_its_exit_code_and_the_line_of_the_script(
    cloud: Cloud, api: StubCoinGecko, exit_code: int, prepare: Callable, event: dict, problem: str
):
    settings = prepare(cloud, api)
    sandbox = cloud.start(**settings)

    answer = sandbox.invoke(arguments("-v", *event.get("arguments", ())))
    script = cloud.script(*event.get("arguments", ()), **settings)

    assert answer.error.startswith(f"exit code {exit_code}: ")
    assert problem in answer.error
    assert "\n" not in answer.error
    assert not any(advice in answer.error for advice in FOR_A_SHELL)
    assert answer.body["errorType"] == "FailedRunError"
    assert script.returncode == exit_code
    line = script.stderr.splitlines()[-1].partition(" pipeline_orchestrator: ")[2]
    if exit_code < 6:  # its hints are for a shell
        assert answer.error == f"exit code {exit_code}: {line}"
    cloud.wait_for_no_session()
    assert serves_the_next(sandbox)


def test_a_bug_keeps_its_type_and_traceback_and_the_packages_own_modules_come_first(cloud: Cloud, tmp_path: Path):
    # Lambda's Python has a urllib3, too
    with task_with(cloud.task, tmp_path / "broken", urllib3="broken = 1 / 0\n") as broken:
        sandbox = cloud.start(task=broken)
        answer = sandbox.invoke()

        assert answer.kind == "error"
        assert (answer.body["errorType"], answer.error) == ("ZeroDivisionError", "division by zero")
        assert "/var/task/urllib3/__init__.py" in answer.body["stackTrace"][-1]
        assert "/var/task/pipeline_orchestrator.py" in "".join(answer.body["stackTrace"])
        assert serves_the_next(sandbox)


def test_a_module_that_ends_python_does_not_end_the_process(cloud: Cloud, tmp_path: Path):
    with task_with(cloud.task, tmp_path / "broken", urllib3="raise SystemExit('the end')\n") as broken:
        sandbox = cloud.start(task=broken)
        answer = sandbox.invoke()

        assert answer.kind == "error", answer
        assert serves_the_next(sandbox)


# ---------------------------------------------------------------------------------------------------------- time limits


def test_a_mute_api_ends_the_run_before_lambda_does_and_the_next_one_works(cloud: Cloud, api: StubCoinGecko):
    api.script = lambda page, attempt: api.hang()
    sandbox = cloud.start()

    answer = sandbox.invoke(limit=25)

    assert answer.error.startswith("exit code 143: stopped 20 s before the time limit")
    assert 4 < answer.seconds < 20
    assert "| fetch failed " in sandbox.all_text()
    cloud.wait_for_no_session()
    name = f"{RUN_LOCK.name}.{cloud.database.name}"
    assert cloud.database.execute("SELECT IS_FREE_LOCK(%s)", (name,)) == [(1,)]
    api.script = lambda page, attempt: None
    assert sandbox.invoke(limit=60).result
    assert cloud.database.count() == 120


def test_the_limit_of_a_run_that_is_over_ends_nothing(cloud: Cloud, api: StubCoinGecko):
    api.script = lambda page, attempt: ApiAnswer({}, 429, {"Retry-After": "1"}) if attempt == 1 else None
    sandbox, other = cloud.start(), cloud.start()

    assert sandbox.invoke(arguments("--version"), limit=21).result
    assert other.invoke().seconds > 1  # longer than the first run had
    assert serves_the_next(sandbox)


def test_a_limit_that_is_too_short_for_any_run_is_an_error_too(cloud: Cloud, api: StubCoinGecko):
    sandbox = cloud.start()

    assert sandbox.invoke(limit=15).error.startswith("exit code 143: ")
    assert cloud.database.count() == 0
    assert sandbox.invoke().result


def test_no_retry_is_begun_that_would_end_after_the_limit(cloud: Cloud, api: StubCoinGecko):
    api.script = lambda page, attempt: ApiAnswer({}, 429, {"Retry-After": "60"})
    sandbox = cloud.start()

    answer = sandbox.invoke(limit=100)

    assert answer.error.startswith("exit code 3: CoinGecko, page 1: status 429")
    assert re.search(r"the next try is due in 60 s, and .* has (19|20) s left", answer.error)
    assert answer.seconds < 15


def test_a_retry_within_the_limit_is_made(cloud: Cloud, api: StubCoinGecko):
    api.script = lambda page, attempt: ApiAnswer({}, 429, {"Retry-After": "2"}) if (page, attempt) == (1, 1) else None
    sandbox = cloud.start()

    assert sandbox.invoke(limit=100).result
    assert "page 1: status 429; trying again in 2 s" in sandbox.all_text()
    assert cloud.database.count() == 120


def test_the_smaller_setting_stays_the_retry_budget(cloud: Cloud, api: StubCoinGecko):
    api.script = lambda page, attempt: ApiAnswer({}, 429, {"Retry-After": "9"})
    sandbox = cloud.start(RETRY_BUDGET_SECONDS="3")

    assert "RETRY_BUDGET_SECONDS=3 has 3 s left" in sandbox.invoke().error


@pytest.mark.parametrize("end", ["its session is killed", "wait_timeout is over"])
def test_a_frozen_sandbox_holds_the_lock_until_its_session_is_over(cloud: Cloud, api: StubCoinGecko, end: str):
    api.script = lambda page, attempt: api.hang() if attempt == 1 else None
    other = cloud.start()
    with cloud.database.globally(wait_timeout=28_800 if "killed" in end else 5):
        frozen = cloud.start()
        frozen.begin(None)
        api.wait_for_requests(4)  # as many as are sent at a time
        frozen.freeze()

        busy = other.invoke()
        if "killed" in end:
            cloud.database.cut_sessions()
        cloud.wait_for_no_session()
        after = other.invoke()

    assert busy.error.startswith("exit code 5: another run is writing to")
    assert after.result
    assert cloud.database.count() == 120


def test_a_sandbox_that_is_frozen_in_between_works_when_it_is_thawed(cloud: Cloud):
    sandbox = cloud.start()
    sandbox.invoke()
    sandbox.freeze()
    cloud.database.cut_sessions()
    sandbox.thaw()

    assert sandbox.invoke().result


# -------------------------------------------------------------------------------------------------------------- secrets


class DenyingSecretsManager:
    """Secrets Manager to a role that may not read."""

    def __enter__(self) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = "User: arn:aws:sts::123456789012:assumed-role/r/f is not authorized to perform:"
                message += " secretsmanager:GetSecretValue"
                body = json.dumps({"__type": "AccessDeniedException", "Message": message}).encode()
                self.send_response(400)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def is_refused_unconnected(cloud: Cloud, answer: Answer, api: StubCoinGecko, *parts: str) -> bool:
    """It ended with exit code 2 and a message that holds `parts`, without a call or a login."""
    assert answer.error.startswith("exit code 2: ")
    for part in parts:
        assert part in answer.error
    assert not any(advice in answer.error for advice in FOR_A_SHELL)
    return api.requests == [] and not cloud.has_login()


@pytest.mark.parametrize("which", ["MYSQL_SECRET_ID", "COINGECKO_SECRET_ID"])
def test_a_secret_that_is_not_there_is_named(cloud: Cloud, api: StubCoinGecko, which: str):
    sandbox = cloud.start(**{which: "no-such"})

    answer = sandbox.invoke()

    assert is_refused_unconnected(cloud, answer, api, f"the secret 'no-such' of {which} (", "ResourceNotFoundException")
    assert serves_the_next(sandbox)


def test_a_secret_that_the_role_may_not_read_is_named(cloud: Cloud, api: StubCoinGecko):
    with DenyingSecretsManager() as url:
        sandbox = cloud.start(AWS_ENDPOINT_URL_SECRETS_MANAGER=url)
        answer = sandbox.invoke(arguments("-v"))

    named = (cloud.secret_id, "MYSQL_SECRET_ID", "AccessDeniedException", "secretsmanager:GetSecretValue")
    assert is_refused_unconnected(cloud, answer, api, *named)
    assert serves_the_next(sandbox)


def test_a_way_to_secrets_manager_that_does_not_exist_is_said(cloud: Cloud, api: StubCoinGecko):
    sandbox = cloud.start(AWS_ENDPOINT_URL_SECRETS_MANAGER=f"http://127.0.0.1:{free_port()}")

    answer = sandbox.invoke()

    assert is_refused_unconnected(cloud, answer, api, cloud.secret_id, "could not be read", "check the region")
    assert answer.seconds < 20


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hush-hush", "is no JSON object of texts (it is not shown here)"),
        ('{"password": "hush-hush"', "is no JSON object of texts"),
        ('["hush-hush"]', "is no JSON object of texts"),
        ('"hush-hush"', "is no JSON object of texts"),
        ('{"username": "u", "password": {"a": "hush-hush"}}', "is no JSON object of texts"),
        ('{"username": "u", "password": ["hush-hush"]}', "is no JSON object of texts"),
        ('{"username": "", "password": "hush-hush"}', "MYSQL_USER is not set, and the secret"),
        ('{"username": "hush-hush", "password": ""}', "MYSQL_PASSWORD is not set, and the secret"),
        ('{"username": "hush-hush", "password": null}', "MYSQL_PASSWORD is not set, and the secret"),
        ("{}", "MYSQL_USER is not set, and the secret"),
    ],
)
def test_a_secret_that_cannot_be_used_is_refused_and_not_shown(
    cloud: Cloud, api: StubCoinGecko, text: str, problem: str
):
    cloud.hidden.add("hush-hush")
    cloud.secrets.put(cloud.secret_id, text)
    sandbox = cloud.start()

    answer = sandbox.invoke(arguments("-v"))

    assert is_refused_unconnected(cloud, answer, api, problem, cloud.secret_id)
    cloud.put_account()
    assert sandbox.invoke().result


def test_an_empty_field_of_a_secret_leaves_the_default(cloud: Cloud, api: StubCoinGecko):
    cloud.secrets.put(f"{cloud.database.name}/coingecko", {"api_key": "", "api_plan": None})
    sandbox = cloud.start()

    assert sandbox.invoke().result
    assert not any(name.lower().startswith("x-cg-") for request in api.requests for name in request.headers)


def test_the_key_of_its_secret_goes_to_coingecko_and_nowhere_else(cloud: Cloud, api: StubCoinGecko):
    sandbox = cloud.start()

    assert sandbox.invoke(arguments("-v")).result
    assert {request.headers["x-cg-demo-api-key"] for request in api.requests} == {cloud.key}


def test_the_key_is_hidden_wherever_it_turns_up(cloud: Cloud):
    sandbox = cloud.start(MYSQL_DATABASE=cloud.key)

    answer = sandbox.invoke(arguments("-v"))

    assert answer.error.startswith("exit code 4: ")
    assert "a database *** at localhost" in answer.error
    assert "Traceback" in sandbox.all_text()


def test_a_rotated_password_counts_from_the_next_run_of_the_same_process(cloud: Cloud):
    sandbox = cloud.start()
    assert sandbox.invoke().result
    rotated = 'it\'s \\ "50%" ;#'
    cloud.hidden.add(rotated)

    cloud.database.execute(f"ALTER USER '{cloud.database.user}'@'%' IDENTIFIED BY %s", (rotated,))
    between = sandbox.invoke()
    cloud.put_account(password=rotated)
    after = sandbox.invoke()

    assert between.error.startswith("exit code 4: ")
    assert "refused the login" in between.error
    assert after.result


def test_the_environment_is_stronger_than_a_secret(cloud: Cloud, api: StubCoinGecko):
    cloud.hidden.add("CG-environment")
    cloud.put_account(dbname="somebody-elses")
    sandbox = cloud.start(COINGECKO_API_KEY="CG-environment", COINGECKO_API_PLAN="pro")

    assert sandbox.invoke().result
    assert cloud.database.count() == 120
    assert {request.headers["x-cg-pro-api-key"] for request in api.requests} == {"CG-environment"}
    assert "of the environment or .env: not taken from the secret" in sandbox.all_text()


def test_without_secrets_nobody_asks_for_them(cloud: Cloud):
    settings = cloud.database.settings() | {"MYSQL_HOST": "localhost", "MYSQL_SECRET_ID": "", "COINGECKO_SECRET_ID": ""}
    sandbox = cloud.start(**settings, AWS_ENDPOINT_URL_SECRETS_MANAGER=f"http://127.0.0.1:{free_port()}")

    assert sandbox.invoke().result


# ---------------------------------------------------------------------------------------------- which server is trusted


@pytest.mark.parametrize("handler", ["lambda_handler", "setup_handler"])
@pytest.mark.parametrize("ca", ["", " ", "none", "NONE"])
def test_no_password_is_sent_without_a_ca_file(cloud: Cloud, api: StubCoinGecko, ca: str, handler: str):
    sandbox = cloud.start(options={"handler": handler}, MYSQL_SSL_CA=ca, MASTER_SECRET_ID="m", READER_SECRET_ID="r")

    answer = sandbox.invoke()

    assert is_refused_unconnected(cloud, answer, api, "MYSQL_SSL_CA is empty or none", CA_FILE)


@pytest.mark.parametrize("wrong", ["CA", "name"])
def test_a_server_with_a_certificate_of_another_gets_no_login(
    cloud: Cloud, api: StubCoinGecko, certificates: Certificates, wrong: str
):
    shutil.copy(certificates.other_ca, cloud.files / "other.pem")
    settings = {"MYSQL_SSL_CA": f"{FILES}/other.pem"} if wrong == "CA" else {"MYSQL_HOST": "127.0.0.1"}
    sandbox = cloud.start(**settings)

    answer = sandbox.invoke()

    assert answer.error.startswith("exit code 4: no trusted TLS connection to")
    assert not any(advice in answer.error for advice in FOR_A_SHELL)
    assert not cloud.has_login()
    assert api.requests == []


# ---------------------------------------------------------------------------------------------- raw first, and backfill


def test_an_answer_that_could_not_be_loaded_is_kept_and_its_message_is_the_event_that_loads_it(
    cloud: Cloud, api: StubCoinGecko
):
    account = f"{cloud.database.name}.crypto_prices {{}} '{cloud.database.user}'@'%'"

    def take_the_right_away(page: int, attempt: int) -> None:
        with suppress(mysql.connector.Error):  # done already
            cloud.database.execute(f"REVOKE INSERT ON {account.format('FROM')}")

    api.script = take_the_right_away
    sandbox = cloud.start()

    answer = sandbox.invoke()
    pending = [path.name for path in cloud.kept()]
    event = json.loads(re.search(r'\{"arguments": .*\]\}', answer.error)[0])
    cloud.database.execute(f"GRANT INSERT ON {account.format('TO')}")
    before = len(api.requests)
    loaded = sandbox.invoke(event)

    assert answer.error.startswith("exit code 4: ")
    assert not any(advice in answer.error for advice in FOR_A_SHELL)
    assert [name.endswith(".pending.json.gz") for name in pending] == [True]
    assert event == arguments("--replay", f"{FILES}/{pending[0]}")
    assert loaded.result
    assert cloud.database.count() == 120
    assert len(api.requests) == before
    assert [path.name for path in cloud.kept()] == [pending[0].replace(".pending", "")]


def test_a_pattern_of_files_is_replayed(cloud: Cloud):
    sandbox = cloud.start()
    sandbox.invoke()
    cloud.database.execute("DELETE FROM crypto_prices")

    assert sandbox.invoke(arguments("--replay", f"{FILES}/*.json.gz")).result
    assert cloud.database.count() == 120


def test_answers_are_kept_nowhere_but_in_the_mounted_folder(cloud: Cloud):
    sandbox = cloud.start(SNAPSHOT_DIR="snapshots")

    assert sandbox.invoke().result
    assert "/var/task/snapshots" in sandbox.all_text()  # where Lambda lets nobody write
    assert cloud.kept() == []


def test_a_backfill_goes_on_with_the_next_event_and_asks_for_no_coin_twice(cloud: Cloud, api: StubCoinGecko):
    api.coins = fresh_coins(8)
    sandbox = cloud.start(REQUESTS_PER_MINUTE="5")
    sandbox.invoke()

    stopped = sandbox.invoke(arguments("--backfill", "3"), limit=25)
    asked = len(api.histories)
    done = sandbox.invoke(arguments("--backfill", "3"))

    assert stopped.error.startswith("exit code 143: ")
    assert "a backfill goes on where it stopped" in stopped.error
    assert asked == 5
    assert done.result
    assert sorted(api.histories) == sorted(coin["id"] for coin in api.coins)
    assert cloud.database.count() == 8 * 4


# ----------------------------------------------------------------------------------------------------------------- logs


def with_a_rejected_coin(api: StubCoinGecko) -> None:
    api.coins = [*fresh_coins(119), make_coin(120, id="two\nlines", name=None)]


def text_events(sandbox: Sandbox, request_id: str) -> list[str]:
    """The levels of the product's events in a log of Lambda's text format."""
    form = rf"\[([A-Z]+)\]\t\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ\t{request_id}\t[^\n]+\n?"
    return [match[1] for event in sandbox.events() for match in [re.fullmatch(form, event.text)] if match]


@pytest.mark.parametrize("words", [(), ("-v",)])
def test_every_event_of_a_json_log_has_its_level_and_request(cloud: Cloud, api: StubCoinGecko, words: tuple[str, ...]):
    with_a_rejected_coin(api)
    sandbox = cloud.start()

    first = sandbox.begin(arguments(*words))
    assert sandbox.end().result
    second = sandbox.begin(arguments(*words, "--coins", "120"))
    assert sandbox.end().result

    events = sandbox.events()
    assert not any(event.is_printed for event in events)
    found = [json.loads(event.text) for event in events]
    assert {event["requestId"] for event in found} == {first, second}
    assert {"INFO", "WARNING"} <= {event["level"] for event in found}
    assert not any("\n" in event["message"] for event in found)
    [summary, _] = [event["message"] for event in found if event["message"].startswith("step ")]
    assert " | fetch done " in summary
    assert "119 coins, total market cap" in summary


def test_every_failure_in_a_json_log_is_one_event(cloud: Cloud, api: StubCoinGecko):
    problem = {"status": {"error_code": 10011, "error_message": "two\nlines \u2028 and \x1b[31m"}}
    api.script = lambda page, attempt: ApiAnswer(problem, 401)
    sandbox = cloud.start()

    request_id = sandbox.begin(arguments("-v"))
    answer = sandbox.end()

    assert r"two\nlines" in answer.error
    found = [json.loads(event.text) for event in sandbox.events()]
    assert {event["requestId"] for event in found} == {request_id}
    errors = [event.get("message", event.get("errorMessage")) for event in found if event["level"] == "ERROR"]
    assert [text[:4] for text in errors] == ["step", "exit"]
    assert any("Traceback" in event.get("message", "") for event in found if event["level"] == "DEBUG")


@pytest.mark.parametrize("framed", [True, False])
def test_every_event_of_a_text_log_has_its_level_and_request(cloud: Cloud, api: StubCoinGecko, framed: bool):
    with_a_rejected_coin(api)
    sandbox = cloud.start(options={"json_log": False, "framed": framed})

    request_id = sandbox.begin(arguments("-v"))
    result = sandbox.end().result

    events = sandbox.events()
    assert {event.is_printed for event in events} == {not framed}
    levels = text_events(sandbox, request_id)
    assert len(levels) == len(events)
    assert {"INFO", "WARNING"} <= set(levels)
    assert "119 coins, total market cap" in result
    assert request_id not in result


@pytest.mark.parametrize("framed", [True, False])
def test_a_traceback_is_one_event_in_a_text_log(cloud: Cloud, framed: bool):
    sandbox = cloud.start(options={"json_log": False, "framed": framed}, COIN_LIMIT="many")

    for runs in (1, 2):
        request_id = sandbox.begin(arguments("-v"))
        assert sandbox.end().error.startswith("exit code 2: ")

        assert text_events(sandbox, request_id) == ["DEBUG"]
        assert len(sandbox.events()) == 2 * runs  # with Lambda's own on the failure
        assert sandbox.all_text().count("\rTraceback (most recent call last):\r  File ") >= runs


def test_an_option_with_a_line_break_is_one_event_in_a_text_log(cloud: Cloud):
    sandbox = cloud.start(options={"json_log": False, "framed": False})

    answer = sandbox.invoke(arguments("two\nlines"))

    assert "\n" not in answer.error
    assert [event.text[:44] for event in sandbox.events()] == ["[ERROR] FailedRunError: exit code 2: unrecog"]


@pytest.mark.parametrize("json_log", [True, False])
def test_a_quiet_run_that_is_well_logs_nothing(cloud: Cloud, json_log: bool):
    sandbox = cloud.start(options={"json_log": json_log}, COIN_LIMIT="120")

    for _ in range(2):
        assert sandbox.invoke(arguments("-q")).result == ""
    assert cloud.database.count() > 0
    assert sandbox.events() == []


# ---------------------------------------------------------------------------------------------------------------- setup


class NewCloud:
    """A server of RDS with nothing on it but its master user, and the secrets of the three accounts."""

    def __init__(self, cloud: Cloud, rds: OwnServer) -> None:
        self.cloud = cloud
        self.rds = rds
        self.connection = rds.connect(autocommit=True)
        self.passwords = {name: uuid4().hex for name in ("admin", "crypto_etl", "crypto_reader")}
        self.database = "crypto_db"
        self.execute("CREATE USER admin@'%' IDENTIFIED BY %s", self.passwords["admin"])
        self.execute(f"GRANT {MASTER_RIGHTS} ON *.* TO admin@'%' WITH GRANT OPTION")
        self.put_secrets()

    def execute(self, statement: str, *parameters: str) -> list[tuple]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def put_secrets(self, **passwords: str) -> None:
        """Write the secrets: RDS's of the master holds no more than user and password."""
        self.passwords |= passwords
        self.cloud.hidden |= set(self.passwords.values())
        for name, password in self.passwords.items():
            secret: dict[str, object] = {"username": name, "password": password}
            if name == "crypto_etl":
                secret |= {"host": "localhost", "port": self.rds.port, "engine": "mysql"}
            self.cloud.secrets.put(f"new/{name}", secret)

    def start(self, handler: str = "setup_handler", **settings: str) -> Sandbox:
        names = {"MYSQL_SECRET_ID": "new/crypto_etl", "MYSQL_DATABASE": self.database}
        if handler == "setup_handler":
            names |= {"MASTER_SECRET_ID": "new/admin", "READER_SECRET_ID": "new/crypto_reader"}
        return self.cloud.start(options={"handler": handler}, **names | settings)

    def log_in(self, user: str, password: str | None = None) -> mysql.connector.MySQLConnection:
        account = {"user": user, "password": self.passwords[user] if password is None else password}
        return mysql.connector.connect(host="localhost", port=self.rds.port, database=self.database, **account)

    def rights(self, user: str) -> list[tuple]:
        """What an account may do: (right, where)."""
        schema = "SELECT privilege_type, {} FROM information_schema.{}_privileges WHERE grantee = %s"
        levels = {"user": "'*.*'", "schema": "table_schema", "column": "column_name"}
        levels["table"] = "CONCAT(table_schema, '.', table_name)"
        return sorted(
            row for level, where in levels.items() for row in self.execute(schema.format(where, level), f"'{user}'@'%'")
        )

    def left(self) -> list[str]:
        """The databases and accounts of the project."""
        databases = [name for (name,) in self.execute("SHOW DATABASES") if name in DATABASES]
        accounts = "SELECT user FROM mysql.user WHERE user IN ('crypto_etl', 'crypto_reader')"
        return sorted([*databases, *(user for (user,) in self.execute(accounts))])

    def clean(self) -> None:
        for database in DATABASES:
            self.execute(f"DROP DATABASE IF EXISTS `{database.replace('`', '``')}`")
        for account in self.passwords:
            self.execute(f"DROP USER IF EXISTS '{account}'@'%'")
        self.connection.close()


@pytest.fixture
def new_cloud(cloud: Cloud, rds: OwnServer) -> Iterator[NewCloud]:
    new = NewCloud(cloud, rds)
    yield new
    new.clean()


def test_after_setup_the_pipeline_runs_and_each_account_may_do_its_own_alone(new_cloud: NewCloud):
    setup = new_cloud.start()
    answer = setup.invoke()
    loaded = new_cloud.start("lambda_handler").invoke()

    assert "made the database, the table, crypto_etl, crypto_reader" in answer.result
    assert "120 coins, total market cap" in loaded.result
    table = "crypto_db.crypto_prices"
    four = [("DELETE", table), ("INSERT", table), ("SELECT", table), ("UPDATE", table)]
    assert new_cloud.rights("crypto_etl") == [*four, ("USAGE", "*.*")]
    assert new_cloud.rights("crypto_reader") == [("SELECT", table), ("USAGE", "*.*")]
    for account in ("crypto_etl", "crypto_reader"):
        [(statement, *_)] = new_cloud.execute(f"SHOW CREATE USER {account}@'%'")
        assert "REQUIRE SSL" in statement
    with closing(new_cloud.log_in("crypto_reader")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM crypto_prices")
        assert cursor.fetchall() == [(120,)]
    assert not any(event.is_printed for event in setup.events())


def test_setup_logs_its_result_and_nothing_of_others(new_cloud: NewCloud):
    sandbox = new_cloud.start()

    result = sandbox.invoke().result

    messages = [json.loads(event.text)["message"] for event in sandbox.events()]
    assert messages == [" | ".join(" ".join(line.split()) for line in result.splitlines())]


def test_setup_is_safe_to_repeat(new_cloud: NewCloud):
    setup, pipeline = new_cloud.start(), new_cloud.start("lambda_handler")
    setup.invoke()
    pipeline.invoke()
    rights = new_cloud.rights("crypto_etl")

    again = setup.invoke({"RequestType": "Update"})

    assert "made nothing; there already: the database, the table, crypto_etl, crypto_reader" in again.result
    assert new_cloud.rights("crypto_etl") == rights
    assert new_cloud.execute("SELECT COUNT(*) FROM crypto_db.crypto_prices") == [(120,)]
    assert pipeline.invoke().result


def test_setup_gives_the_accounts_the_passwords_of_their_secrets_again(new_cloud: NewCloud):
    setup, pipeline = new_cloud.start(), new_cloud.start("lambda_handler")
    setup.invoke()

    for account in ("crypto_etl", "crypto_reader"):
        new_cloud.execute(f"ALTER USER {account}@'%' IDENTIFIED BY 'by hand' REQUIRE NONE")
    refused = pipeline.invoke()
    assert setup.invoke().result
    accepted = pipeline.invoke()

    assert refused.error.startswith("exit code 4: ")
    assert accepted.result
    new_cloud.log_in("crypto_reader").close()
    for account in ("crypto_etl", "crypto_reader"):
        assert "REQUIRE SSL" in new_cloud.execute(f"SHOW CREATE USER {account}@'%'")[0][0]


def test_setup_gives_an_account_the_new_password_of_its_secret(new_cloud: NewCloud):
    setup, pipeline = new_cloud.start(), new_cloud.start("lambda_handler")
    setup.invoke()
    old = new_cloud.passwords["crypto_etl"]

    new_cloud.put_secrets(crypto_etl="another-Passw0rd")
    assert setup.invoke().result

    assert pipeline.invoke().result
    with pytest.raises(mysql.connector.Error, match="denied"):
        new_cloud.log_in("crypto_etl", old)


@pytest.mark.parametrize(
    "password", ["a'b\\c;%s \"x", "%(symbol)s\\'; DROP DATABASE crypto_db; -- ", "crypto_db\u00e9\\"]
)
def test_a_password_may_hold_any_character(new_cloud: NewCloud, password: str):
    new_cloud.put_secrets(admin=password, crypto_etl=password, crypto_reader=f"{password}2")
    new_cloud.execute("ALTER USER admin@'%' IDENTIFIED BY %s", password)
    setup = new_cloud.start()

    for _ in range(2):
        assert setup.invoke().result
    assert new_cloud.start("lambda_handler").invoke().result
    new_cloud.log_in("crypto_reader").close()


@pytest.mark.parametrize("database", DATABASES[1:])
def test_the_database_may_have_any_name(new_cloud: NewCloud, database: str):
    new_cloud.database = database
    setup = new_cloud.start()

    for _ in range(2):
        assert setup.invoke().result
    assert new_cloud.start("lambda_handler").invoke().result
    assert new_cloud.left() == sorted([database, "crypto_etl", "crypto_reader"])
    assert {where for _, where in new_cloud.rights("crypto_etl")} == {"*.*", f"{database}.crypto_prices"}


def test_a_master_without_the_rights_makes_nothing(new_cloud: NewCloud):
    new_cloud.execute("REVOKE CREATE USER ON *.* FROM admin@'%'")
    setup = new_cloud.start()

    answer = setup.invoke()

    assert answer.error.startswith("exit code 4: ")
    assert "CREATE USER" in answer.error
    assert new_cloud.left() == []
    assert serves_the_next_setup(setup, new_cloud)


def serves_the_next_setup(setup: Sandbox, new_cloud: NewCloud) -> bool:
    new_cloud.execute(f"GRANT {MASTER_RIGHTS} ON *.* TO admin@'%' WITH GRANT OPTION")
    return "made the database" in setup.invoke().result


def test_a_table_of_something_else_is_left_alone(new_cloud: NewCloud):
    new_cloud.execute("CREATE DATABASE crypto_db")
    new_cloud.execute("CREATE TABLE crypto_db.crypto_prices (a INT)")

    answer = new_cloud.start().invoke()

    assert answer.error.startswith("exit code 4: ")
    assert new_cloud.left() == ["crypto_db"]
    assert not any(advice in answer.error for advice in FOR_A_SHELL)


def test_a_wrong_password_of_the_master_is_an_error(new_cloud: NewCloud):
    new_cloud.put_secrets(admin="wrong")
    new_cloud.cloud.hidden -= {"wrong"}

    answer = new_cloud.start().invoke()

    assert answer.error.startswith("exit code 4: ")
    assert "refused the login of its master 'admin'" in answer.error
    assert new_cloud.left() == []


@pytest.mark.parametrize(
    ("account", "secret", "problem"),
    [
        ("crypto_etl", {"username": "root", "password": "hush"}, "the secret of crypto_etl holds 'root' as its"),
        ("crypto_reader", {"username": "crypto_etl", "password": "hush"}, "of crypto_reader holds 'crypto_etl' as its"),
        ("crypto_reader", {"username": "crypto_reader", "password": ""}, "READER_SECRET_ID holds no username and"),
        ("crypto_reader", {"username": "crypto_reader"}, "READER_SECRET_ID holds no username and password"),
        ("admin", {"password": "hush"}, "MASTER_SECRET_ID holds no username and password"),
        ("crypto_etl", {"username": "crypto_etl", "password": ""}, "MYSQL_PASSWORD is not set, and the secret"),
    ],
)
def test_a_secret_that_is_not_its_accounts_changes_nothing(
    new_cloud: NewCloud, account: str, secret: dict, problem: str
):
    new_cloud.cloud.hidden.add("hush")
    new_cloud.cloud.secrets.put(f"new/{account}", {"host": "localhost", "port": new_cloud.rds.port} | secret)

    answer = new_cloud.start().invoke()

    assert answer.error.startswith("exit code 2: ")
    assert problem in answer.error
    assert new_cloud.left() == []


@pytest.mark.parametrize("name", ["MASTER_SECRET_ID", "MYSQL_SECRET_ID", "READER_SECRET_ID"])
@pytest.mark.parametrize("value", ["", "no-such"])
def test_setup_names_the_secret_that_is_missing(new_cloud: NewCloud, name: str, value: str):
    answer = new_cloud.start(**{name: value}).invoke()

    assert answer.error.startswith("exit code 2: ")
    assert name in answer.error
    assert not any(advice in answer.error for advice in FOR_A_SHELL)
    assert new_cloud.left() == []


@pytest.mark.parametrize("wrong", ["CA", "name"])
def test_setup_sends_no_password_to_a_server_that_is_not_to_be_trusted(
    new_cloud: NewCloud, certificates: Certificates, wrong: str
):
    shutil.copy(certificates.other_ca, new_cloud.cloud.files / "other.pem")
    settings = {"MYSQL_SSL_CA": f"{FILES}/other.pem"} if wrong == "CA" else {"MYSQL_HOST": "127.0.0.1"}
    log = new_cloud.rds.folder / "data" / LOGINS
    before = log.read_text(encoding="utf-8", errors="replace").count("\tadmin@")

    answer = new_cloud.start(**settings).invoke()

    assert answer.error.startswith("exit code 4: no trusted TLS connection to")
    assert log.read_text(encoding="utf-8", errors="replace").count("\tadmin@") == before
    assert new_cloud.left() == []


def test_setup_tells_an_account_that_cannot_log_in_with_its_secret(new_cloud: NewCloud):
    new_cloud.execute("CREATE USER crypto_reader@localhost IDENTIFIED BY 'other'")
    try:
        answer = new_cloud.start().invoke()
    finally:
        new_cloud.execute("DROP USER crypto_reader@localhost")

    assert answer.error.startswith("exit code 4: all is made, yet crypto_reader cannot log in")
    assert "'crypto_reader'@'localhost'" in answer.error


def test_one_setup_at_a_time(new_cloud: NewCloud):
    new_cloud.execute("SELECT GET_LOCK('crypto_prices.create_database', 0)")

    answer = new_cloud.start().invoke()

    assert answer.error.startswith("exit code 5: another create_database is at localhost")
    assert new_cloud.left() == []
