"""The README says what the scripts say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dotenv import dotenv_values

from tests.conftest import PROJECT_DIR
from tests.make_sample_market import make_snapshots
from tests.stub_coingecko import SAMPLE_FILES, read_sample

README = (PROJECT_DIR / "README.md").read_text(encoding="utf-8")
DASHBOARD_README = (PROJECT_DIR / "powerbi" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("script", "readme"),
    [
        ("pipeline_orchestrator.py", README),
        ("etl_crypto.py", README),
        ("segment_and_load.py", README),
        ("powerbi/build_dashboard.py", DASHBOARD_README),
    ],
)
def test_the_help_of_each_script_stands_in_the_readme(script: str, readme: str):
    shown = subprocess.run(
        [sys.executable, PROJECT_DIR / script, "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
    )

    assert shown.returncode == 0
    # Python versions break the usage line at different places
    assert " ".join(f"``` $ python {script} --help {shown.stdout}```".split()) in " ".join(readme.split())


@pytest.mark.parametrize("folder", [PROJECT_DIR, PROJECT_DIR / "powerbi"])
def test_every_file_that_a_readme_links_to_is_there(folder: Path):
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", (folder / "README.md").read_text(encoding="utf-8"))

    assert links
    assert [link for link in links if not (folder / link).exists()] == []


def test_every_setting_stands_in_the_readme():
    settings = README.partition("## Settings")[2].partition("\n## ")[0]

    assert set(re.findall(r"`([A-Z_]+)`", settings)) == set(dotenv_values(PROJECT_DIR / ".env.example"))


def test_every_link_within_the_readme_leads_to_a_heading():
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in re.findall(r"^#+ .*$", README, re.M)
    }

    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings


def test_the_sample_files_are_what_their_script_makes():
    made = make_snapshots()

    assert len(made) == len(SAMPLE_FILES) == 31
    for snapshot, path in zip(made, SAMPLE_FILES, strict=True):
        assert path.name == snapshot["timestamp"].replace(":", "-") + ".json.gz"
        assert read_sample(path) == json.loads(json.dumps(snapshot["coins"]))
