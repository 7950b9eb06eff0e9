"""Made-up markets, dashboards built from them, and what to ask both."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from build_dashboard import NAME, SOURCE, history_days
from pbix_mcp.formats.model_reader import ModelReader
from pbix_query import Dashboard
from report_source import Field

from tests.conftest import SETTING_PREFIXES, Database
from tests.dashboard.source import COIN_ID, MODEL, VISUALS

# -------------------------------------------------------------------------- the measures, in SQL where they are figures

FIGURES = {
    "Latest Snapshot": "MAX(timestamp)",
    "Coins in Snapshot": "COUNT(*)",
    "Total Market Cap": "SUM(market_cap)",
    "Total 24h Volume": "SUM(total_volume)",
    "Avg 24h Price Change %": "AVG(price_change_percentage_24h) / 100",
    "Avg 24h Price Range": "AVG(high_24h - low_24h)",
    "Avg 24h Price Range %": "AVG((high_24h - low_24h) / NULLIF(current_price, 0))",
    "Market Cap Share": "SUM(market_cap) / (SELECT SUM(market_cap) FROM latest)",
    "Price": "AVG(current_price)",
}
RANKS = {
    "Gainer Rank": ("price_change_percentage_24h", "DESC"),
    "Loser Rank": ("price_change_percentage_24h", "ASC"),
    "Volume Rank": ("total_volume", "DESC"),
}
TRENDS = {"Market Cap (trend)": "SUM(market_cap)", "Price (trend)": "AVG(current_price)"}

# -------------------------------------------------------------------------------------------------------------- markets

NEWEST = datetime(2026, 11, 22, 12, 0)


def make_row(coin_id: str, timestamp: datetime = NEWEST, **changes: object) -> dict[str, object]:
    """A row of crypto_prices, a small coin that rose 1 per cent; `changes` replace its columns."""
    return {
        "timestamp": timestamp,
        "coin_id": coin_id,
        "symbol": coin_id[:4],
        "name": coin_id.title(),
        "current_price": 2.0,
        "market_cap": 250e6,
        "total_volume": 1e6 + sum(coin_id.encode()),
        "high_24h": 2.2,
        "low_24h": 1.9,
        "price_change_percentage_24h": 1.0,
        "price_change_percentage_7d": -2.5,
        "market_cap_change_24h": 2.5e6,
        "ath": 9.0,
        "atl": 0.01,
        "market_cap_tier": "Small Cap",
    } | changes


def make_awkward_market() -> list[dict[str, object]]:
    """A market with all that real data holds: more coins fall than rise, ties at rank 5, one name twice, NULL, 0."""
    newest = [
        make_row(
            "bitcoin",
            current_price=87412.25,
            market_cap=1.7e12,
            market_cap_tier="Large Cap",
            high_24h=88000.5,
            low_24h=86000.0,
            price_change_percentage_24h=0.5,
            total_volume=4e10,
        ),
        make_row(
            "ether",
            current_price=3100.0,
            market_cap=3.8e11,
            market_cap_tier="Large Cap",
            high_24h=3200.0,
            low_24h=3000.0,
            price_change_percentage_24h=-3.0,
            total_volume=2e10,
        ),
        make_row("no-change", market_cap=2e9, market_cap_tier="Mid Cap", price_change_percentage_24h=None),
        make_row("twin-a", name="Twin", symbol="twn", price_change_percentage_24h=9.0, total_volume=5e9),
        make_row("twin-b", name="Twin", symbol="twn", price_change_percentage_24h=-9.0, total_volume=5e9),
        make_row("twin-c", name="TWIN", symbol="TWN", price_change_percentage_24h=-8.0),
        make_row("leaps", price_change_percentage_24h=250.0),
        make_row("climbs", price_change_percentage_24h=7.0),
        make_row("rises", price_change_percentage_24h=6.0),
        make_row("tie-1", price_change_percentage_24h=2.0, total_volume=3e9),
        make_row("tie-2", price_change_percentage_24h=2.0, total_volume=3e9),
        make_row("no-cap", market_cap=None, market_cap_tier="Unknown", price_change_percentage_24h=-5.0),
        make_row("zero-cap", market_cap=0.0, market_cap_tier="Unknown", price_change_percentage_24h=-60.0),
        make_row("no-high", high_24h=None),
        make_row("no-low", low_24h=None, price_change_percentage_24h=-0.1),
        make_row("no-price", current_price=None, price_change_percentage_24h=-0.2),
        make_row(
            "free", current_price=0.0, high_24h=0.0, low_24h=0.0, price_change_percentage_24h=0.0, total_volume=0.0
        ),
        make_row("no-volume", total_volume=None, price_change_percentage_24h=-0.3),
        make_row(
            "tiny",
            current_price=1.234e-9,
            high_24h=1.3e-9,
            low_24h=1.1e-9,
            market_cap=5e6,
            market_cap_tier="Micro/Nano Cap",
            price_change_percentage_24h=-7.0,
        ),
        make_row("nameless", name="", symbol="", price_change_percentage_24h=-6.0),
        make_row("renamed", name="New Name", symbol="new", price_change_percentage_24h=-4.0),
        make_row("dash", name="Twin (TWN) - twin-a", symbol="", price_change_percentage_24h=-4.6),
        make_row("spaced", name=" \tTabbed\x00 name \n", price_change_percentage_24h=-4.7),
        make_row("emoji", name="Émoji 🏮 =1+1 %(name)s", symbol="", price_change_percentage_24h=-4.5),
    ]
    # Earlier, figures of quite another size: any of them in a figure of the newest snapshot would show.
    before = [
        make_row(
            str(row["coin_id"]),
            NEWEST - timedelta(days=days),
            current_price=500.0 + days,
            market_cap=9e12 + days,
            high_24h=900.0,
            low_24h=100.0,
            price_change_percentage_24h=77.0 * days,
            total_volume=8e12,
            name="Old Name" if row["coin_id"] == "renamed" else row["name"],
            symbol=row["symbol"],
        )
        for days in (1, 2, 89)
        for row in newest
        if not (days == 2 and row["coin_id"] == "ether")
    ]
    gone = [make_row("gone", NEWEST - timedelta(days=1), market_cap=5e13, market_cap_tier="Large Cap")]
    too_old = [make_row("bitcoin", NEWEST - timedelta(days=days), current_price=1.0) for days in (90, 200)]
    return newest + before + gone + too_old


def fill(database: Database, rows: list[dict[str, object]]) -> None:
    columns = list(rows[0])
    with database.server.cursor() as cursor:
        for start in range(0, len(rows), 1000):
            cursor.executemany(
                f"INSERT INTO crypto_prices ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})",
                [tuple(row.values()) for row in rows[start : start + 1000]],
            )


# ------------------------------------------------------------------------------------------ the build, and what it made


def build(folder: Path, *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the build into `folder`, with these settings and no other."""
    env_file = folder.with_name(f"{folder.name}.env")
    env_file.write_text("", encoding="utf-8")
    bare = {key: value for key, value in os.environ.items() if not key.startswith(SETTING_PREFIXES)}
    return subprocess.run(
        [sys.executable, SOURCE / "build_dashboard.py", "--out", folder, "--env-file", env_file, *options],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=bare | settings,
    )


class Market:
    """A database with a market, and the dashboard built from it."""

    def __init__(self, database: Database, folder: Path, rows: list[dict[str, object]]) -> None:
        self.database = database
        fill(database, rows)
        built = build(folder, "--from-mysql", **database.settings())
        assert (built.returncode, built.stderr) == (0, "")
        self.dashboard = Dashboard(folder / f"{NAME}.pbix", MODEL)

    def sql(self, query: str) -> list[tuple]:
        """The rows of a query; in it, `prices` are the rows that the dashboard has, `latest` the newest of them."""
        self.database.execute(f"USE {self.database.name}")  # another market may have been made since
        return self.database.execute(
            "WITH newest AS (SELECT MAX(timestamp) AS moment FROM crypto_prices),"
            " prices AS (SELECT c.* FROM crypto_prices c, newest"
            f" WHERE timestamp > moment - INTERVAL {history_days(MODEL)} DAY),"
            f" latest AS (SELECT prices.* FROM prices, newest WHERE timestamp = moment) {query}"
        )

    def groups(self, columns: list[Field], measure: str) -> dict[Any, Any]:
        """A measure by the values of `columns`, without the groups where it is blank."""
        names = [column.name for column in columns]
        return {tuple(row[name] for name in names): row[measure] for row in self.dashboard.groups(columns, [measure])}


def comparable(figure: Any) -> Any:
    """A figure of SQL or of the dashboard, so that both compare: times as text, whole numbers as float."""
    if figure is None or isinstance(figure, str):
        return figure
    return figure.isoformat() if isinstance(figure, datetime) else pytest.approx(float(figure), rel=1e-12)


def shown_coins(market: Market, name: str) -> list[str]:
    """The ids of the coins that a table shows, in its order."""
    limits = VISUALS[name].limits
    order, descending = VISUALS[name].sort
    rows = market.dashboard.groups([COIN_ID], [limits[0].measure, order.name])
    shown = [row for row in rows if all(limit.passes(row[limit.measure]) for limit in limits)]
    shown.sort(key=lambda row: row["coin_id"])
    shown.sort(key=lambda row: row[order.name], reverse=descending)
    return [row["coin_id"] for row in shown]


def read_table(dashboard: Dashboard, name: str) -> list[dict[str, Any]]:
    """The rows of a table in a .pbix, by an independent reader."""
    table = ModelReader(str(dashboard.path)).get_table(name)
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def read_parts(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
