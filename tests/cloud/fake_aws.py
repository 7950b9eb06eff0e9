"""A stand-in for the AWS CLI and one for Python, as programs in PATH, and sql/aws_mysql.sh run with them.

`FakeAws` writes its arguments down and answers as AWS would, from a state that a test may change; `AwsScript` runs the
script on a copy of the project, with a PATH that holds nothing but what the script says that it needs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR

ACCOUNT, REGION = "123456789012", "eu-central-1"
BUCKET = f"crypto-code-{ACCOUNT}-{REGION}"
PASSWORD = "Pa55word0fTheReader"
RESULT = "snapshot 2025-03-14 12:00 UTC: 1,000 coins, total market cap $3.41T"
LINE = "exit code 4: MySQL at db.example.com:3306 refused the login of crypto_etl (1045): see its secret"
# what the script may use beside bash, Python and aws; macOS has them all
TOOLS = ("bash", "cat", "cp", "dirname", "grep", "head", "mkdir", "mktemp", "mv", "rm", "sed", "tail", "tr")
IS_LAMBDAS_PYTHON = (3, 12) <= sys.version_info[:2] <= (3, 14)
needs_lambdas_python = pytest.mark.skipif(
    not IS_LAMBDAS_PYTHON, reason="packing needs Python 3.12 to 3.14, as AWS Lambda has"
)
PEM = "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIUZm9vYmFy\n-----END CERTIFICATE-----\n"

FAKE_AWS = r"""
import json, os, sys
from pathlib import Path

import jmespath

folder, argv = Path(sys.argv[1]), sys.argv[2:]
state = json.loads((folder / "state.json").read_text())
environment = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
with (folder / "calls.jsonl").open("a") as file:
    file.write(json.dumps({"argv": argv, "env": environment}) + "\n")


def option(name):
    return argv[argv.index(name) + 1]


def end(words, exit_code=254):
    sys.stderr.write(f"\n{words}\n")
    sys.exit(exit_code)


def show(data):
    found = jmespath.search(option("--query"), data)
    if found and isinstance(found, list) and isinstance(found[0], list):
        for row in found:
            print("\t".join(map(str, row)))
    else:
        print("\t".join(map(str, found)) if isinstance(found, list) else found)


call = " ".join(argv[:2])
words = state["failures"].get(call)
if words and not (call == "lambda invoke" and state["fails_only"] not in ("", option("--function-name"))):
    end(words)

if argv == ["--version"]:
    print(state["version"])
elif call == "configure get":
    if not state["configured_region"]:
        sys.exit(1)
    print(state["configured_region"])
elif call == "sts get-caller-identity":
    show({"Account": state["account"]})
elif call == "cloudformation describe-stacks":
    if state["statuses"]:
        state["stack"]["StackStatus"] = state["statuses"].pop(0)
        (folder / "state.json").write_text(json.dumps(state))
    if not state["stack"] or state["stack"]["StackStatus"] == "gone":
        end("An error occurred (ValidationError) when calling the DescribeStacks operation: "
            f"Stack with id {option('--stack-name')} does not exist")
    show({"Stacks": [state["stack"]]})
elif call == "cloudformation describe-stack-events":
    show({"StackEvents": state["events"]})
elif call == "s3api head-bucket":
    owner = state["buckets"].get(option("--bucket"))
    if owner is None:
        end("An error occurred (404) when calling the HeadBucket operation: Not Found")
    if owner != option("--expected-bucket-owner"):
        end("An error occurred (403) when calling the HeadBucket operation: Forbidden")
elif call == "s3 mb":
    state["buckets"][argv[2].removeprefix("s3://")] = state["account"]
    print("make_bucket:", argv[2])
elif call == "s3 cp":
    source, target = argv[-2:]
    (folder / "uploaded.zip").write_bytes(Path(source).read_bytes())
elif call == "cloudformation deploy":
    overrides = argv[argv.index("--parameter-overrides") + 1:]
    given = dict(override.split("=", 1) for override in overrides)
    is_there = state["stack"] and state["stack"]["StackStatus"] not in ("gone", "REVIEW_IN_PROGRESS")
    before = {p["ParameterKey"]: p["ParameterValue"] for p in (state["stack"] or {}).get("Parameters", [])}
    parameters = {"Egress": "ipv6", "AnalystCidr": "", "DatabaseClass": "db.t4g.micro", **before, **given}
    name = option("--stack-name")
    outputs = {
        "Server": "db.example.com:3306", "DatabaseName": "crypto_db", "ReaderSecret": "arn:reader",
        "CoinGeckoSecret": "arn:coingecko", "Pipeline": f"{name}-pipeline", "Setup": f"{name}-setup",
        "Log": f"{name}-PipelineLog-1", "SetupLog": f"{name}-SetupLog-1",
        "Database": "crypto-database-1", "Files": "fs-0123",
    }
    state["stack"] = {
        "StackStatus": "UPDATE_COMPLETE" if is_there else "CREATE_COMPLETE",
        "Parameters": [{"ParameterKey": k, "ParameterValue": v} for k, v in parameters.items()],
        "Outputs": [{"OutputKey": k, "OutputValue": v} for k, v in outputs.items()],
    }
    print("Waiting for changeset to be created..")
elif call == "lambda invoke":
    answer = state["answers"][option("--function-name").rpartition("-")[2]]
    text = answer if isinstance(answer, str) else json.dumps(answer)
    Path(argv[-1]).write_text(text)
    print("Unhandled" if isinstance(answer, dict) and "errorMessage" in answer else "None")
elif call == "secretsmanager get-secret-value":
    print(json.dumps({"username": "crypto_reader", "password": state["password"]}))
(folder / "state.json").write_text(json.dumps(state))
"""

# Whoever builds a package need not wait for pip: it makes a little one. Names with an IPv6 address come from a file.
FAKE_PYTHON = r"""
import os, signal, sys, time
from pathlib import Path

folder, real, argv = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
if argv[:3] == ["-m", "pip", "install"]:
    (folder / "pip.txt").write_text("\n".join(argv))
    target = Path(argv[argv.index("--target") + 1])
    (folder / "requirements.txt").write_text(Path(argv[argv.index("-r") + 1]).read_text())
    if (folder / "pip_fails").exists():
        (target.parent / "left by pip").write_text("")
        sys.exit("ERROR: No matching distribution found for pandas==3.1.1")
    if (folder / "pip_hangs").exists():
        (folder / "pip_is_there").write_text("")
        time.sleep(60)
    for name in (
        "certifi/cacert.pem", "pandas/__init__.py", "pandas/tests/test_pandas.py", "pandas/_x.cpython.so", "bin/f2py",
        "pandas-3.1.1.dist-info/RECORD", "pandas-3.1.1.dist-info/METADATA", "mysql/ai/__init__.py",
        "mysql/vendor/plugin/mysql_native_password.so", "mysql/vendor/plugin/other.so",
    ):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("")
    if (folder / "big").exists():
        (target / "big").write_bytes(os.urandom(int((folder / "big").read_text())))
    print("WARNING: what pip says when all is well")
elif "getaddrinfo" in " ".join(argv):
    sys.exit(argv[-1] not in (folder / "ipv6.txt").read_text().split())
else:
    os.execv(real, [real, *argv])
"""


def write_program(path: Path, *lines: str) -> None:
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)


class AwsScript:
    """sql/aws_mysql.sh in a copy of the project, whose folder has a space in its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "my crypto"
        self.path, self.home, self.temporary = folder / "bin", folder / "home", folder / "tmp"
        for path in (self.path, self.home, self.temporary):
            path.mkdir(parents=True)
        copy_project(self.project)
        for tool in TOOLS:
            (self.path / tool).symlink_to(shutil.which(tool))
        # waits are over at once
        write_program(self.path / "sleep", "#!/bin/sh", "exit 0")
        for name, code in (("fake_aws", FAKE_AWS), ("fake_python", FAKE_PYTHON)):
            (folder / f"{name}.py").write_text(code)
        run = f'exec "{sys.executable}" -s "{folder}'
        write_program(self.path / "aws", "#!/bin/sh", f'{run}/fake_aws.py" "{folder}" "$@"')
        write_program(self.path / "python3", "#!/bin/sh", f'{run}/fake_python.py" "{folder}" "{sys.executable}" "$@"')
        self.pem = folder / "rds.pem"
        self.pem.write_text(PEM)
        self.set_ipv6("api.coingecko.com", "pro-api.coingecko.com")
        self.state_file = folder / "state.json"
        self.state_file.write_text("{}")
        self.set(
            account=ACCOUNT,
            stack=None,
            statuses=[],
            buckets={},
            events=[],
            failures={},
            fails_only="",
            answers={"setup": {"result": "database crypto_db made"}, "pipeline": {"result": RESULT}},
            version="aws-cli/2.31.5 Python/3.13.7 Linux/6.1 exe/x86_64",
            configured_region="",
            password=PASSWORD,
        )

    def set(self, **changes: object) -> None:
        """Change what AWS knows and answers."""
        self.state_file.write_text(json.dumps(json.loads(self.state_file.read_text()) | changes))

    def fail(self, call: str, words: str, function: str = "") -> None:
        """Let a call of the AWS CLI fail with these words; of `lambda invoke`, those of one function."""
        self.set(failures={call: words}, fails_only=function)

    def set_ipv6(self, *hosts: str) -> None:
        (self.folder / "ipv6.txt").write_text("\n".join(hosts))

    def environment(self, **variables: str | None) -> dict[str, str]:
        given = {
            "PATH": str(self.path),
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "RDS_CA_BUNDLE": str(self.pem),
            "AWS_REGION": REGION,
        } | variables
        return {key: value for key, value in given.items() if value is not None}

    def start(self, *arguments: str, cwd: Path | None = None, **options: object) -> subprocess.Popen[str]:
        environment = {key: options.pop(key) for key in list(options) if key.isupper()}  # others are Popen's
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [self.path / "bash", self.project / "sql" / "aws_mysql.sh", *arguments],
            env=self.environment(**environment),
            cwd=cwd or self.folder,
            text=True,
            start_new_session=True,
            **streams | options,
        )

    def run(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments, **options) as process:
            try:
                stdout, stderr = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        assert "Traceback" not in stdout + stderr
        assert PASSWORD not in stdout + stderr
        assert list(self.temporary.iterdir()) == []
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def done(self, *arguments: str, **options: object) -> str:
        """What a call that does it prints."""
        result = self.run(*arguments, **options)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def refused(self, exit_code: int, *arguments: str, **options: object) -> str:
        """The one line of a call that is refused before AWS is asked for anything."""
        result = self.run(*arguments, **options)
        assert (result.returncode, result.stdout) == (exit_code, ""), result.stderr
        assert result.stderr.startswith("aws_mysql: ")
        assert result.stderr.count("\n") == 1
        assert self.calls() == []
        return result.stderr

    def failed(self, exit_code: int, *arguments: str, **options: object) -> str:
        """What a call that fails prints on stderr."""
        result = self.run(*arguments, **options)
        assert result.returncode == exit_code, result.stdout + result.stderr
        return result.stderr

    def deployed(self) -> None:
        """Deploy, and forget that."""
        self.done("deploy", "--yes", "--no-run")
        (self.folder / "calls.jsonl").unlink()

    def all_calls(self) -> list[dict]:
        file = self.folder / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def calls(self) -> list[list[str]]:
        """The arguments of each call of the AWS CLI, but those that ask it for its version."""
        return [call["argv"] for call in self.all_calls() if call["argv"] != ["--version"]]

    def steps(self) -> list[str]:
        """The first two words of each call."""
        return [" ".join(argv[:2]) for argv in self.calls()]

    def call(self, step: str) -> list[str]:
        """The arguments of the one call of this step."""
        [argv] = [argv for argv in self.calls() if " ".join(argv[:2]) == step]
        return argv

    def payloads(self) -> list[tuple[str, str]]:
        """The function and the event of each call of `lambda invoke`."""
        calls = [argv for argv in self.calls() if argv[:2] == ["lambda", "invoke"]]
        return [(argv[argv.index("--function-name") + 1], argv[argv.index("--payload") + 1]) for argv in calls]

    def made(self) -> list[str]:
        """The calls that make or change something in AWS."""
        reading = ("describe", "get", "head", "configure")
        return [step for step in self.steps() if not step.split()[1].startswith(reading)]


def copy_project(folder: Path) -> None:
    """What `git clone` gives, as far as it takes part, with a secret beside it that must not go anywhere."""
    folder.mkdir()
    names = ("etl_crypto.py", "segment_and_load.py", "pipeline_orchestrator.py", "requirements.txt", ".env.example")
    for name in names:
        shutil.copy(PROJECT_DIR / name, folder)
    shutil.copytree(PROJECT_DIR / "sql", folder / "sql")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_it.py").write_text("")
    (folder / ".env").write_text(f"MYSQL_PASSWORD={PASSWORD}\n")
