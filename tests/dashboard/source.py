"""The source of the dashboard as the tests read it, and changes to a copy of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from build_dashboard import MODEL_DIR, NAME, REPORT_DIR, SOURCE
from check_source import read_source
from report_source import Field

from tests.conftest import SETTING_PREFIXES

MODEL, REPORT = read_source(MODEL_DIR, REPORT_DIR)
TABLES, MEASURES = MODEL.tables, MODEL.measures
QUERIES = {name: table["partitions"][0]["source"]["expression"] for name, table in TABLES.items()}
VISUALS = {visual.document["name"]: visual for page in REPORT.pages for visual in page.visuals}
COIN_ID, COIN, TIME, TIER = (
    Field(table, name, False, name)
    for table, name in (
        ("Coin", "coin_id"),
        ("Coin", "coin"),
        ("Time", "timestamp"),
        ("Tier", "market_cap_tier"),
    )
)
TEXTS = {"As Of", "Source", "Trend Note", "Price Label", "Change Colour"}  # the measures that are no figures

# ---------------------------------------------------------------------------------------------------- changes to a copy

PRICES_TMDL = f"{NAME}.SemanticModel/definition/tables/crypto_prices.tmdl"
TIER_TMDL = f"{NAME}.SemanticModel/definition/tables/Tier.tmdl"
DEFINITION = f"{NAME}.Report/definition"
THEME_JSON = f"{NAME}.Report/StaticResources/RegisteredResources/CryptoMarketTheme.json"
(GAINERS,) = (path for path in VISUALS["table-gainers"].path.parents[5].rglob("table-gainers/visual.json"))
GAINERS_JSON = GAINERS.relative_to(SOURCE).as_posix()


def change(source: Path, file: str, old: str, new: str) -> None:
    """Change a file of the source in one place."""
    text = (source / file).read_text(encoding="utf-8")
    assert old in text
    (source / file).write_text(text.replace(old, new, 1), encoding="utf-8")


def run_copy(source: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the build of a copy of the source into that copy."""
    return subprocess.run(
        [sys.executable, source / "build_dashboard.py", *options],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={key: value for key, value in os.environ.items() if not key.startswith(SETTING_PREFIXES)},
    )
