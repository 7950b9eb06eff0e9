"""Create database, table and accounts on a MySQL or MariaDB of your own.

  python sql/create_database.py              on this machine, as root
  python sql/create_database.py --host db.example.com --user me --ssl-ca ca.pem
  sudo .venv/bin/python sql/create_database.py --socket /run/mysqld/mysqld.sock

Asks for the administrator's password, or takes MYSQL_ADMIN_PASSWORD. Runs
database.sql, crypto_prices.sql and accounts.sql, gives the accounts random
passwords, and writes .env. Safe to repeat: what is there stays.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import secrets
import shlex
import string
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))  # for a script, Python looks in its own folder alone

from sql.connection import (  # noqa: E402
    AWS_HINTS,
    HINTS,
    LOCKED,
    LOST,
    NO_SERVER,
    NO_TLS,
    READ_ONLY,
    AlreadyRunningError,
    DatabaseError,
    PipelineError,
    Server,
    connect,
    defer_signals,
    explain,
    is_loopback,
    mysql_errors,
    quote,
)

SQL_DIR, ENV_FILE = PROJECT_DIR / "sql", PROJECT_DIR / ".env"
FILES = {"database.sql": "the database", "crypto_prices.sql": "the table", "accounts.sql": "the accounts"}
ETL, READER = ACCOUNTS = ("crypto_etl", "crypto_reader")  # of the pipeline, and of the dashboard
GRANTED = ("SELECT", "INSERT", "UPDATE", "DELETE")  # to crypto_etl
SYSTEM_DATABASES = ("mysql", "sys", "information_schema", "performance_schema")
SOCKETS = ("/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock")
OTHER_ADMIN = "use an administrator that may create databases and accounts (--user)"
OWN_HINTS = {
    NO_SERVER: "no MySQL server answers at {server} ({error}): start it, or check --host, --port and --socket",
    NO_TLS: "no trusted TLS connection to {server} ({error}): check --ssl-ca, and that --host is the name in the"
    " server's certificate",
    LOST: "the connection to {server} was lost ({error}): check --port (does MySQL listen there?), then run again",
    LOCKED: "other sessions hold locks at {server} ({error}): end them, then run again",
    READ_ONLY: "the server at {server} takes no writes ({error}): run again later, or with the --host of one that does",
    (1045,): "MySQL at {server} refused the login of {user} ({error}): check the password and --user",
    (1130,): "MySQL at {server} lets {user} in from other machines only ({error}): run this there, or with --user",
    (1044, 1142, 1227, 1410): "{user} at {server} lacks a right ({error}): " + OTHER_ADMIN,
    (1819,): "the password policy at {server} refuses 29 random letters, digits and dashes ({error}): relax it",
}
ADMIN_HINTS = OWN_HINTS | {numbers: hint for numbers, hint in HINTS.items() if numbers not in OWN_HINTS}
MASTER_HINTS = AWS_HINTS | {
    (1045, 1698): "MySQL at {server} refused the login of its master {user} ({error}): RDS may be rotating that"
    " password: deploy again in a minute",
    (1044, 1142, 1143, 1227, 1410): "the master {user} at {server} lacks a right ({error}): grant it again",
}


class SetupError(PipelineError):
    """An option, a file, or what is already there does not allow it; nothing was made."""

    exit_code = 2


# --------------------------------------------------------------------------------------------------------- sessions


@contextmanager
def session(server: Server) -> Iterator[Any]:
    """A cursor of a new session. MySQL's errors become DatabaseErrors."""
    try:
        with closing(connect(server)) as connection:
            yield connection.cursor()
    except mysql_errors() as error:
        raise explain(error, server) from error


def read(cursor: Any, statement: str, *parameters: str) -> list[tuple]:
    cursor.execute(statement, parameters)
    return cursor.fetchall()


def log_in(server: Server) -> Server:
    """`server` with the administrator's password: MYSQL_ADMIN_PASSWORD, none at a socket, or the one that is typed.

    Raises SetupError without a terminal, and DatabaseError.
    """
    password = os.environ.get("MYSQL_ADMIN_PASSWORD")
    if password is None and not server.socket:
        password = ask_password(server)
    try:
        with session(server := replace(server, password=password or "")):
            return server
    except DatabaseError as error:
        if error.errno == 1045 and password is None:  # a root of the socket needs a password, too
            return replace(server, password=ask_password(server))
        if error.errno == 1698:
            socket = server.socket or next(filter(os.path.exists, SOCKETS), SOCKETS[0])
            command = shlex.join(["sudo", sys.executable, __file__, *sys.argv[1:], "--socket", str(socket)])
            error.args = (f"{quote(server.user)} at {server.address} logs in by the server's socket only: {command}",)
        raise


def take_lock(cursor: Any, server: Server) -> None:
    """Let one at a time create a database there, for as long as the session lasts. Raises AlreadyRunningError."""
    if read(cursor, "SELECT GET_LOCK('crypto_prices.create_database', 0)") != [(1,)]:
        raise AlreadyRunningError(f"another create_database is at {server.address}: run this again when it has ended")


def ask_password(server: Server) -> str:
    if not (sys.stdin and sys.stdin.isatty()):
        raise SetupError(f"no terminal to ask for the password of {quote(server.user)}: set MYSQL_ADMIN_PASSWORD")
    try:
        return getpass.getpass(f"password of {server.user} at {server.address}: ")
    except UnicodeDecodeError as error:
        raise SetupError("what was typed is not in this terminal's encoding: set MYSQL_ADMIN_PASSWORD") from error


# ------------------------------------------------------------------------------------------- checks before it is made


def check_name(database: str) -> None:
    is_usable = 1 <= len(database) <= 64 and database.isprintable() and database == database.strip()
    if not is_usable or max(database) > "\uffff" or database.lower() in SYSTEM_DATABASES:
        raise SetupError(
            f"the database cannot be {quote(database)}: give a name of 1 to 64 characters, without emoji or blanks at"
            " its ends, that is none of the server's own (mysql, sys, ...)"
        )


def check_options(options: argparse.Namespace) -> None:
    """Raise SetupError for options that cannot work."""
    check_name(options.database)
    ca = options.ssl_ca
    if not re.fullmatch(r"[\w.-]+|[\da-f:.]*:[\da-f:.]*:[\da-f:.]*", options.host, re.I):
        raise SetupError(f"--host is {quote(options.host)}: give a name or an address alone; the port goes into --port")
    if options.port is not None and not 1 <= options.port <= 65535:
        raise SetupError(f"--port is {options.port}: give a number from 1 to 65535")
    if ca not in ("", "none") and not os.path.isfile(ca):  # noqa: PTH113 - is_file() raises where access is denied
        raise SetupError(f"--ssl-ca is {quote(ca)}: give a file with CA certificates (PEM), or none")
    if not (ca or options.socket or is_loopback(options.host)):
        raise SetupError(
            f"whoever answers as {quote(options.host)} would get the passwords: give its CA file with --ssl-ca, or"
            " --ssl-ca none to trust whoever answers"
        )


def check_server(cursor: Any, admin: Server, database: str) -> None:
    """Raise DatabaseError for an old server, or an administrator without the rights (those of a role are not seen)."""
    [(version, account, role)] = read(cursor, "SELECT VERSION(), CURRENT_USER(), CURRENT_ROLE()")
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < ((10, 6) if "MariaDB" in version else (8, 0, 19)):
        raise DatabaseError(f"{admin.address} is {version}: MySQL 8.0.19 or MariaDB 10.6 is needed, or newer")
    if role not in (None, "NONE"):
        return
    user, _, host = account.rpartition("@")
    rights = "SELECT privilege_type, is_grantable FROM information_schema"
    everywhere = read(cursor, f"{rights}.user_privileges WHERE grantee = %s", f"'{user}'@'{host}'")
    within = f"{rights}.schema_privileges WHERE grantee = %s AND %s LIKE table_schema"
    here = read(cursor, within, f"'{user}'@'{host}'", database)
    grants = [right for right in GRANTED if (right, "YES") not in [*everywhere, *here]]
    missing = [] if "CREATE" in dict([*everywhere, *here]) else ["CREATE"]
    missing += [] if "CREATE USER" in dict(everywhere) else ["CREATE USER"]
    missing += [f"GRANT OPTION for {', '.join(grants)}"] if grants else []
    if missing:
        lacks = f"{quote(admin.user)} at {admin.address} lacks {' and '.join(missing)}"
        raise DatabaseError(f"{lacks}, so nothing was made: {OTHER_ADMIN}")


def read_existing(cursor: Any, database: str) -> list[str]:
    """Which of "the database", "the table" and the accounts are there."""
    schema = read(cursor, "SELECT 1 FROM information_schema.schemata WHERE schema_name = %s", database)
    table = "SELECT 1 FROM information_schema.tables WHERE table_schema = %s AND table_name = 'crypto_prices'"
    account = "SELECT 1 FROM mysql.user WHERE user = %s AND host = '%'"
    found = {"the database": schema, "the table": read(cursor, table, database)}
    found |= {name: read(cursor, account, name) for name in ACCOUNTS}
    return [name for name, rows in found.items() if rows]


def read_usable(cursor: Any, admin: Server, database: str) -> list[str]:
    """read_existing(), once server, administrator and table are what is needed. Raises DatabaseError."""
    check_server(cursor, admin, database)
    existing = read_existing(cursor, database)
    if "the table" in existing:
        check_table(cursor, database)
    return existing


def describe_made(existing: list[str]) -> str:
    """What was made where `existing`, as of read_existing(), was there before."""
    made = [name for name in ("the database", "the table", *ACCOUNTS) if name not in existing]
    return f"made {', '.join(made) or 'nothing'}; there already: {', '.join(existing) or 'nothing'}"


def check_table(cursor: Any, database: str) -> None:
    """Raise DatabaseError for a crypto_prices that does not have what sql/crypto_prices.sql gives it."""
    this = "WHERE table_schema = %s AND table_name = 'crypto_prices'"
    [(engine,)] = read(cursor, f"SELECT COALESCE(engine, 'none') FROM information_schema.tables {this}", database)
    facts = "LOWER(column_name), UPPER(data_type), COALESCE(character_maximum_length, datetime_precision, 0)"
    facts += ", column_key = 'PRI', is_nullable = 'NO' AND column_default IS NULL AND extra = ''"
    problems = [] if engine == "InnoDB" else [f"its engine is {engine}, not InnoDB"]
    problems += find_mismatches(read(cursor, f"SELECT {facts} FROM information_schema.columns {this}", database))
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise DatabaseError(
            f"{database}.crypto_prices is not the pipeline's ({', '.join(problems[:3])}{more}), so nothing was made:"
            " keep it under another name (RENAME TABLE), or take another database (--database, on AWS DatabaseName)"
        )


def find_mismatches(columns: list[tuple]) -> list[str]:
    """What is wrong with `columns`: name, type, size, is it in the key, does a row need it."""
    text = (SQL_DIR / "crypto_prices.sql").read_text(encoding="utf-8")
    wanted = re.findall(r"^  (\w+) +(VARCHAR|INT|DOUBLE|DATETIME)\b(?:\((\d+)\))?", text, re.M)
    names = {name for name, _, _ in wanted}
    present = {name: (kind, size) for name, kind, size, _, _ in columns}
    key = {name for name, _, _, is_key, _ in columns if is_key}
    problems = [] if key == {"timestamp", "coin_id"} else ["its primary key is not timestamp, coin_id"]
    for name, kind, size in wanted:
        has, holds = present.get(name, ("", 0))
        if has != kind or holds < int(size or 0):
            problems.append(f"it has no column {name} of {kind}{f'({size})' if size else ''}")
    return problems + [f"its column {name} must be filled" for name, *_, must in columns if must and name not in names]


def check_kept_password(etl: Server, env: Mapping[str, str]) -> None:
    """Raise SetupError unless .env holds the password of crypto_etl, which is there. `etl` has no database yet."""
    problem = "does not hold"
    if env.get("MYSQL_USER") == etl.user and etl.password:
        try:
            with session(etl):
                return
        except DatabaseError as error:
            if error.errno != 1045:
                raise
            problem = "does not hold (the server refuses the one there)"
    raise SetupError(
        f"crypto_etl is there already and keeps its password, which {ENV_FILE} {problem}, so nothing was changed: put"
        " it there, or add --new-passwords, which sets new ones for both accounts"
    )


# ------------------------------------------------------------------------------------------------------ what is made


def new_password() -> str:
    """A random password (140 bits) for every policy: 29 letters of both cases, digits and dashes.

    None of these needs quotes or escapes in SQL, .env, a shell or Power BI.
    """
    while True:
        text = "-".join("".join(secrets.choice(string.ascii_letters + string.digits) for _ in "12345") for _ in "12345")
        if all(sum(map(kind, text)) >= 3 for kind in (str.isupper, str.islower, str.isdigit)):
            return text


def create(admin: Server, database: str, passwords: Mapping[str, str], changed: Iterable[str]) -> None:
    """Run the three SQL files. An account that is new, or among `changed`, has its password of `passwords` then.

    Safe to repeat. Raises DatabaseError, which says what was made.
    """
    name = f"`{database.replace('`', '``')}`"
    done: list[str] = []
    try:
        with session(admin) as cursor:
            for file, what in FILES.items():
                text = (SQL_DIR / file).read_text(encoding="utf-8").replace("crypto_db", name)
                for account, password in passwords.items():
                    literal = password.replace("\\", "\\\\").replace("'", "''")
                    text = text.replace(f"<password for {account}>", f"'{literal}'")
                cursor.execute(text)
                while cursor.nextset():
                    pass
                cursor.execute(f"USE {name}")
                done.append(what)
            for account in changed:  # CREATE USER leaves an existing account its password
                cursor.execute(f"ALTER USER '{account}'@'%' IDENTIFIED BY %s ACCOUNT UNLOCK", (passwords[account],))
    except DatabaseError as error:
        error.args = (f"{error}; this run made {', '.join(done) or 'nothing'}",)
        raise


def power_bi(address: str, database: str, password: str) -> list[str]:
    """What to type into Power BI, in lines."""
    names = {"server": address, "database": database, "user": READER, "password": password}
    return [f"  {name:9} {value}" for name, value in names.items()]


# -------------------------------------------------------------------------------------------------------------- .env


def read_env() -> dict[str, str]:
    """The values in .env; none when there is no such file. Raises SetupError, also where it could not be written."""
    from dotenv import dotenv_values

    try:
        if os.path.lexists(ENV_FILE):
            text = ENV_FILE.read_text(encoding="utf-8-sig")  # as the pipeline reads it
        elif os.access(PROJECT_DIR, os.W_OK):
            text = ""
        else:
            raise SetupError(f"{PROJECT_DIR} is not writable, and .env goes there: run this as its owner")
    except OSError as error:
        raise SetupError(f"cannot read {ENV_FILE} ({error.strerror}): run this as its owner, or rename it") from error
    except ValueError as error:
        raise SetupError(f"cannot read {ENV_FILE} ({quote(str(error))}): save it as a text file in UTF-8") from error
    return {key: value or "" for key, value in dotenv_values(stream=StringIO(text), interpolate=False).items()}


def env_line(key: str, value: str) -> str:
    """KEY=value, in quotes where .env needs them."""
    if re.fullmatch(r"[\w./:@%+-]*", value, re.A):
        return f"{key}={value}"
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"


def write_env(values: Mapping[str, str]) -> None:
    """.env.example with `values` as .env, readable by the project's owner alone, also when sudo made it.

    Raises PipelineError.
    """
    try:
        lines = (PROJECT_DIR / ".env.example").read_text(encoding="utf-8").splitlines()
        keys = [line.partition("=")[0] for line in lines]
        lines = [env_line(key, values[key]) if key in values else line for key, line in zip(keys, lines, strict=True)]
        with os.fdopen(os.open(ENV_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write("\n".join([*lines, ""]))
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            owner = PROJECT_DIR.stat()
            os.chown(ENV_FILE, owner.st_uid, owner.st_gid)
    except OSError as error:
        problem = f"all is made, yet {ENV_FILE} cannot be written ({error.filename}: {error.strerror})"
        raise PipelineError(f"{problem}: fix that, then run this again with --new-passwords") from error


# ------------------------------------------------------------------------------------------------------------ script


@dataclass(frozen=True)
class Plan:
    """What is there, and what is to be made."""

    existing: list[str]  # as of read_existing()
    kept: list[str]  # accounts that keep their passwords
    accounts: dict[str, Server]  # both, with the passwords that they will have; that of a kept READER is not known

    @property
    def changed(self) -> list[str]:
        return [name for name in ACCOUNTS if name in self.existing and name not in self.kept]


def make_plan(cursor: Any, admin: Server, options: argparse.Namespace, env: Mapping[str, str]) -> Plan:
    """Check all that can be checked before anything is made. Raises DatabaseError and SetupError."""
    existing = read_usable(cursor, admin, options.database)
    kept = [name for name in ACCOUNTS if name in existing and not options.new_passwords]
    port = admin.port if options.port or not admin.socket else read(cursor, "SELECT @@port")[0][0]
    etl = replace(admin, port=port, socket=None, user=ETL, password=env.get("MYSQL_PASSWORD", ""))
    if ETL in kept:
        check_kept_password(etl, env)
    passwords = {name: new_password() for name in ACCOUNTS} | ({ETL: etl.password} if ETL in kept else {})
    database = options.database
    accounts = {name: replace(etl, database=database, user=name, password=passwords[name]) for name in ACCOUNTS}
    return Plan(existing, kept, accounts)


def run(options: argparse.Namespace) -> None:
    """Create what is missing, settle .env, print what to type into Power BI, and test the accounts."""
    check_options(options)
    env = read_env()
    ca = options.ssl_ca if options.ssl_ca in ("", "none") else os.path.abspath(options.ssl_ca)  # noqa: PTH100
    tls = Path(ca) if ca not in ("", "none") else None
    socket = Path(options.socket) if options.socket else None
    admin = log_in(Server(options.host, options.port or 3306, "", options.user, "", tls, socket, ADMIN_HINTS))
    with session(admin) as cursor:
        take_lock(cursor, admin)
        plan = make_plan(cursor, admin, options, env)
        passwords = {name: account.password for name, account in plan.accounts.items()}
        with defer_signals():  # or there would be accounts whose passwords nobody has
            create(admin, options.database, passwords, plan.changed)
            to_do = settle_env(env, plan.accounts[ETL], ca)
        show_plan(plan, admin)
        show(*to_do)  # before the test: what is shown nowhere would be lost
        tested = [name for name in ACCOUNTS if name == ETL or name not in plan.kept]
        for name in tested:
            check_login(plan.accounts[name], cursor)
    command = [sys.executable, str(PROJECT_DIR / "pipeline_orchestrator.py")]
    line = subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)
    show(f"tested: {' and '.join(tested)} can log in", f"next: {line}")


def show_plan(plan: Plan, admin: Server) -> None:
    """Print what was made and, for a new password, what to type into Power BI."""
    show(f"{admin.address}: {describe_made(plan.existing)}")
    if READER in plan.kept:
        show(f"{READER} keeps its password (lost? --new-passwords, for both accounts)")
    else:
        reader = plan.accounts[READER]
        show("in Power BI, enter (the password is shown this once):")
        show(*power_bi(reader.address, reader.database, reader.password))


def settle_env(env: Mapping[str, str], etl: Server, ca: str) -> list[str]:
    """Write .env, or leave the one that is there; what was done and what is left to do, in lines."""
    values = {"MYSQL_HOST": etl.host, "MYSQL_PORT": str(etl.port), "MYSQL_DATABASE": etl.database}
    values |= {"MYSQL_USER": etl.user, "MYSQL_PASSWORD": etl.password, "MYSQL_SSL_CA": ca}
    if os.path.lexists(ENV_FILE):
        lines = [env_line(key, value) for key, value in values.items() if env.get(key, "") != value]
        said = [f"set these lines in {ENV_FILE} (the pipeline uses the old ones until then):", *lines] if lines else []
    else:
        write_env(values)
        said = [f"wrote {ENV_FILE}"]
    stronger = [key for key in values if os.environ.get(key, values[key]) != values[key]]
    return [*said, *([f"unset {', '.join(stronger)} in the environment: it wins over .env"] if stronger else [])]


def show(*lines: str) -> None:
    """Print `lines`, if any. Raises PipelineError where they cannot be written, as to a closed pipe or a full disk."""
    try:
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries once more as it ends
        again = "run this again, with --new-passwords for those that were to be shown"
        raise PipelineError(f"all is made, yet the result cannot be written ({error.strerror}): {again}") from error


def check_login(account: Server, admin: Any) -> None:
    """Raise DatabaseError unless the account reaches the table; `admin` is an administrator's cursor."""
    try:
        with session(account) as cursor:
            read(cursor, "SELECT 1 FROM crypto_prices LIMIT 1")
    except DatabaseError as error:
        statement = "SELECT user, host FROM mysql.user WHERE user IN (%s, '') AND host <> '%'"
        others = [f"'{user}'@'{host}'" for user, host in read(admin, statement, account.user)]
        if error.errno == 1045 and others:
            problem = f"{account.user} cannot log in at {account.address}, as {', '.join(others)} takes its place"
            error.args = (f"all is made, yet {problem}: DROP USER it (or ask whose it is), then run this again",)
        else:
            error.args = (f"all is made, yet {error}",)
        raise


def set_up_private(folder: str, database: str) -> str | None:
    """Create it on the private server of sql/local_mysql.sh, whose port and passwords are in `folder`; an error's text.

    Each call sets both accounts to these passwords, and a new database is printed on stderr.
    """
    home = Path(folder)
    root, *passwords = ((home / f"{name}.password").read_text().strip() for name in ("root", *ACCOUNTS))
    admin = Server("127.0.0.1", int((home / "port").read_text()), "", "root", root, hints=ADMIN_HINTS)
    try:
        check_name(database)
        with session(admin) as cursor:
            is_new = "the database" not in read_existing(cursor, database)
        create(admin, database, dict(zip(ACCOUNTS, passwords, strict=True)), changed=ACCOUNTS)
    except DatabaseError as error:  # root's password may have been changed: a start sets it
        again = "if that does not help: bash sql/local_mysql.sh --stop, then this again"
        return f"local_mysql: the database could not be set up: {error}; {again}"
    except SetupError as error:
        return f"local_mysql: the database could not be set up: {error}"
    if is_new:
        lines = power_bi(admin.address, database, f"in {home / 'crypto_reader.password'}")
        print(
            f"local_mysql: the database {database} is ready; in Power BI, enter",
            *lines,
            sep="\nlocal_mysql: ",
            file=sys.stderr,
        )
    return None


def set_up_cloud(admin: Server, accounts: Mapping[str, Server]) -> list[str]:
    """Create it on a server of AWS, for `accounts` (crypto_etl and crypto_reader); what was done, in lines.

    Each call sets both accounts to these passwords, lets them in over TLS alone, and tests them. Raises DatabaseError,
    SetupError and AlreadyRunningError.
    """
    database, admin = accounts[ETL].database, replace(admin, database="", hints=MASTER_HINTS)
    check_name(database)
    with session(admin) as cursor:
        take_lock(cursor, admin)
        existing = read_usable(cursor, admin, database)
        with defer_signals():
            create(admin, database, {name: account.password for name, account in accounts.items()}, changed=ACCOUNTS)
            for name in ACCOUNTS:
                cursor.execute(f"ALTER USER '{name}'@'%' REQUIRE SSL")
        for account in accounts.values():
            check_login(account, cursor)
    return [
        f"{admin.address}, database {database}: {describe_made(existing)}",
        f"tested: {' and '.join(ACCOUNTS)} can log in, with the passwords of their secrets",
    ]


def main(argv: list[str] | None = None) -> int:
    """Command line in, exit code out: 0 done, 2 options or files, 4 the database."""
    parser = Parser(prog="create_database.py", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "%(prog)s [option ...]"
    parser.add_argument("--host", default="localhost", help="the server (default: localhost)")
    parser.add_argument("--port", type=int, help="its port (3306)")
    parser.add_argument("--socket", metavar="FILE", help="log in through the socket of this machine's server")
    parser.add_argument("--user", default="root", help="the administrator (root)")
    parser.add_argument("--ssl-ca", metavar="FILE", default="", help="CA file of a server elsewhere, or none")
    parser.add_argument("--database", metavar="NAME", default="crypto_db", help="the database (crypto_db)")
    parser.add_argument("--new-passwords", action="store_true", help="new passwords for accounts that are there")
    try:
        run(parser.parse_args(argv))
        return 0
    except SystemExit as done:  # of --help
        return done.code
    except PipelineError as error:
        problem, exit_code = str(error), error.exit_code
    except ModuleNotFoundError as error:
        install = f"{sys.executable} -m pip install -r requirements.txt"
        problem, exit_code = f"the module {error.name} is missing: {install}", SetupError.exit_code
    except (KeyboardInterrupt, EOFError):
        problem, exit_code = "stopped: run it again", 130
    print(f"create_database: {problem}", file=sys.stderr)
    return exit_code


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise SetupError(f"{message}; see {self.prog} --help")


if __name__ == "__main__":
    raise SystemExit(main())
