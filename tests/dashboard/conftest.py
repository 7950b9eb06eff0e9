"""Fixtures of the dashboard's tests: the sample as the build makes it, made-up markets, a copy of the source."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mysql.connector
import pytest

from tests.conftest import PROJECT_DIR, Database
from tests.dashboard.markets import Market, build, make_awkward_market


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build makes of the dashboard's source and the sample market."""
    folder = tmp_path_factory.mktemp("sample")
    built = build(folder)
    assert (built.returncode, built.stderr) == (0, "")
    return folder


@pytest.fixture(scope="session")
def make_market(
    server: mysql.connector.MySQLConnection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[list[dict[str, object]]], Market]]:
    """Makes markets, whose databases and open dashboards last until all tests have run."""
    markets: list[Market] = []

    def make(rows: list[dict[str, object]]) -> Market:
        markets.append(Market(Database(server), tmp_path_factory.mktemp("market"), rows))
        markets[-1].dashboard.__enter__()
        return markets[-1]

    yield make
    for market in markets:
        market.dashboard.__exit__()
        market.database.drop()


@pytest.fixture(scope="session")
def awkward(make_market: Callable[[list[dict[str, object]]], Market]) -> Market:
    return make_market(make_awkward_market())


@pytest.fixture
def copied_source(tmp_path: Path) -> Path:
    """A copy of the project's files that the build of the dashboard uses."""
    for script in ("etl_crypto.py", "segment_and_load.py"):
        shutil.copy(PROJECT_DIR / script, tmp_path)
    shutil.copytree(PROJECT_DIR / "sql", tmp_path / "sql", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PROJECT_DIR / "powerbi", tmp_path / "powerbi", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PROJECT_DIR / "tests" / "data", tmp_path / "tests" / "data")
    return tmp_path / "powerbi"
