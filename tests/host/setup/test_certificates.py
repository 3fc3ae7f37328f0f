"""Certificates: who is trusted, for which names, and when they are made anew."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from torpor.host.setup.certificates import (
    Certificates,
    are_certificates_current,
    endpoint_names,
    ensure_certificates,
    names_of,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def ensure(folder: Path, region: str = "us-east-1", now: datetime = NOW) -> Certificates:
    return ensure_certificates(folder, "localhost", region, now=now)


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_server_certificate_is_for_endpoints_and_this_machine(tmp_path: Path) -> None:
    server = read(ensure(tmp_path).server)
    assert set(names_of(server)) == {"*.lambda-microvm.us-east-1.localhost", "localhost"}
    addresses = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(address) for address in addresses.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_the_authority_signed_the_server_certificate_and_may_sign_no_other_authority(tmp_path: Path) -> None:
    made = ensure(tmp_path)
    authority = read(made.ca)
    read(made.server).verify_directly_issued_by(authority)
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)


def test_openssl_accepts_the_pair(tmp_path: Path) -> None:
    made = ensure(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server, made.server_key)
    context.load_verify_locations(made.ca)


def test_keys_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    ensure(tmp_path)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {
        "ca.key": 0o600, "ca.pem": 0o644, "server.key": 0o600, "server.pem": 0o644,
    }  # fmt: skip


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    ensure(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ensure(tmp_path, now=NOW + timedelta(days=300))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_within_30_days_of_expiry_the_server_certificate_is_renewed_and_the_authority_stays(tmp_path: Path) -> None:
    made = ensure(tmp_path)
    server, authority = read(made.server), read(made.ca)
    late = server.not_valid_after_utc - timedelta(days=29)
    assert not are_certificates_current(tmp_path, "localhost", "us-east-1", now=late)
    ensure(tmp_path, now=late)
    assert read(made.server).serial_number != server.serial_number
    assert read(made.ca).serial_number == authority.serial_number


def test_a_renewed_authority_keeps_its_key(tmp_path: Path) -> None:
    made = ensure(tmp_path)
    authority = read(made.ca)
    late = authority.not_valid_after_utc - timedelta(days=10)
    ensure(tmp_path, now=late)
    renewed = read(made.ca)
    assert renewed.serial_number != authority.serial_number
    assert renewed.public_key() == authority.public_key()
    assert are_certificates_current(tmp_path, "localhost", "us-east-1", now=late)


def test_another_region_is_added_to_the_names(tmp_path: Path) -> None:
    ensure(tmp_path)
    names = names_of(read(ensure(tmp_path, region="eu-west-1").server))
    assert set(names) == {*endpoint_names("localhost", "us-east-1"), *endpoint_names("localhost", "eu-west-1")}
    assert are_certificates_current(tmp_path, "localhost", "us-east-1", now=NOW)


def test_a_key_of_another_certificate_is_replaced(tmp_path: Path) -> None:
    made = ensure(tmp_path / "one")
    other = ensure(tmp_path / "two")
    made.server_key.write_bytes(other.server_key.read_bytes())
    assert not are_certificates_current(tmp_path / "one", "localhost", "us-east-1", now=NOW)
    ensure(tmp_path / "one")
    assert are_certificates_current(tmp_path / "one", "localhost", "us-east-1", now=NOW)


@pytest.mark.parametrize("name", ["ca.pem", "ca.key", "server.pem", "server.key"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_damaged_file_is_replaced(tmp_path: Path, name: str, content: bytes) -> None:
    ensure(tmp_path)
    (tmp_path / name).write_bytes(content)
    ensure(tmp_path)
    assert are_certificates_current(tmp_path, "localhost", "us-east-1", now=NOW)


def test_one_certificate_is_good_for_all_regions_that_are_served(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path, "localhost", "us-east-1", "eu-west-1", now=NOW)
    names = names_of(x509.load_pem_x509_certificate(made.server.read_bytes()))
    assert {"*.lambda-microvm.us-east-1.localhost", "*.lambda-microvm.eu-west-1.localhost"} <= set(names)
