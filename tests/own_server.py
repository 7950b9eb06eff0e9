"""A database server of the tests' own, like the test server, to be killed, filled up and reconfigured.

With it comes a proxy that cuts its connections at a given statement.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import mysql.connector
import pytest

from tests.conftest import TIMEOUT, Database, Scripts, wait_until

BINARIES = ("mysqld", "mariadbd")
KEPT_OPTIONS = ("--basedir", "--lc-messages-dir", "--character-sets-dir", "--plugin-dir")  # where its files are
SMALL = (  # a small, quick server: of the data folder 200 MB would be empty logs
    "--skip-log-bin",
    "--loose-mysqlx=OFF",
    "--performance-schema=OFF",
    "--innodb-buffer-pool-size=32M",
    "--loose-innodb-redo-log-capacity=8M",
    "--loose-innodb-log-file-size=8M",
)
CLIENT_SSL_HIGH_BYTE = 0x08  # of the two capability bytes in a greeting


# ----------------------------------------------------------------------------------------------------------- the server


class Unavailable(Exception):
    """Why no server can be started like the test server."""


class Command(NamedTuple):
    """How the test server was started, without what is its own: data, port, sockets, logs."""

    words: list[str]
    is_mariadb: bool
    share: list[Path]  # folders that may hold MariaDB's system tables


def find_command(server: mysql.connector.MySQLConnection) -> Command:
    """How to start a server like `server`: by the very binary that runs it. Raises Unavailable.

    It is found by its process: on Linux only, with the server on this machine.
    """
    if sys.platform != "linux":
        raise Unavailable("how the test server was started can be seen on Linux only")
    with server.cursor() as cursor:
        cursor.execute("SELECT @@version, @@hostname, @@datadir, @@pid_file, @@basedir, @@lc_messages_dir")
        version, host, data, pid_file, base, messages = cursor.fetchone()
    if host != socket.gethostname():
        raise Unavailable(f"the test server runs on another machine ({host})")
    try:
        process = Path("/proc", (Path(data) / pid_file).read_text(encoding="ascii").strip())
        words = (process / "cmdline").read_text(encoding="utf-8").rstrip("\0").split("\0")
        # a relative command is found by the process, one that a loader runs has its whole path
        words[0] = words[0] if Path(words[0]).is_absolute() else str((process / "exe").readlink())
    except OSError as error:
        raise Unavailable(f"the test server's process cannot be seen: {error}") from error
    binary = next((place for place, word in enumerate(words) if Path(word).name in BINARIES), None)
    if binary is None or not Path(words[binary]).is_file():
        raise Unavailable(f"the test server's process does not say which program it runs: {words[:4]}")
    kept = [word for word in words[binary + 1 :] if word.startswith(tuple(f"{option}=" for option in KEPT_OPTIONS))]
    share = [Path(base) / "share" / name for name in ("mysql", "mariadb", "")]
    share += [Path(messages), Path(messages).parent] if messages else []
    return Command([*words[: binary + 1], "--no-defaults", *kept], "MariaDB" in version, share)


def as_this_user() -> list[str]:
    """What lets root run a server, which neither of them does unasked."""
    return ["--user=root"] if Path("/proc/self").stat().st_uid == 0 else []


def make_data(command: Command, data: Path) -> None:
    """A fresh data folder for servers of `command`, with a root without a password."""
    data.mkdir(mode=0o700)
    arguments = [*command.words, *as_this_user(), f"--datadir={data}", *SMALL]
    if not command.is_mariadb:
        subprocess.run([*arguments, "--initialize-insecure"], check=True, capture_output=True, timeout=120)
        return
    folder = next((folder for folder in command.share if list(folder.glob("*_system_tables.sql"))), None)
    if folder is None:
        raise Unavailable(f"MariaDB's system tables are in none of {command.share}")
    parts = [next(folder.glob(f"*_{part}.sql")) for part in ("system_tables", "performance_tables")]
    parts += [next(folder.glob("*_system_tables_data.sql"))]
    # one statement a line; roots of other hosts, without a password, are not wanted
    text = "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket = NULL;\n"
    text += "".join(part.read_text(encoding="utf-8") for part in parts)
    text += "DELETE FROM global_priv WHERE Host <> 'localhost';\n"
    subprocess.run(
        [*arguments, "--bootstrap", "--silent-startup"],
        input=text.encode(),
        check=True,
        capture_output=True,
        timeout=120,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class OwnServer:
    """A running server on a copy of `template`, in `folder`; `options` go to the server.

    It dies with SIGKILL only: by `kill`, or as the process of the tests ends, however that ends.
    """

    def __init__(self, command: Command, template: Path, folder: Path, *options: str) -> None:
        self.command = command
        self.is_mariadb = command.is_mariadb
        self.folder = folder
        folder.mkdir(mode=0o700)
        shutil.copytree(template, folder / "data")
        (folder / "files").mkdir()
        self.log = folder / "server.log"
        self.password = uuid4().hex
        init_file = folder / "init.sql"
        init_file.touch(mode=0o600)
        init_file.write_text(f"ALTER USER 'root'@'localhost' IDENTIFIED BY '{self.password}';\n", encoding="ascii")
        self.port = free_port()
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.RLock()  # a thread of a proxy or of the stub may be at it as a test ends
        self.start()

    @property
    def is_running(self) -> bool:
        return self.process is not None

    @property
    def isolation(self) -> str:
        """The name of the variable, which MariaDB has kept."""
        return "tx_isolation" if self.is_mariadb else "transaction_isolation"

    def start(self) -> None:
        """Start it, unless it is running, and return once it takes connections."""
        with self.lock:
            if not self.is_running:
                self.launch()

    def launch(self) -> None:
        for stale in ("mysqld.sock", "mysqld.sock.lock", "mysqld.pid"):
            (self.folder / "data" / stale).unlink(missing_ok=True)
        self.log.write_bytes(b"")
        words = [
            *self.command.words,
            *as_this_user(),
            f"--datadir={self.folder / 'data'}",
            f"--tmpdir={self.folder / 'files'}",  # in one that is shared it would delete the files of others
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--socket=mysqld.sock",  # beside the data: an absolute path may be too long for a socket
            "--pid-file=mysqld.pid",
            f"--log-error={self.log}",
            f"--secure-file-priv={self.folder / 'files'}",
            f"--init-file={self.folder / 'init.sql'}",
            *SMALL,
            *self.options,
        ]
        # The shell kills the server when its stdin ends, which happens at the latest as the tests' process ends.
        self.process = subprocess.Popen(
            ["sh", "-c", '"$@" & echo $!; read -r _; kill -9 $!; wait $! 2>/dev/null', "sh", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        stat = Path("/proc", self.process.stdout.readline().decode().strip(), "stat")

        def is_ready() -> bool:
            log = self.log.read_text(encoding="utf-8", errors="replace")
            if (
                not stat.exists()
                or stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] == "Z"
            ):
                raise RuntimeError(f"the server did not start: {log[-2000:]}")
            return "ready for connections" in log

        try:
            wait_until(is_ready, "the server")
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL, as when the machine loses power; safe to repeat."""
        with self.lock:
            if self.process:
                self.process.stdin.close()
                self.process.wait(TIMEOUT)
                self.process.stdout.close()
                self.process = None

    def restart(self) -> None:
        with self.lock:
            self.kill()
            self.start()

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def connect(self, database: str | None = None, autocommit: bool = False) -> mysql.connector.MySQLConnection:
        """A session that may do everything."""
        return mysql.connector.connect(
            host="127.0.0.1",
            port=self.port,
            user="root",
            password=self.password,
            database=database,
            autocommit=autocommit,
            charset="utf8mb4",
            # what a test sets for all sessions is for those of the scripts
            sql_mode="TRADITIONAL",
            time_zone="+00:00",
            init_command="SET SESSION lock_wait_timeout = 20, sql_safe_updates = 0",
        )


# -------------------------------------------------------------------------------------------------------- its databases


class OwnDatabase(Database):
    """A fresh database on a server of the tests' own, which may be restarted at any time."""

    def __init__(self, own: OwnServer) -> None:
        self.own = own
        self.lock = threading.Lock()  # the stub's threads execute, too
        super().__init__(own.connect(autocommit=True))

    def execute(self, statement: str, parameters: tuple = ()) -> list[tuple]:
        with self.lock:
            if not self.server.is_connected():
                self.server = self.own.connect(self.name, autocommit=True)
            return super().execute(statement, parameters)

    def connect(self) -> AbstractContextManager[mysql.connector.MySQLConnection]:
        return closing(self.own.connect(self.name))

    def drop(self) -> None:
        super().drop()
        self.server.close()

    def log_in(self) -> None:
        """Log in as the scripts do: MySQL takes later logins without TLS, until it is restarted."""
        settings = self.settings()
        mysql.connector.connect(
            host=settings["MYSQL_HOST"],
            port=int(settings["MYSQL_PORT"]),
            user=self.user,
            password=self.password,
        ).close()

    def cut_sessions(self) -> None:
        """End the sessions of the scripts, as an administrator may."""
        for session in self.sessions():
            with suppress(mysql.connector.Error):  # it may be over already
                self.execute("KILL %s", (session,))

    @contextmanager
    def globally(self, **variables: object) -> Iterator[None]:
        """Give the server's variables other values, for sessions that come; as they were at the end."""
        before = {name: self.execute(f"SELECT @@GLOBAL.{name}")[0][0] for name in variables}
        try:
            for name, value in variables.items():
                self.execute(f"SET GLOBAL {name} = %s", (value,))
            yield
        finally:
            for name, value in reversed(before.items()):
                self.execute(f"SET GLOBAL {name} = %s", (value,))


# ------------------------------------------------------------------------------------------------------------ the proxy


@dataclass
class Rule:
    """When and how a connection is cut."""

    marker: bytes  # a part of the statement, in lower case
    after: bytes  # that has come before on this connection
    is_sent: bool  # cut once the server has done and answered it, or before it gets it
    times: float
    action: Callable[[], object]  # done before the script sees the cut
    is_silent: bool  # no cut: nothing comes any more, until the script itself closes the connection


@dataclass
class Link:
    """One connection through the proxy."""

    client: socket.socket
    server: socket.socket
    swallows: threading.Event = field(default_factory=threading.Event)
    answered: threading.Event = field(default_factory=threading.Event)

    def cut(self) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """Forwards from a port of its own to the server at `server_port`, without TLS, so that it can read along."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.rules: list[Rule] = []
        self.links: list[Link] = []
        self.cuts = 0
        self.sent = bytearray()  # by all clients
        threading.Thread(target=self.serve, daemon=True).start()

    def cut_at(
        self,
        marker: bytes,
        *,
        after: bytes = b"",
        is_sent: bool = False,
        times: float = 1,
        action: Callable[[], object] = lambda: None,
        is_silent: bool = False,
    ) -> None:
        self.rules.append(Rule(marker, after, is_sent, times, action, is_silent))

    def cut_all(self) -> None:
        """Cut the connections there are now."""
        for link in self.links:
            link.cut()
        self.cuts += len(self.links)
        self.links.clear()

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
        self.listener.close()
        for link in self.links:
            link.cut()

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.server_port))
            except OSError:
                client.close()
                continue
            link = Link(client, server)
            self.links.append(link)
            for work in (self.forward, self.answer):
                threading.Thread(target=self.quietly, args=(work, link), daemon=True).start()

    def quietly(self, work: Callable[[Link], None], link: Link) -> None:
        """One direction until an end is gone; then both are."""
        with suppress(OSError, EOFError):
            work(link)
        link.cut()

    def forward(self, link: Link) -> None:
        """From script to server, packet by packet."""
        seen = bytearray()
        while True:
            packet = read_packet(link.client)
            self.sent += packet
            text = packet.lower()
            seen += text
            for rule in self.rules:
                if rule.times > 0 and rule.marker in text and rule.after in seen:
                    rule.times -= 1
                    if rule.is_sent:
                        link.swallows.set()
                        link.server.sendall(packet)
                        link.answered.wait(TIMEOUT)
                    self.cuts += 1  # at once: the script may be through before a server is up again
                    rule.action()
                    while rule.is_silent and link.client.recv(65_536):
                        pass
                    return
            link.server.sendall(packet)

    def answer(self, link: Link) -> None:
        """From server to script, as it comes; but the greeting offers no TLS."""
        greeting = bytearray(read_packet(link.server))
        if greeting[4] != 0xFF:  # an error
            after_version = greeting.index(0, 5) + 1
            greeting[after_version + 4 + 8 + 1 + 1] &= ~CLIENT_SSL_HIGH_BYTE  # thread id, random bytes, filler
        link.client.sendall(greeting)
        while chunk := link.server.recv(65_536):
            if link.swallows.is_set():
                link.answered.set()
            else:
                link.client.sendall(chunk)


def read_packet(end: socket.socket) -> bytes:
    """A whole packet of the protocol, with its header. Raises EOFError and OSError."""
    header = read_exactly(end, 4)
    return header + read_exactly(end, int.from_bytes(header[:3], "little"))


def read_exactly(end: socket.socket, size: int) -> bytes:
    read = bytearray()
    while len(read) < size:
        chunk = end.recv(size - len(read))
        if not chunk:
            raise EOFError
        read += chunk
    return bytes(read)


# ------------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="session")
def server_command(server: mysql.connector.MySQLConnection) -> Command:
    try:
        return find_command(server)
    except Unavailable as reason:
        pytest.skip(f"no server of the tests' own: {reason}")


@pytest.fixture(scope="session")
def server_data(server_command: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder to copy."""
    folder = tmp_path_factory.mktemp("template")
    try:
        make_data(server_command, folder / "data")
    except Unavailable as reason:
        pytest.skip(f"no server of the tests' own: {reason}")
    yield folder / "data"
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def session_server(
    server_command: Command, server_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OwnServer]:
    own = OwnServer(server_command, server_data, tmp_path_factory.mktemp("server") / "own")
    yield own
    own.remove()


@pytest.fixture
def own_server(session_server: OwnServer) -> OwnServer:
    """The server that tests share which leave it as it was, or kill it."""
    session_server.start()  # a test that failed may have left it dead
    return session_server


@pytest.fixture
def own_database(own_server: OwnServer, scripts: Scripts) -> Iterator[OwnDatabase]:
    """A database of this test's on the server of the tests' own; `scripts` use it."""
    database = OwnDatabase(own_server)
    scripts.settings |= database.settings()
    yield database
    scripts.kill()
    own_server.start()
    database.drop()


@pytest.fixture
def proxy(own_database: OwnDatabase, scripts: Scripts) -> Iterator[Proxy]:
    """The scripts reach the server through it, in the clear."""
    own_database.log_in()
    proxy = Proxy(own_database.own.port)
    scripts.settings["MYSQL_PORT"] = str(proxy.port)
    yield proxy
    proxy.close()
