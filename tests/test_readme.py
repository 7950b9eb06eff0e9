"""The README says what the scripts say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from dotenv import dotenv_values

from tests.conftest import PROJECT_DIR
from tests.make_sample_market import make_snapshots
from tests.stub_coingecko import SAMPLE_FILES, read_sample

README = (PROJECT_DIR / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", ["pipeline_orchestrator.py", "etl_crypto.py", "segment_and_load.py"])
def test_the_help_of_each_script_stands_in_the_readme(script: str):
    shown = subprocess.run(
        [sys.executable, PROJECT_DIR / script, "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
    )

    assert shown.returncode == 0
    # Python versions break the usage line at different places
    assert " ".join(f"``` $ python {script} --help {shown.stdout}```".split()) in " ".join(README.split())


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

    assert len(made) == len(SAMPLE_FILES) == 14
    for snapshot, path in zip(made, SAMPLE_FILES, strict=True):
        assert path.name == snapshot["timestamp"].replace(":", "-") + ".json.gz"
        assert read_sample(path) == json.loads(json.dumps(snapshot["coins"]))
