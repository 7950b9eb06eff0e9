"""TLS: only a database server with the right certificate and name gets a login, only a trusted CoinGecko a call."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Scripts, make_settings, one_line_error
from tests.installation import Installation
from tests.own_server import Command, OwnDatabase, OwnServer, Proxy
from tests.stub_coingecko import SAMPLE_FILES, StubCoinGecko

LOGINS = "general.log"
NO_CA = {"MYSQL_SSL_CA": "", "MYSQL_USER": "u", "MYSQL_PASSWORD": "p"}

# --------------------------------------------------------------------------------------------- certificates and servers


class Certificates(NamedTuple):
    """PEM files: the server's certificate, which is for the name localhost, its CA, and a CA of somebody else's."""

    ca: Path
    other_ca: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl command, which makes the certificates")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new_key = ["-newkey", "rsa:2048", "-nodes"]
    for name in ("ca", "other-ca"):
        openssl("req", "-x509", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    openssl("req", *new_key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName = DNS:localhost\n", encoding="ascii")
    signed_by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
    openssl("x509", "-req", "-in", "server.csr", "-out", "server.pem", *signed_by)
    return Certificates(*(folder / name for name in ("ca.pem", "other-ca.pem", "server.pem", "server.key")))


@pytest.fixture(scope="module")
def tls_server(
    server_command: Command, server_data: Path, tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[OwnServer]:
    own = OwnServer(
        server_command,
        server_data,
        tmp_path_factory.mktemp("tls") / "server",
        f"--ssl-ca={certificates.ca}",
        f"--ssl-cert={certificates.certificate}",
        f"--ssl-key={certificates.key}",
        "--general-log=ON",
        f"--general-log-file={LOGINS}",
    )
    yield own
    own.remove()


@pytest.fixture
def plain_server(server_command: Command, server_data: Path, tmp_path: Path) -> Iterator[OwnServer]:
    """A server without TLS."""
    no_tls = "--skip-ssl" if server_command.is_mariadb else "--tls-version="
    own = OwnServer(server_command, server_data, tmp_path / "plain", no_tls)
    yield own
    own.remove()


@pytest.fixture
def tls_scripts(scripts: Scripts, tls_server: OwnServer, certificates: Certificates) -> Iterator[Scripts]:
    """The scripts, as they should be set for the server with TLS, by an account that has to use it."""
    database = OwnDatabase(tls_server)
    database.execute(f"ALTER USER '{database.user}'@'%' REQUIRE SSL")
    scripts.settings |= database.settings() | {"MYSQL_HOST": "localhost", "MYSQL_SSL_CA": str(certificates.ca)}
    yield scripts
    database.drop()


@pytest.fixture
def new_installation(tls_server: OwnServer, tmp_path: Path) -> Iterator[Installation]:
    """A checkout that is to be set up on the server with TLS."""
    installation = Installation(tmp_path / "checkout", tls_server)
    yield installation
    installation.clean()


def has_login(own: OwnServer, scripts: Scripts) -> bool:
    log = (own.folder / "data" / LOGINS).read_text(encoding="utf-8", errors="replace")
    return f"\t{scripts.settings['MYSQL_USER']}@" in log


# ---------------------------------------------------------------------------------------------- which server is trusted


def test_a_server_with_a_certificate_of_the_right_ca_and_name_is_trusted(tls_scripts: Scripts, tls_server: OwnServer):
    result = tls_scripts.pipeline()

    assert result.returncode == 0, result.stderr
    assert has_login(tls_server, tls_scripts)


@pytest.mark.parametrize("wrong", ["CA", "name"])
def test_a_server_with_a_certificate_of_another_is_refused(
    tls_scripts: Scripts, tls_server: OwnServer, api: StubCoinGecko, certificates: Certificates, wrong: str
):
    if wrong == "CA":
        result = tls_scripts.pipeline(MYSQL_SSL_CA=str(certificates.other_ca))
    else:
        result = tls_scripts.pipeline(MYSQL_HOST="127.0.0.1")

    one_line_error(result, 4, "no trusted TLS connection to", "check MYSQL_SSL_CA", "MYSQL_HOST is the name in")
    assert not has_login(tls_server, tls_scripts)
    assert api.requests == []


@pytest.mark.parametrize("where", ["on the server", "on the way"])
def test_a_server_without_tls_is_refused_when_there_is_a_ca(
    request: pytest.FixtureRequest, tls_scripts: Scripts, tls_server: OwnServer, api: StubCoinGecko, where: str
):
    own = request.getfixturevalue("plain_server") if where == "on the server" else tls_server
    with closing(Proxy(own.port)) as proxy:  # which takes TLS off
        result = tls_scripts.pipeline(MYSQL_PORT=str(proxy.port))

    one_line_error(result, 4, "no trusted TLS connection to", "check MYSQL_SSL_CA")
    assert tls_scripts.settings["MYSQL_USER"].encode() not in proxy.sent
    assert api.requests == []


def test_a_database_is_created_over_tls_and_the_pipeline_uses_it(
    new_installation: Installation, certificates: Certificates
):
    new_installation.made("--ssl-ca", certificates.ca)

    assert new_installation.env()["MYSQL_SSL_CA"] == str(certificates.ca)
    assert new_installation.pipeline("-q", "--replay", SAMPLE_FILES[-1]).returncode == 0


@pytest.mark.parametrize("wrong", ["CA", "no TLS"])
def test_a_server_that_is_not_to_be_trusted_gets_no_new_passwords(
    new_installation: Installation, certificates: Certificates, tls_server: OwnServer, wrong: str
):
    with closing(Proxy(tls_server.port)) as proxy:  # which takes TLS off
        if wrong == "no TLS":
            line = new_installation.refused(4, "--ssl-ca", certificates.ca, "--port", proxy.port)
        else:
            line = new_installation.refused(4, "--ssl-ca", certificates.other_ca)

    assert "no trusted TLS connection" in line
    assert "--ssl-ca" in line
    assert new_installation.left() == []


# ------------------------------------------------------------------------------------------ a server of another machine


@pytest.mark.parametrize("host", ["db.example.com", "10.0.0.1", "192.168.1.7", "::2", "localhost.example.com"])
def test_a_server_of_another_machine_needs_a_ca_file_before_it_gets_a_password(
    scripts: Scripts, api: StubCoinGecko, host: str
):
    result = scripts.pipeline(MYSQL_HOST=host, **NO_CA)

    one_line_error(result, 2, f"MYSQL_SSL_CA is empty, so whoever answers as '{host}' would get the password", "none")
    assert api.requests == []


@pytest.mark.parametrize(
    ("host", "ca"),
    [
        ("localhost", ""),
        ("LOCALHOST", ""),
        ("127.0.0.1", ""),
        ("127.1.2.3", ""),
        ("::1", ""),
        ("10.0.0.1", "none"),
        ("db", " None "),
    ],
)
def test_a_server_of_this_machine_or_none_needs_no_ca_file(host: str, ca: str):
    assert make_settings(MYSQL_HOST=host, MYSQL_SSL_CA=ca).server.ssl_ca is None


# ------------------------------------------------------------------------------------------------------------ CoinGecko


def test_a_certificate_of_coingecko_that_is_not_trusted_ends_the_run_at_once_and_names_the_variable(
    scripts: Scripts, api: StubCoinGecko, certificates: Certificates
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    api.server.socket = context.wrap_socket(api.server.socket, server_side=True)

    result = scripts.pipeline(COINGECKO_BASE_URL=api.url.replace("http:", "https:"), RETRY_BUDGET_SECONDS="600")

    one_line_error(result, 3, "the certificate of https://127.0.0.1", "is not trusted", "set REQUESTS_CA_BUNDLE")
    assert "trying again" not in result.stderr
