"""The connection to MySQL or MariaDB: sessions, transactions that are retried, and errors in one line with a hint."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

log = logging.getLogger("sql")
Result = TypeVar("Result")


# ---------------------------------------------------------------------------------------------------------- errors


class PipelineError(Exception):
    """An expected failure: one line that says what failed, where and what to do, and the exit code it ends with."""

    exit_code = 1


class DatabaseError(PipelineError):
    """MySQL refused or was lost. `errno` is MySQL's own number."""

    exit_code = 4

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class AlreadyRunningError(PipelineError):
    """Another run, or another backfill, holds the named lock."""

    exit_code = 5


def quote(value: object, limit: int = 120) -> str:
    """`value`, which came from outside, fit for a log: quoted, ASCII, no line break or terminal code, not endless."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def join_quoted(values: Iterable[object], limit: int = 5) -> str:
    """The first few of `values`, quoted, and how many more there are."""
    values = list(values)
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(quote(value) for value in values[:limit]) + more


LOST = (1053, 1317, 1927, 2006, 2013, 2055, 3024, 4031)  # shut down, killed, lost, mute (3024: pure Python), idle
NO_SERVER = (2002, 2003, 2005)
NO_TLS = (2026,)  # or a server that went away during the handshake
LOCKED = (1020, 1205, 1213)  # changed by another (innodb_snapshot_isolation), lock wait, deadlock
READ_ONLY = (1290, 1792, 1836, 3032)  # or offline: a failover shows as one of these for 10 to 30 s
TRANSIENT = (*LOST, *NO_SERVER, *NO_TLS, *LOCKED, *READ_ONLY)
OTHER_TABLE = (
    "{database}.crypto_prices was made by something else ({error}): keep it under another name (RENAME TABLE), then run"
    " python sql/create_database.py, see README.md"
)
HINTS = {
    NO_SERVER: "no MySQL server answers at {server} ({error}): start it, or check MYSQL_HOST and MYSQL_PORT (or use"
    " this project's own: bash sql/local_mysql.sh python pipeline_orchestrator.py)",
    LOST: "the connection to MySQL at {server} was lost ({error}): check that the server is up, then run again",
    LOCKED: "other sessions hold locks on {database}.crypto_prices or its rows ({error}): end them, then run again",
    NO_TLS: "no trusted TLS connection to {server} ({error}): check MYSQL_SSL_CA, and that MYSQL_HOST is the name in"
    " the server's certificate",
    READ_ONLY: "the server at {server} takes no writes ({error}): run again later, or set MYSQL_HOST to one that does",
    (1146, 1932): "no table {database}.crypto_prices at {server}: check MYSQL_DATABASE, or"
    " run python sql/create_database.py (sql/crypto_prices.sql)",
    (1049,): "there is no database {database} at {server}: check MYSQL_DATABASE, or run python"
    " sql/create_database.py (sql/database.sql)",
    (1044,): "{user} has no right on a database {database} at {server}, or there is none ({error}): check"
    " MYSQL_DATABASE, or run python sql/create_database.py --database {database}",
    (1045, 1698): "MySQL at {server} refused the login of {user} ({error}): check MYSQL_USER and MYSQL_PASSWORD",
    (1130,): "MySQL at {server} lets {user} in from other machines only ({error}): run CREATE USER and GRANT for it",
    (1820, 1862, 3118, 4151): "the account {user} at {server} is locked or its password expired ({error}): run ALTER"
    " USER ... ACCOUNT UNLOCK, or IDENTIFIED BY a new password",
    (2061,): "{user} cannot log in at {server} without TLS: enable TLS in the server ({error})",
    (1142, 1143, 1227): "{user} lacks a right on {database}.crypto_prices at {server} ({error}): run python"
    " sql/create_database.py (sql/accounts.sql)",
    (1048, 1054, 1264, 1265, 1364, 1366, 1406): OTHER_TABLE,
    (1153,): "the server at {server} takes no statement of 1,000 rows: raise its max_allowed_packet to 16M",
    (1015,): "the server at {server} cannot lock the table ({error}): it may be in recovery, look into its log",
    (1021, 1114): "the server at {server} has no room left ({error}): free disk space, or set RETENTION_DAYS",
    (1040, 1203): "the server at {server} takes no more connections ({error}): end some, or raise its max_connections",
    (1226,): "{user} at {server} has used up a limit of its own ({error}): wait, or raise it by ALTER USER ... WITH",
}
SET_UP_AWS = "deploy the stack again, which sets it up (or sql/create_database.py, where that did)"
AWS_HINTS = HINTS | {  # for a server on AWS
    NO_SERVER: "no MySQL server answers at {server} ({error}): see in the RDS console whether it is available, and whom"
    " its security group lets in",
    NO_TLS: "no trusted TLS connection to {server} ({error}): check MYSQL_SSL_CA (deploying the stack again"
    " brings AWS's present CA certificates)",
    READ_ONLY: "the server at {server} takes no writes ({error}): run again later; if that does not help, see in the"
    " RDS console whether its disk is full",
    (1146, 1932): "no table {database}.crypto_prices at {server}: " + SET_UP_AWS,
    (1049,): "there is no database {database} at {server}: check MYSQL_DATABASE; " + SET_UP_AWS,
    (1044,): "{user} has no right on a database {database} at {server}, or there is none ({error}): " + SET_UP_AWS,
    (1045, 1698): "MySQL at {server} refused the login of {user} ({error}): after a change of its secret, deploy"
    " the stack again, which gives the account that password",
    (1021, 1114): "the disk of {server} is full ({error}): raise AllocatedStorage in sql/aws_mysql.yaml, then deploy",
    (1142, 1143, 1227): "{user} lacks a right on {database}.crypto_prices at {server} ({error}): " + SET_UP_AWS,
    (1048, 1054, 1264, 1265, 1364, 1366, 1406): "{database}.crypto_prices was made by something else ({error}): keep it"
    " under another name (RENAME TABLE), then " + SET_UP_AWS,
}


def mysql_errors() -> tuple[type[Exception], ...]:
    """What the connector raises; its C extension raises a class of its own from COMMIT on a lost server."""
    import mysql.connector

    try:
        from _mysql_connector import MySQLInterfaceError
    except ImportError:
        return (mysql.connector.Error,)
    return mysql.connector.Error, MySQLInterfaceError


def explain(error: Exception, server: Server) -> DatabaseError:
    """MySQL's `error` as one line with the server's hint, by its number: the classes differ between the two drivers."""
    import mysql.connector

    errno = getattr(error, "errno", None)
    if errno == -1 and isinstance(error, mysql.connector.OperationalError):
        errno = 2006  # the connector found the connection lost before it asked the server
    otherwise = "MySQL at {server}: {error}; see the server's log, then run again"
    hint = next((hint for numbers, hint in server.hints.items() if errno in numbers), otherwise)
    where = {"server": server.address, "user": quote(server.user), "database": server.database}
    return DatabaseError(hint.format(**where, error=quote(str(error))), errno)


# --------------------------------------------------------------------------------------------------------- session


@dataclass(frozen=True)
class Server:
    """Where the database is, and the account to use there."""

    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)
    ssl_ca: Path | None = None  # CA certificates (PEM): TLS, with the server's certificate and host name verified
    socket: Path | None = None  # of a server on this machine, in place of host and port
    hints: Mapping[tuple, str] = field(default_factory=lambda: HINTS, repr=False, compare=False)

    @property
    def address(self) -> str:
        return str(self.socket or f"{self.host}:{self.port}")


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


LOCK_WAIT = 2  # seconds; MySQL's own are 50 for a row and a year for a table, and no signal ends such a wait
ANSWER_TIMEOUT = 30  # seconds for a server that is mute, as one with a full disk may be; no statement here takes longer
SESSION = (  # whatever the server's own are
    f"SET SESSION lock_wait_timeout = {LOCK_WAIT}, innodb_lock_wait_timeout = {LOCK_WAIT}, sql_safe_updates = 0,"
    f" sql_select_limit = {2**64 - 1}, completion_type = 0"  # 2 ends the session at each COMMIT
)


@contextmanager
def defer_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C take effect on exit; outside the main thread, which alone gets them, this is a no-op.

    A handler that raises crashes the connector's C code; inside an import, Python prints the exception and drops it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def connect(server: Server) -> Any:
    """An open session with every setting that the figures depend on. Raises one of mysql_errors()."""
    import mysql.connector  # here, as everywhere in this file: --help and a bad setting answer at once

    account = {name: getattr(server, name) for name in ("host", "port", "database", "user", "password")}
    tls, socket = {}, {"unix_socket": str(server.socket)} if server.socket else {}
    if server.ssl_ca:  # the CA alone would verify nothing
        tls = {"ssl_ca": str(server.ssl_ca), "ssl_verify_cert": True, "ssl_verify_identity": True}
    return mysql.connector.connect(
        **account,
        connection_timeout=10,
        read_timeout=ANSWER_TIMEOUT,
        write_timeout=ANSWER_TIMEOUT,
        charset="utf8mb4",  # and no collation: the one that MySQL prefers does not exist on MariaDB
        sql_mode="TRADITIONAL",  # whatever the server's own is, a value that does not fit is an error
        time_zone="+00:00",
        autocommit=False,
        init_command=SESSION,
        **tls,
        **socket,
    )


# -------------------------------------------------------------------------------------------------------- database

RETRY_SECONDS = 30  # how long a transaction is retried: a server restarts or fails over, a lost session ends


class Lock(NamedTuple):
    """A named lock of a database, which one session at a time can hold."""

    name: str
    activity: str  # for the message "another … <database>", such as "run is writing to"


class Database:
    """A session that is opened again when it is lost; with `lock`, the only one in its database that holds it.

    Signals take effect between two attempts, never within one. Raises DatabaseError, and AlreadyRunningError when
    another session keeps the lock: `lock_timeout` s at first, RETRY_SECONDS later. close() frees it.
    """

    def __init__(self, server: Server, lock: Lock | None = None, lock_timeout: float = 0) -> None:
        self.server = server
        self.lock = lock
        self.connection: Any = None
        self._retry(self._ensure_open, READ_ONLY, lock_timeout)

    def transaction(self, work: Callable[[Any], Result]) -> Result:
        """What `work(cursor)` returns. Commit on success, roll back and re-raise on error: the one place that commits.

        TRANSIENT errors are retried for RETRY_SECONDS, as long as a failover takes: `work` must be idempotent.
        """

        def attempt() -> Result:
            self._ensure_open()
            try:
                cursor = self.connection.cursor()
                result = work(cursor)
                cursor.close()
                self.connection.commit()
                return result
            except BaseException:
                with suppress(*mysql_errors()):  # a lost session has nothing to roll back: the server did that
                    self.connection.rollback()
                raise

        return self._retry(attempt, TRANSIENT)

    def keepalive(self) -> None:
        """Keep an idle session and its lock, whatever the server's timeouts are; a lost one is replaced if possible."""
        with suppress(AlreadyRunningError, *mysql_errors()), defer_signals():
            self._ensure_open()

    def close(self) -> None:
        with suppress(*mysql_errors()), defer_signals():
            if self.connection:
                self.connection.close()
        self.connection = None

    def _ensure_open(self) -> None:
        """A new session with the lock, unless the present one is alive: a long fetch outlasts some servers' timeout."""
        if self.connection and self.connection.is_connected():
            return
        self.close()
        connection, where = connect(self.server), self.server
        if self.lock:
            # Its name is server-wide and has at most 64 characters, as many as a database's alone may have.
            name = f"{self.lock.name}.{where.database}"
            name = name if len(name) <= 64 else f"{self.lock.name}.{sha256(name.encode()).hexdigest()[:40]}"
            cursor = connection.cursor()
            cursor.execute("SELECT GET_LOCK(%s, 0)", (name,))
            if cursor.fetchall() != [(1,)]:
                connection.close()
                busy = f"another {self.lock.activity} {where.database} at {where.address}"
                raise AlreadyRunningError(f"{busy}: wait until it has ended, then run again")
        self.connection = connection

    def _retry(self, step: Callable[[], Result], transient: tuple, lock_timeout: float = RETRY_SECONDS) -> Result:
        """What `step()` returns, retried for RETRY_SECONDS while an error is `transient`, or the lock is held."""
        started = warned = None
        failures = 0
        while True:
            try:
                with defer_signals():
                    return step()
            except AlreadyRunningError as error:
                problem, timeout = error, lock_timeout
            except mysql_errors() as error:
                problem = explain(error, self.server)
                problem.__cause__ = error
                timeout = RETRY_SECONDS if problem.errno in transient else 0
                if problem.errno not in LOCKED:  # after a lock wait or a deadlock it is still usable
                    self.close()
            started = started or time.monotonic()
            if time.monotonic() >= started + timeout:
                raise problem
            if str(problem) != warned:
                warned = str(problem)
                log.warning("retrying for up to %.0f s: %s", timeout, warned)
            time.sleep(min(0.5 * failures, 2))  # the first at once: a deadlock's winner has finished by then
            failures += 1
