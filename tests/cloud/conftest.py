"""What the tests of the cloud share: the package that Lambda gets, built once."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cloud.fake_aws import IS_LAMBDAS_PYTHON, PEM
from tests.conftest import PROJECT_DIR

MACHINE = "arm64" if platform.machine() in ("arm64", "aarch64") else "x86_64"


@pytest.fixture(scope="session")
def real_pip(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where pip cannot download, or has nothing that AWS Lambda takes; no other test needs the internet."""
    pytest.importorskip("awslambdaric", reason="the tests of the cloud need sql/aws_requirements.txt")
    if not IS_LAMBDAS_PYTHON:
        pytest.skip("packing needs Python 3.12 to 3.14, as AWS Lambda has")
    folder = tmp_path_factory.mktemp("download")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "python-dotenv==1.2.4"]
    asked = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200)
    if asked.returncode != 0:
        pytest.skip(f"packing needs pip and PyPI: {asked.stderr.strip().splitlines()[-1:]}")


@pytest.fixture(scope="session")
def package(real_pip: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real package for the Python that runs the tests and the processor of this machine.

    In place of RDS's CA certificates it has something that only looks like one.
    """
    folder = tmp_path_factory.mktemp("package")
    (folder / "ca.pem").write_text(PEM)
    built = subprocess.run(
        ["bash", PROJECT_DIR / "sql" / "aws_mysql.sh", "package", "package.zip"],
        env=os.environ | {"PYTHON": sys.executable, "ARCHITECTURE": MACHINE, "RDS_CA_BUNDLE": "ca.pem"},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert built.returncode == 0, built.stderr
    return folder / "package.zip"
