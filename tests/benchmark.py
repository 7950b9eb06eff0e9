"""How fast the pipeline is, as ratios measured in one run: beside what its parts cannot do without, beside LOAD DATA,
and with a long history beside a short one.

  bash sql/local_mysql.sh python tests/benchmark.py            some minutes, 3 GB of disk for a while
  bash sql/local_mysql.sh python tests/benchmark.py --quick    a history of a million rows at most

The server is that of TEST_MYSQL_*, as for the tests; its local_infile is switched on meanwhile. Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from random import Random
from typing import NamedTuple

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))

from etl_crypto import PER_PAGE, Snapshot, transform, write_snapshot  # noqa: E402
from segment_and_load import segment  # noqa: E402
from sql.crypto_prices import COLUMNS, upsert  # noqa: E402
from tests.conftest import NOON, SETTING_PREFIXES, Database, connect_to_server, make_coins, make_settings  # noqa: E402
from tests.stub_coingecko import Answer, StubCoinGecko  # noqa: E402

ANSWER_SECONDS = 0.3
IN_FLIGHT = 4


class Process(NamedTuple):
    """What a process took."""

    seconds: float
    cpu: float  # seconds, user and system
    peak: float  # MB
    stdout: str


def line(what: str, *figures: str) -> None:
    print(f"{what:66}{''.join(f'{figure:>17}' for figure in figures)}".rstrip(), flush=True)


def heading(what: str, *figures: str) -> None:
    print()
    line(what, *figures)


def make_market(coins: int, random: Random) -> list[dict]:
    """Invented coins whose figures have as many digits as real ones."""
    return [
        {key: value * random.uniform(0.9, 1.1) if isinstance(value, float) else value for key, value in coin.items()}
        for coin in make_coins(coins)
    ]


def serve(coins: list[dict], pipe: Pipe) -> None:
    """CoinGecko on loopback that takes its time, in a process of its own; its address is sent through `pipe`."""
    pages = {1 + start // PER_PAGE: json.dumps(coins[start : start + PER_PAGE]) for start in range(0, len(coins), 250)}

    def answer(page: int, attempt: int) -> Answer:
        time.sleep(ANSWER_SECONDS)
        return Answer(pages.get(page, "[]").encode())

    with StubCoinGecko([]) as stub:
        stub.script = answer
        pipe.send(stub.url)
        pipe.recv()


@contextmanager
def coingecko(coins: list[dict]) -> Iterator[str]:
    """The address of a CoinGecko with these coins."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(coins, there))
    process.start()
    yield here.recv()
    here.send("end")
    process.join()


class Bench:
    """The scripts on a database of this benchmark's own."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.settings = database.settings() | {"SNAPSHOT_DIR": str(folder), "REQUESTS_PER_MINUTE": "10000"}

    def start(self, *arguments: object, **settings: str) -> subprocess.Popen[str]:
        bare = {key: value for key, value in os.environ.items() if not key.startswith(SETTING_PREFIXES)}
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=bare | self.settings | settings,
            cwd=PROJECT_DIR,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, *arguments: object, exit_code: int = 0, **settings: str) -> Process:
        begun = time.perf_counter()
        process = self.start(*arguments, **settings)
        stdout = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode != exit_code:
            raise SystemExit(f"{arguments} ended with {process.returncode}: run it by hand to see why")
        kilobytes = used.ru_maxrss / 1024 if sys.platform == "darwin" else used.ru_maxrss
        return Process(seconds, used.ru_utime + used.ru_stime, kilobytes / 1024, stdout)

    def median_run(self, *arguments: object, times: int = 5, exit_code: int = 0, **settings: str) -> Process:
        runs = [self.run(*arguments, exit_code=exit_code, **settings) for _ in range(times)]
        return sorted(runs)[times // 2]

    def fill(self, snapshots: int) -> None:
        """A table of hourly snapshots of a thousand coins before NOON, all tiered; the server makes it itself."""
        self.database.execute("DROP TABLE crypto_prices")
        self.database.create_table()
        self.load(read_rows(make_market(1_000, Random(1)), NOON - timedelta(hours=snapshots)))
        columns = ", ".join((*COLUMNS[1:], "market_cap_tier"))
        for first in range(1, snapshots, 20):
            hours = " UNION ALL ".join(f"SELECT {hour} AS h" for hour in range(first, min(first + 20, snapshots)))
            self.database.execute(
                f"INSERT INTO crypto_prices (timestamp, {columns}) SELECT timestamp + INTERVAL h HOUR, {columns}"
                f" FROM crypto_prices CROSS JOIN ({hours}) AS hours WHERE timestamp = %s ORDER BY 1, 2",
                (NOON - timedelta(hours=snapshots),),
            )

    def load(self, rows: list[tuple]) -> None:
        with self.database.connect() as connection:
            cursor = connection.cursor()
            upsert(cursor, rows)
            segment(cursor, make_settings())
            connection.commit()


def read_rows(coins: list[dict], timestamp: datetime) -> list[tuple]:
    return transform(Snapshot(timestamp, coins, None, "")).rows


def medians(works: dict[str, Callable[[], None]], times: int) -> dict[str, float]:
    """The median seconds of each of these, done in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(times):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(figures) for name, figures in seconds.items()}


def measure_starts(bench: Bench) -> None:
    heading("answers at once (target: under 0.3 s)", "seconds")
    for what, arguments, exit_code, settings in (
        ("--help", ["--help"], 0, {}),
        ("a settings error", [], 2, {"MYSQL_USER": ""}),
        ("--status, table empty", ["--status"], 6, {}),
    ):
        taken = bench.median_run("pipeline_orchestrator.py", *arguments, exit_code=exit_code, **settings)
        line(what, f"{taken.seconds:.2f}")


def measure_runs(bench: Bench) -> None:
    heading("whole orchestrator", "seconds", "without waiting", "CPU s", "peak MB")
    imports = bench.median_run("-c", "import dotenv, mysql.connector, pandas, requests")
    line("floor: interpreter and imports", f"{imports.seconds:.2f}", "", f"{imports.cpu:.2f}", f"{imports.peak:.0f}")
    market = make_market(17_400, Random(2))
    with coingecko(market) as url:
        for coins in (250, 1_000, 5_000, 17_400):
            taken = bench.median_run(
                "pipeline_orchestrator.py", "-q", "--coins", coins, times=3, COINGECKO_BASE_URL=url
            )
            waiting = math.ceil(math.ceil(coins / PER_PAGE) / IN_FLIGHT) * ANSWER_SECONDS
            line(
                f"{coins:,} coins, {waiting:.1f} s of it waiting for the API",
                f"{taken.seconds:.2f}",
                f"{taken.seconds - waiting:.2f}",
                f"{taken.cpu:.2f}",
                f"{taken.peak:.0f}",
            )


def measure_load(bench: Bench) -> None:
    rows = read_rows(make_market(17_400, Random(3)), NOON)
    columns = ", ".join(COLUMNS)
    bench.database.execute("CREATE TABLE same_rows LIKE crypto_prices")
    bench.database.execute("SET GLOBAL local_infile = 1")
    with closing(connect_to_server(database=bench.database.name, allow_local_infile=True)) as connection:
        cursor = connection.cursor()

        def empty() -> None:
            cursor.execute("DELETE FROM crypto_prices")
            connection.commit()

        def load() -> None:
            upsert(cursor, rows)
            connection.commit()

        def load_data() -> None:
            # the file is written again each time: the rows are in Python, as they are for the pipeline
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".tsv") as file:
                for row in rows:
                    print(*("\\N" if value is None else value for value in row), sep="\t", file=file)
                file.flush()
                cursor.execute(
                    f"LOAD DATA LOCAL INFILE '{file.name}' REPLACE INTO TABLE crypto_prices CHARACTER SET utf8mb4"
                    f" ({columns})"
                )
                connection.commit()

        def copy() -> None:
            cursor.execute("INSERT INTO crypto_prices SELECT * FROM same_rows ORDER BY timestamp, coin_id")
            connection.commit()

        empty()
        load()
        cursor.execute("INSERT INTO same_rows SELECT * FROM crypto_prices")
        works = {
            "empty 1": empty,
            "copy": copy,
            "empty 2": empty,
            "load data": load_data,
            "empty 3": empty,
            "upsert": load,
            "renew": load,
        }
        taken = medians(works, times=7)
    heading("load of 17,400 rows (target: within 2 x LOAD DATA)", "seconds", "x LOAD DATA")
    for what, name in (
        ("floor: the server copies the rows itself", "copy"),
        ("LOAD DATA LOCAL", "load data"),
        ("upsert, new rows", "upsert"),
        ("upsert, the same rows again", "renew"),
    ):
        line(what, f"{taken[name]:.2f}", f"{taken[name] / taken['load data']:.2f}")


def measure_segmentation(bench: Bench, histories: list[int]) -> None:
    heading("segment 1,000 new rows (target: within 1.3 x)", "ms", "x the shortest", "--status, s")
    market = make_market(1_000, Random(4))
    shortest = 0.0
    for rows in histories:
        bench.fill(rows // 1_000)
        taken = []
        with bench.database.connect() as connection:
            cursor = connection.cursor()
            for minute in range(15):
                upsert(cursor, read_rows(market, NOON + timedelta(minutes=minute)))
                connection.commit()
                begun = time.perf_counter()
                segment(cursor, make_settings())
                connection.commit()
                taken.append(time.perf_counter() - begun)
        milliseconds = 1000 * statistics.median(taken)
        shortest = shortest or milliseconds
        status = bench.median_run("pipeline_orchestrator.py", "--status")
        line(
            f"with {rows:,} rows of history",
            f"{milliseconds:.0f}",
            f"{milliseconds / shortest:.2f}",
            f"{status.seconds:.2f}",
        )


def measure_retiering(bench: Bench) -> None:
    heading("--all (targets: 200,000 rows/s, memory flat, waits 200 ms)", "rows/s", "peak MB", "longest wait, ms")
    for rows in (10_000, 1_000_000):
        bench.fill(rows // 1_000)
        taken = bench.run("segment_and_load.py", "--all")
        line(f"{rows:,} rows, none changes", f"{rows / taken.seconds:,.0f}", f"{taken.peak:.0f}")
    begun = time.perf_counter()
    waited = longest_wait(
        bench, bench.start("segment_and_load.py", "--all", TIER_LARGE_CAP_MIN="20e9", TIER_MID_CAP_MIN="5e9")
    )
    line("1,000,000 rows, most change", f"{1_000_000 / (time.perf_counter() - begun):,.0f}", "", f"{waited:.0f}")


def longest_wait(bench: Bench, process: subprocess.Popen[str]) -> float:
    """The longest that a change of one row took, in ms, while `process` ran."""
    random = Random(5)
    waited = 0.0
    ended = threading.Event()
    threading.Thread(target=lambda: (process.communicate(), ended.set()), daemon=True).start()
    with bench.database.connect() as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        while not ended.wait(0.002):
            coin, hours = f"coin-{random.randint(1, 1000):05}", random.randint(1, 1000)
            begun = time.perf_counter()
            cursor.execute(
                "UPDATE crypto_prices SET ath = ath + 1 WHERE timestamp = %s AND coin_id = %s",
                (NOON - timedelta(hours=hours), coin),
            )
            waited = max(waited, time.perf_counter() - begun)
    if process.returncode:
        raise SystemExit(f"{process.args} ended with {process.returncode}: run it by hand to see why")
    return 1000 * waited


def measure_replay(bench: Bench, folder: Path) -> None:
    bench.database.execute("DROP TABLE crypto_prices")
    bench.database.create_table()
    random = Random(6)
    files = []
    for hour in range(1_000):
        taken = NOON + timedelta(hours=hour)
        files.append(write_snapshot(folder, taken, taken, make_market(100, random)))
    heading("--replay of 1,000 snapshots of 100 coins (target: 10,000 rows/s)", "rows/s", "CPU s", "peak MB")
    for what in ("new rows", "the same again"):
        taken = bench.run("pipeline_orchestrator.py", "-q", "--replay", *files)
        line(what, f"{100_000 / taken.seconds:,.0f}", f"{taken.cpu:.1f}", f"{taken.peak:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a history of a million rows at most")
    options = parser.parse_args()
    with closing(connect_to_server(autocommit=True)) as server, tempfile.TemporaryDirectory() as folder:
        database = Database(server)
        bench = Bench(database, Path(folder) / "snapshots")
        [(version, local_infile)] = database.execute("SELECT VERSION(), @@GLOBAL.local_infile")
        line(f"{version}, Python {sys.version.split()[0]}, {os.cpu_count()} cores, {datetime.now():%Y-%m-%d}")
        try:
            measure_starts(bench)
            measure_runs(bench)
            measure_load(bench)
            measure_replay(bench, Path(folder) / "thousand")
            measure_retiering(bench)
            measure_segmentation(bench, [10_000, 1_000_000] if options.quick else [10_000, 1_000_000, 5_000_000])
        finally:
            database.execute(f"SET GLOBAL local_infile = {local_infile}")
            database.drop()


if __name__ == "__main__":
    main()
