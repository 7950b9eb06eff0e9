"""A sandbox as AWS Lambda gives it to a function: AWS's own runtime client, fed by a stub of the Lambda Runtime API.

  bash sql/local_mysql.sh PYTHON -m tests.cloud.lambda_sandbox [PACKAGE.zip]

shows how long 1,000 coins take there, with the CPU share of 1,024 MB: cold and warm, and the memory they need. Without
PACKAGE.zip one is made by sql/aws_mysql.sh. PYTHON has the packages of sql/aws_requirements.txt.

As on Lambda, / and /var/task are read-only and /tmp is fresh, the user is a nobody without a home, the environment is
the runtime's own, and one process serves event after event. Unlike there, the network is this machine's loopback.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import PROJECT_DIR, connect_to_server, make_coins, wait_until
from tests.own_server import OwnDatabase, OwnServer, find_command, make_data
from tests.stub_coingecko import StubCoinGecko

FUNCTION = "crypto-pipeline"
REGION = "us-east-1"
FILES = "/mnt/snapshots"  # where the function's files are mounted
CA_FILE = "sql/aws-rds-ca.pem"  # in the package
FULL_CPU_MB = 1_769  # of memory, with which Lambda gives a function one whole core
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_SESSION_TOKEN": "testing"}
# What Lambda's Python has beside the standard library. Nothing else of this Python is seen in the sandbox, so that the
# package brings whatever it needs.
RUNTIME_MODULES = (
    *("awslambdaric", "runtime_client", "snapshot_restore_py", "simplejson"),
    *("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six", "urllib3"),
)
PYTHONS = range(12, 15)  # 3.12 to 3.14
INSTALL = "install sql/aws_requirements.txt, on Python 3.12 to 3.14"


class Unavailable(Exception):
    """Why there can be no sandbox here."""


def find_runtime() -> list[tuple[Path, str]]:
    """The files and folders of RUNTIME_MODULES, and what they are called in /var/runtime. Raises Unavailable."""
    if not shutil.which("bwrap"):
        raise Unavailable("there is no bwrap: install bubblewrap (Linux)")
    if sys.version_info[0] != 3 or sys.version_info[1] not in PYTHONS:
        raise Unavailable(f"Lambda has no Python like this one: {INSTALL}")
    specs = {name: find_spec(name) for name in RUNTIME_MODULES}
    if missing := [name for name, spec in specs.items() if not spec]:
        raise Unavailable(f"{', '.join(missing)} missing: {INSTALL}")
    return [
        (Path(spec.origin).parent, name)
        if spec.submodule_search_locations
        else (Path(spec.origin), Path(spec.origin).name)
        for name, spec in specs.items()
    ]


def unpack(package: Path, task: Path, ca: Path) -> Path:
    """The package, unpacked in `task` as Lambda does it, with the certificates of `ca` in place of Amazon's."""
    with zipfile.ZipFile(package) as archive:
        for entry in archive.infolist():
            path = Path(archive.extract(entry, task))
            if mode := entry.external_attr >> 16 & 0o777:
                path.chmod(mode)
    (task / CA_FILE).unlink(missing_ok=True)
    shutil.copy(ca, task / CA_FILE)
    return task


# ----------------------------------------------------------------------------------------------------- the Runtime API


class Answer(NamedTuple):
    """What came of an event: `kind` is response or error, `body` what the function returned or Lambda's error."""

    kind: str
    body: Any
    seconds: float

    @property
    def result(self) -> str:
        """What a run that succeeded would have on stdout."""
        assert self.kind == "response", self.body
        assert list(self.body) == ["result"]
        return self.body["result"]

    @property
    def error(self) -> str:
        """The message of a failure, as Lambda mails it."""
        assert self.kind == "error", self.body
        return self.body["errorMessage"]


class RuntimeApi:
    """The Lambda Runtime API on loopback, for one process of the runtime client."""

    def __init__(self) -> None:
        self.events: queue.Queue[dict | None] = queue.Queue()
        self.answers: queue.Queue[Answer] = queue.Queue()
        self.is_waiting = threading.Event()  # the process has asked for an event
        self.init_error: Any = None
        self.began = 0.0
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                """/invocation/next, which waits for one."""
                api.is_waiting.set()
                event = api.events.get()
                if event is None:
                    self.close_connection = True
                    return
                api.is_waiting.clear()
                api.began = time.monotonic()
                body = json.dumps(event["event"]).encode()
                deadline = round((time.time() + event["limit"]) * 1000)
                self.send_response(200)
                self.send_header("Lambda-Runtime-Aws-Request-Id", event["id"])
                self.send_header("Lambda-Runtime-Deadline-Ms", str(deadline))
                self.send_header("Lambda-Runtime-Invoked-Function-Arn", arn("lambda", f"function:{FUNCTION}"))
                self.send_header("Lambda-Runtime-Trace-Id", "Root=1-0;Parent=0;Sampled=0")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                """/invocation/ID/response, /invocation/ID/error or /init/error."""
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("/init/error"):
                    api.init_error = body
                    api.is_waiting.set()
                else:
                    api.answers.put(Answer(self.path.rpartition("/")[2], body, time.monotonic() - api.began))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Nothing: a process that is killed goes away in mid-answer."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.events.put(None)
        self.server.shutdown()
        self.server.server_close()


def arn(service: str, resource: str) -> str:
    return f"arn:aws:{service}:{REGION}:123456789012:{resource}"


# --------------------------------------------------------------------------------------------------------- the sandbox


class LogEvent(NamedTuple):
    """One event of the function's log: of its logger, or a line that it printed itself."""

    text: str
    is_printed: bool


class Sandbox:
    """A running sandbox with the package that is unpacked in `task`; `settings` are the function's own variables.

    `files` is mounted at FILES, and is the only other place to write to. `prefix` is put before the command. Log events
    come `framed`, as on Lambda; without that, as in its emulators, they are printed.
    """

    def __init__(
        self,
        task: Path,
        folder: Path,
        files: Path,
        settings: dict[str, str],
        *,
        handler: str = "lambda_handler",
        memory: int = 1_024,
        json_log: bool = True,
        framed: bool = True,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        folder.mkdir()
        self.api = RuntimeApi()
        self.answers: list[Answer] = []  # so far
        self.printed, self.log = folder / "printed.log", folder / "events.log"
        handler = f"pipeline_orchestrator.{handler}"
        command = [*prefix, *self.bubblewrap(task, files)]
        # Lambda's own start script puts /var/task first on sys.path; so does -m, with the folder it is started in
        command += ["/var/lang/bin/" + Path(sys.executable).resolve().name, "-S", "-m", "awslambdaric", handler]
        variables = self.variables(handler, memory, json_log)
        with self.printed.open("wb") as printed, self.log.open("wb") as log:
            if framed:
                variables["_LAMBDA_TELEMETRY_LOG_FD"] = str(log.fileno())
            self.started = time.monotonic()
            self.process = subprocess.Popen(
                command,
                env=variables | settings,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                pass_fds=[log.fileno()],
            )
        try:
            wait_until(lambda: self.api.is_waiting.is_set() or self.process.poll() is not None, "the runtime client")
            if self.process.poll() is not None and not self.api.init_error:
                raise RuntimeError(f"the sandbox ended at once: {self.printed.read_text(encoding='utf-8')}")
        except BaseException:
            self.stop()
            raise
        self.init_seconds = time.monotonic() - self.started

    @staticmethod
    def bubblewrap(task: Path, files: Path) -> list[str]:
        words = ["bwrap", "--unshare-user", "--uid", "993", "--gid", "990", "--unshare-pid", "--die-with-parent"]
        words += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/var", "--tmpfs", "/mnt"]
        for source, target in (
            *find_runtime_places(),
            (task, "/var/task"),
            (Path(sys.base_prefix).resolve(), "/var/lang"),
        ):
            words += ["--ro-bind", str(source), target]
        words += ["--bind", str(files), FILES, "--size", str(512 * 1024 * 1024), "--tmpfs", "/tmp"]
        return [*words, "--remount-ro", "/var", "--remount-ro", "/mnt", "--chdir", "/var/task"]

    def variables(self, handler: str, memory: int, json_log: bool) -> dict[str, str]:
        """The environment as AWS documents it for the runtime; HOME is not in it."""
        variables = CREDENTIALS | {
            "AWS_LAMBDA_FUNCTION_NAME": FUNCTION,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(memory),
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{FUNCTION}",
            "AWS_LAMBDA_LOG_STREAM_NAME": "2026/11/25/[$LATEST]0",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_RUNTIME_API": self.api.address,
            "AWS_EXECUTION_ENV": "AWS_Lambda_python{}.{}".format(*sys.version_info),
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "LAMBDA_TASK_ROOT": "/var/task",
            "LAMBDA_RUNTIME_DIR": "/var/runtime",
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "PATH": "/var/lang/bin:/usr/local/bin:/usr/bin:/bin:/opt/bin",
            "LD_LIBRARY_PATH": "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib"
            ":/opt/lib",
            "PYTHONPATH": "/var/runtime",
            "_HANDLER": handler,
        }
        return variables | ({"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": "INFO"} if json_log else {})

    def begin(self, event: Any, limit: float = 900) -> str:
        """Hand over an event, whose run has `limit` seconds, and return its request id."""
        request_id = str(uuid.uuid4())
        self.api.events.put({"event": event, "id": request_id, "limit": limit})
        return request_id

    def end(self, timeout: float = 120) -> Answer:
        """What came of the event that was begun. Its kind is "died" when the process did, "late" after the `timeout`.

        Lambda would then have killed it.
        """
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            with suppress(queue.Empty):
                self.answers.append(self.api.answers.get(timeout=0.1))
                return self.answers[-1]
            if self.process.poll() is not None:
                return Answer("died", self.process.returncode, time.monotonic() - self.api.began)
        return Answer("late", None, timeout)

    def invoke(self, event: Any = None, limit: float = 900) -> Answer:
        self.begin(event, limit)
        return self.end(min(limit, 120))

    def events(self) -> list[LogEvent]:
        """The log as it is now: first what came from the logger, then what was printed, each line an event."""
        found, frames = [], self.log.read_bytes()
        while frames:  # each with its type (4 bytes), length (4), time (8) and text
            length = int.from_bytes(frames[4:8], "big")
            found.append(LogEvent(frames[16 : 16 + length].decode(), False))
            frames = frames[16 + length :]
        printed = self.printed.read_bytes().decode().split("\n")  # a traceback is one event, with \r in it
        return found + [LogEvent(line, True) for line in printed if line]

    def all_text(self) -> str:
        return "\n".join(event.text for event in self.events())

    def inner_pid(self) -> int:
        """The runtime client itself: bubblewrap's last descendant."""
        pid = self.process.pid
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            pid = int(children[0])
        return pid

    def peak_mb(self) -> float:
        """The most memory that it had, in MiB."""
        status = Path(f"/proc/{self.inner_pid()}/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def freeze(self) -> None:
        """Stop it where it is, as Lambda stops a sandbox that is out of time or has nothing to do."""
        os.kill(self.inner_pid(), signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.inner_pid(), signal.SIGCONT)

    def stop(self) -> None:
        """Kill it; safe to repeat."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            self.api.close()


def find_runtime_places() -> Iterator[tuple[Path, str]]:
    for source, name in find_runtime():
        yield source, f"/var/runtime/{name}"


# -------------------------------------------------------------------------------------------------------- its CPU share


def is_empty(processes: Path) -> bool:
    return not (processes.exists() and processes.read_text(encoding="ascii"))


@contextmanager
def cpu_share(memory: int) -> Iterator[tuple[str, ...]]:
    """What to put before a command so that it gets as much of a core as Lambda gives with `memory` MB.

    Raises Unavailable where this user may not limit it.
    """
    share = memory / FULL_CPU_MB
    for root, file, text in (
        ("/sys/fs/cgroup", "cpu.max", f"{share * 100_000:.0f} 100000"),
        ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", f"{share * 100_000:.0f}"),  # version 1, of periods of 100 ms
    ):
        group = Path(root) / f"lambda-sandbox-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        processes = group / "cgroup.procs"
        try:
            if (group / file).exists():
                (group / file).write_text(text, encoding="ascii")
                yield ("sh", "-c", 'echo $$ >"$0" && exec "$@"', str(processes))
                return
        finally:
            wait_until(partial(is_empty, processes), "the end of the sandbox")
            group.rmdir()
    if os.geteuid() == 0 and shutil.which("systemd-run") and Path("/run/systemd/system").exists():
        yield ("systemd-run", "--quiet", "--scope", f"--property=CPUQuota={share:.1%}", "--")
        return
    raise Unavailable("the CPU share cannot be limited: that takes root, and cgroups or systemd")


# ---------------------------------------------------------------------------------------------------- what is around it


class Certificates(NamedTuple):
    """PEM files: the server's certificate, which is for the name localhost, its CA, and a CA of somebody else's."""

    ca: Path
    other_ca: Path
    certificate: Path
    key: Path

    @property
    def server_options(self) -> list[str]:
        """Of a server that takes nothing but TLS."""
        own = [f"--ssl-ca={self.ca}", f"--ssl-cert={self.certificate}", f"--ssl-key={self.key}"]
        return [*own, "--require-secure-transport=ON"]


def make_certificates(folder: Path) -> Certificates:
    """Certificates in `folder`. Raises Unavailable."""
    if not shutil.which("openssl"):
        raise Unavailable("there is no openssl command, which makes the certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new_key = ["-newkey", "rsa:2048", "-nodes"]
    for name in ("ca", "other-ca"):
        openssl("req", "-x509", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    openssl("req", *new_key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName = DNS:localhost\n", encoding="ascii")
    signed_by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
    openssl("x509", "-req", "-in", "server.csr", "-out", "server.pem", *signed_by)
    return Certificates(*(folder / name for name in ("ca.pem", "other-ca.pem", "server.pem", "server.key")))


class SecretsManager:
    """AWS Secrets Manager on loopback, by moto; `url` is its address."""

    def __init__(self) -> None:
        try:
            from moto.server import ThreadedMotoServer
        except ImportError as error:
            raise Unavailable(f"moto is missing ({error}): {INSTALL}") from error
        import boto3

        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line for each call
        self.server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.server.start()
        host, port = self.server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        keys = {name.lower(): text for name, text in CREDENTIALS.items()}
        self.client = boto3.client("secretsmanager", region_name=REGION, endpoint_url=self.url, **keys)

    def put(self, name: str, value: object) -> str:
        """Give the secret `name` a new value, a text or what becomes JSON; its ARN."""
        text = value if isinstance(value, str) else json.dumps(value)
        try:
            return self.client.put_secret_value(SecretId=name, SecretString=text)["ARN"]
        except self.client.exceptions.ResourceNotFoundException:
            return self.client.create_secret(Name=name, SecretString=text)["ARN"]

    def close(self) -> None:
        self.client.close()
        self.server.stop()


def database_secret(database: OwnDatabase) -> dict[str, object]:
    """What RDS's own secrets hold, for the account of a test's database."""
    return {
        "engine": "mysql",
        "username": database.user,
        "password": database.password,
        "host": "localhost",
        "port": database.own.port,
        "dbname": database.name,
    }


def make_package(file: Path, ca: Path) -> Path:
    """The package for this Python and machine, by sql/aws_mysql.sh."""
    script = PROJECT_DIR / "sql" / "aws_mysql.sh"
    machine = "arm64" if platform.machine() in ("arm64", "aarch64") else "x86_64"
    variables = os.environ | {"PYTHON": sys.executable, "ARCHITECTURE": machine, "RDS_CA_BUNDLE": str(ca)}
    subprocess.run(["bash", str(script), "package", str(file)], env=variables, check=True, stdout=sys.stderr)
    return file


# -------------------------------------------------------------------------------------------------------- what it takes


def measure(package: Path | None, memory: int = 1_024, warm_runs: int = 3) -> Iterator[str]:
    """How long 1,000 coins take with the CPU share of `memory` MB, and what memory they need, in lines."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        certificates = make_certificates(folder)
        with closing(connect_to_server()) as connection:
            command = find_command(connection)
        make_data(command, folder / "data")
        own = OwnServer(command, folder / "data", folder / "server", *certificates.server_options)
        stack.callback(own.kill)
        database = OwnDatabase(own)
        secrets = stack.enter_context(closing(SecretsManager()))
        api = stack.enter_context(StubCoinGecko(make_coins(1_000)))
        package = package or make_package(folder / "package.zip", certificates.ca)
        task = unpack(package, folder / "task", certificates.ca)
        (folder / "files").mkdir()
        settings = {
            "MYSQL_SECRET_ID": secrets.put("database", database_secret(database)),
            "MYSQL_SSL_CA": CA_FILE,
            "COINGECKO_BASE_URL": api.url,
            "REQUESTS_PER_MINUTE": "1000",
            "SNAPSHOT_DIR": FILES,
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": secrets.url,
        }
        prefix = stack.enter_context(cpu_share(memory))
        sandbox = Sandbox(task, folder / "sandbox", folder / "files", settings, memory=memory, prefix=prefix)
        stack.callback(sandbox.stop)
        cold = sandbox.invoke()
        assert "1,000 coins" in cold.result
        yield f"cold {sandbox.init_seconds + cold.seconds:.1f} s ({sandbox.init_seconds:.1f} s of it to start)"
        for _ in range(warm_runs):
            warm = sandbox.invoke()
            assert "1,000 coins" in warm.result
            yield f"warm {warm.seconds:.1f} s"
        yield f"peak {sandbox.peak_mb():.0f} MB"


def main() -> None:
    try:
        print("1,000 coins on Lambda, at the CPU share of 1,024 MB", flush=True)
        for line in measure(Path(sys.argv[1]) if sys.argv[1:] else None):
            print(line, flush=True)
    except Unavailable as reason:
        sys.exit(f"lambda_sandbox: {reason}")


if __name__ == "__main__":
    main()
