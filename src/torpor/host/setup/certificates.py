"""The local certificate authority and the server certificate for endpoints. Needs no root.

A client trusts `ca.pem`; endpoints answer with `server.pem`, valid for every region that was ever asked for.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_CERTIFICATE: Final = "ca.pem"
CA_KEY: Final = "ca.key"
SERVER_CERTIFICATE: Final = "server.pem"
SERVER_KEY: Final = "server.key"

CA_LIFETIME: Final = timedelta(days=3650)
SERVER_LIFETIME: Final = timedelta(days=397)
"""The longest that browsers accept."""
RENEWED_BEFORE: Final = timedelta(days=30)
CLOCK_SLACK: Final = timedelta(hours=1)
"""How far a client's clock may be behind."""
LOOPBACK: Final = ipaddress.IPv4Address("127.0.0.1")


@dataclass(frozen=True, slots=True)
class Certificates:
    """Where the files are."""

    ca: Path
    server: Path
    server_key: Path


def endpoint_names(domain: str, *regions: str) -> list[str]:
    """The DNS names a server certificate needs for the endpoints of these regions."""
    return [*(f"*.lambda-microvm.{region}.{domain}" for region in regions), "localhost"]


def ensure_certificates(ca_dir: Path, domain: str, *regions: str, now: datetime | None = None) -> Certificates:
    """Make what is missing, expires within 30 days, or lacks the names; the rest stays as it is. Blocking.

    A renewed authority keeps its key, so clients that trust the old certificate go on.
    """
    now = now or datetime.now(UTC)
    ca_dir.mkdir(parents=True, exist_ok=True)
    authority = _load(ca_dir, CA_CERTIFICATE, CA_KEY)
    if authority is None or not _is_current(authority[0], now):
        key = authority[1] if authority else ec.generate_private_key(ec.SECP256R1())
        authority = (_make_authority(key, now), key)
        _write(ca_dir, CA_CERTIFICATE, CA_KEY, authority)
    if not are_certificates_current(ca_dir, domain, *regions, now=now):
        server = _load(ca_dir, SERVER_CERTIFICATE, SERVER_KEY)
        known = names_of(server[0]) if server else []
        names = list(dict.fromkeys([*endpoint_names(domain, *regions), *known]))
        key = ec.generate_private_key(ec.SECP256R1())
        _write(ca_dir, SERVER_CERTIFICATE, SERVER_KEY, (_make_server(names, key, authority, now), key))
    return Certificates(ca_dir / CA_CERTIFICATE, ca_dir / SERVER_CERTIFICATE, ca_dir / SERVER_KEY)


def are_certificates_current(ca_dir: Path, domain: str, *regions: str, now: datetime | None = None) -> bool:
    """Whether `ensure_certificates` would change nothing. Blocking."""
    now = now or datetime.now(UTC)
    authority = _load(ca_dir, CA_CERTIFICATE, CA_KEY)
    server = _load(ca_dir, SERVER_CERTIFICATE, SERVER_KEY)
    if authority is None or server is None:
        return False
    return (
        set(endpoint_names(domain, *regions)) <= set(names_of(server[0]))
        and all(_is_current(pair[0], now) for pair in (authority, server))
        and _issued(server[0], authority[0])
    )


def names_of(certificate: x509.Certificate) -> list[str]:
    """The DNS names of a certificate."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return extension.value.get_values_for_type(x509.DNSName)


Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _load(folder: Path, certificate_name: str, key_name: str) -> Pair | None:
    """The pair when both files are there, readable and belong together."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / certificate_name).read_bytes())
        key = serialization.load_pem_private_key((folder / key_name).read_bytes(), password=None)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        return None
    return certificate, key


def _is_current(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc - RENEWED_BEFORE


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _make_authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = _name("Torpor local authority")
    builder = _builder(name, name, key.public_key(), now, CA_LIFETIME)
    usage = _usage(signs_certificates=True)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())


def _make_server(
    names: Iterable[str], key: ec.EllipticCurvePrivateKey, authority: Pair, now: datetime
) -> x509.Certificate:
    certificate, ca_key = authority
    lifetime = min(SERVER_LIFETIME, certificate.not_valid_after_utc - now)
    builder = _builder(_name("Torpor endpoints"), certificate.subject, key.public_key(), now, lifetime)
    alternatives = [*(x509.DNSName(name) for name in names), x509.IPAddress(LOOPBACK)]
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(issuer, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _write(folder: Path, certificate_name: str, key_name: str, pair: Pair) -> None:
    certificate, key = pair
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # The key first: a crash in between leaves a pair that does not match, which the next run makes anew.
    _publish(folder / key_name, secret, 0o600)
    _publish(folder / certificate_name, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _publish(final: Path, data: bytes, mode: int) -> None:
    new = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.rename(final)
    finally:
        new.unlink(missing_ok=True)
