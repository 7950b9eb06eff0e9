"""`sql/aws_mysql.sh package` with pip and the real packages: what Lambda gets."""

from __future__ import annotations

import importlib.util
import marshal
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cloud.conftest import MACHINE
from tests.cloud.fake_aws import PASSWORD, PEM, copy_project
from tests.conftest import PROJECT_DIR, posix_only

pytestmark = posix_only

OTHER_MACHINE = "x86_64" if MACHINE == "arm64" else "arm64"
ELF_MACHINES = {"x86_64": 62, "arm64": 183}  # e_machine
TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"
MAX_ZIPPED, MAX_UNZIPPED = 52_428_800, 262_144_000
NOBODY = 65534


def files(package: Path) -> Iterator[tuple[zipfile.ZipInfo, bytes]]:
    with zipfile.ZipFile(package) as opened:
        for entry in opened.infolist():
            if not entry.is_dir():
                yield entry, opened.read(entry)


def names(package: Path) -> list[str]:
    with zipfile.ZipFile(package) as opened:
        return opened.namelist()


class Build:
    """A package of a copy of the project in a folder with a space, by a caller whom others may read nothing of."""

    def __init__(self, folder: Path, architecture: str, user: int | None = None) -> None:
        self.project, self.temporary = folder / "my crypto", folder / "tmp"
        self.caller = folder / "caller"
        copy_project(self.project)
        for path in (self.temporary, self.caller):
            path.mkdir()
        (self.caller / "ca.pem").write_text(PEM)
        if user is not None:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, user, user)
        variables = {"PYTHON": sys.executable, "ARCHITECTURE": architecture, "RDS_CA_BUNDLE": "ca.pem"}
        variables |= {"TMPDIR": str(self.temporary), "HOME": str(folder)}
        self.result = subprocess.run(
            ["bash", self.project / "sql" / "aws_mysql.sh", "package", "my package.zip"],
            env=os.environ | variables,
            cwd=self.caller,
            user=user,
            umask=0o077,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert self.result.returncode == 0, self.result.stderr
        self.zip = self.caller / "my package.zip"


@pytest.fixture(scope="module")
def again(real_pip: None, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The package once more."""
    return Build(tmp_path_factory.mktemp("again"), MACHINE)


@pytest.fixture(scope="module")
def other(real_pip: None, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The package for the other processor."""
    return Build(tmp_path_factory.mktemp("other"), OTHER_MACHINE)


@pytest.fixture(params=[MACHINE, OTHER_MACHINE])
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def built(architecture: str, request: pytest.FixtureRequest) -> Path:
    """The package for either processor."""
    return request.getfixturevalue("package") if architecture == MACHINE else request.getfixturevalue("other").zip


# ------------------------------------------------------------------------------------------------- how it is made


def test_the_same_input_gives_the_same_bytes_whatever_the_folder_and_the_umask(package: Path, again: Build):
    assert package.read_bytes() == again.zip.read_bytes()


def test_it_lies_in_the_callers_folder_and_nothing_else_stays(again: Build):
    assert sorted(path.name for path in again.caller.iterdir()) == ["ca.pem", "my package.zip"]
    assert list(again.temporary.iterdir()) == []
    assert not list(again.project.rglob("__pycache__"))


def test_it_says_what_it_made(again: Build):
    printed = again.result.stdout

    assert printed.startswith(f"{again.zip}: ")
    [zipped, unzipped] = map(float, re.findall(r"(\d+\.\d) MB", printed))
    assert zipped == pytest.approx(again.zip.stat().st_size / 1e6, abs=0.06)
    assert unzipped == pytest.approx(sum(entry.file_size for entry, _ in files(again.zip)) / 1e6, abs=0.06)


def test_a_plain_user_makes_the_same(package: Path, tmp_path_factory: pytest.TempPathFactory):
    if os.geteuid() != 0:
        pytest.skip("these tests run as a plain user anyway")
    probe = [sys.executable, "-c", "import pip"]
    try:
        subprocess.run(probe, user=NOBODY, cwd="/", env={}, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        pytest.skip(f"a plain user cannot run {sys.executable}")
    folder = tmp_path_factory.mktemp("plain")
    for parent in folder.parents[: len(folder.parents) - 2]:
        if parent.stat().st_uid == 0 and parent.name.startswith("pytest"):
            parent.chmod(0o711)

    assert Build(folder, MACHINE, NOBODY).zip.read_bytes() == package.read_bytes()


# ----------------------------------------------------------------------------------------------------- what is in it


def test_it_is_small_enough_for_lambda(built: Path):
    assert built.stat().st_size < MAX_ZIPPED
    assert sum(entry.file_size for entry, _ in files(built)) < MAX_UNZIPPED


def test_every_library_is_for_the_processor_and_the_python_that_were_asked_for(built: Path, architecture: str):
    libraries = {entry.filename: content for entry, content in files(built) if ".so" in entry.filename}

    assert len(libraries) > 50
    for name, content in libraries.items():
        assert content[:4] == b"\x7fELF", name
        assert int.from_bytes(content[18:20], "little") == ELF_MACHINES[architecture], name
    modules = [name for name in libraries if ".cpython-" in name]
    assert len(modules) > 50
    assert all(f".cpython-{TAG[2:]}-" in name for name in modules)
    tags = re.findall(
        r"^Tag: (\S+)", "".join(c.decode() for e, c in files(built) if e.filename.endswith("/WHEEL")), re.M
    )
    assert {tag.split("-")[0] for tag in tags} <= {TAG, "py2", "py3"}


def test_mysqls_own_libraries_are_there(built: Path):
    libraries = {name for name in names(built) if name.startswith("mysql/vendor/") and not name.endswith("/")}

    assert {"mysql/vendor/libssl.so.3", "mysql/vendor/libcrypto.so.3"} <= libraries
    assert {name for name in libraries if "/plugin/" in name} == {"mysql/vendor/plugin/mysql_native_password.so"}


def test_every_script_has_its_bytecode_for_the_python_that_was_asked_for(built: Path):
    contents = {entry.filename: content for entry, content in files(built)}
    sources = [name for name in contents if name.endswith(".py")]

    assert len(sources) > 500
    for source in sources:
        bytecode = contents[importlib.util.cache_from_source(source)]
        assert bytecode[:4] == importlib.util.MAGIC_NUMBER, source
        assert bytecode[4:8] == b"\x01\0\0\0", source  # by hash, not compared with the source
        assert marshal.loads(bytecode[16:]).co_filename == f"/var/task/{source}"
    assert len([name for name in contents if name.endswith(".pyc")]) == len(sources)


def test_lambdas_user_may_read_all_of_it(built: Path):
    with zipfile.ZipFile(built) as package:
        for entry in package.infolist():
            mode = entry.external_attr >> 16
            expected = 0o040755 if entry.is_dir() else 0o100755 if ".so" in entry.filename else 0o100644
            assert mode == expected, entry.filename
            assert entry.create_system == 3


def test_its_dates_are_fixed_and_its_names_sorted(built: Path):
    with zipfile.ZipFile(built) as package:
        entries = package.infolist()

    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert [entry.filename.rstrip("/") for entry in entries] == sorted(entry.filename.rstrip("/") for entry in entries)


def test_it_holds_no_tests_and_nothing_that_the_pipeline_does_not_use(built: Path):
    for name in names(built):
        parts = Path(name).parts
        assert not {"test", "tests", "bin", "f2py", "aio", "django", "private"} & {*parts}, name
        assert parts[-1] not in ("conftest.py", "RECORD"), name
        assert not name.endswith((".sh", ".yaml", ".zip", ".pbix")), name
    assert not [name for name in names(built) if re.match(r"(_?pytest|responses|pip/|mysql/ai|boto)", name)]


def test_it_holds_no_secret(again: Build):
    assert PASSWORD in (again.project / ".env").read_text()
    assert not [name for name in names(again.zip) if ".env" in name]
    assert not any(PASSWORD.encode() in content for _, content in files(again.zip))


def test_it_holds_the_scripts_their_sql_and_the_ca_certificates(built: Path):
    contents = {entry.filename: content for entry, content in files(built)}
    scripts = ["etl_crypto.py", "segment_and_load.py", "pipeline_orchestrator.py"]
    scripts += [f"sql/{path.name}" for path in (PROJECT_DIR / "sql").iterdir() if path.suffix in (".py", ".sql")]

    assert {name: contents.get(name) for name in scripts} == {n: (PROJECT_DIR / n).read_bytes() for n in scripts}
    assert contents["sql/aws-rds-ca.pem"].decode() == PEM
    assert {name for name in contents if name.startswith("sql/") and "__pycache__" not in name} == {
        *(name for name in scripts if "/" in name),
        "sql/aws-rds-ca.pem",
    }


def test_the_packages_are_the_pinned_ones_and_fit_the_boto3_that_lambda_brings(built: Path):
    versions = dict(re.findall(r"^(\w+)-([\w.]+)\.dist-info/METADATA$", "\n".join(names(built)), re.M))
    pins = re.findall(r"^([\w-]+)==(\S+)", (PROJECT_DIR / "requirements.txt").read_text(), re.M)

    expected = {name.replace("-", "_"): version for name, version in pins if name not in ("pytest", "responses")}
    assert {name: versions.get(name) for name in expected} == expected
    assert versions["python_dateutil"].startswith("2.")
    assert versions["urllib3"].startswith(("1.", "2."))


# ------------------------------------------------------------------------------------------------------ does it run


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    shutil.unpack_archive(package, folder)
    return folder


def run(unpacked: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the package alone: -S leaves out what is installed here."""
    environment = {"PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="the package is for Linux")
def test_the_scripts_start_from_it_with_mysqls_fast_extension(unpacked: Path):
    code = "import pipeline_orchestrator, pandas, mysql.connector as m; print(m.HAVE_CEXT, pandas.__file__, m.__file__)"

    result = run(unpacked, "-W", "error", "-c", code)

    files = [f"{unpacked}/pandas/__init__.py", f"{unpacked}/mysql/connector/__init__.py"]
    assert result.stdout.split() == ["True", *files], result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the package is for Linux")
def test_nothing_is_compiled_when_it_starts(unpacked: Path):
    result = run(unpacked, "-v", "-c", "import pipeline_orchestrator, mysql.connector, pandas")

    assert result.returncode == 0
    loaded = re.findall(rf"^# code object from '?({re.escape(str(unpacked))}\S+?)'?$", result.stderr, re.M)
    assert len(loaded) > 200
    assert [path for path in loaded if not path.endswith(".pyc")] == []
