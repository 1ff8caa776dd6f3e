"""A private certificate authority, a server certificate, and a key pair for each node."""

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmr_flwr.errors import ConfigError
from fedmr_flwr.files import reading

# Flower accepts it for its nodes' keys, and it is fast for TLS.
_CURVE = ec.SECP384R1()
_DAYS = 365
_REMEDY = "copy the files of `fedmr deploy init` again, or make a new deployment"
# The ServerApp talks to its SuperLink on the same machine.
_LOCAL = ("localhost", "127.0.0.1", "::1")


class Authority:
    """A certificate authority whose private key is never written.

    So nobody can issue another certificate that the nodes trust; another server name needs a new authority.

    Args:
        name: for people who read the certificate.
        days: the validity of its certificates.
    """

    def __init__(self, name: str, days: float = _DAYS) -> None:
        self._key = ec.generate_private_key(_CURVE)
        self._days = days
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            key_cert_sign=True, crl_sign=True, digital_signature=False, content_commitment=False,
            key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
            decipher_only=False,
        )  # fmt: skip
        self._certificate = (
            self._begin(self._name, self._key.public_key())
            # It may sign certificates of servers, not of other authorities.
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA384())
        )

    @property
    def certificate(self) -> bytes:
        """The authority's certificate, which clients trust, as PEM."""
        return self._certificate.public_bytes(Encoding.PEM)

    def issue(self, hosts: Sequence[str]) -> tuple[bytes, bytes]:
        """Issue a server's certificate and its private key.

        Args:
            hosts: the names and addresses by which clients reach it; this machine's own are added.

        Returns:
            The certificate and the key, as PEM.
        """
        key = ec.generate_private_key(_CURVE)
        names = [_general_name(host) for host in dict.fromkeys([*hosts, *_LOCAL])]
        # X.509 limits a common name to 64 characters.
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
        certificate = (
            self._begin(subject, key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA384())
        )
        return certificate.public_bytes(Encoding.PEM), _private(key, PrivateFormat.PKCS8)

    def _begin(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks of other machines may be slow
            .not_valid_after(now + datetime.timedelta(days=self._days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )


def node_keys() -> tuple[bytes, bytes]:
    """Create a node's key pair.

    Returns:
        The public and the private key, in OpenSSH's format, which Flower expects.
    """
    key = ec.generate_private_key(_CURVE)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return public + b"\n", _private(key, PrivateFormat.OpenSSH)


def check_server(authority: Path, certificate: Path, key: Path, hosts: Sequence[str]) -> None:
    """Check that whoever trusts an authority accepts a server, by a handshake for each of its names.

    Args:
        authority: the file with the authority's certificate.
        certificate: the file with the server's.
        key: the file with its private key.
        hosts: the names by which clients reach it; this machine's own are added.

    Raises:
        ConfigError: a file cannot be read; or a certificate is of another authority or name, or not valid now.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with reading(f"{certificate} with {key.name}", ConfigError, _REMEDY):
        server.load_cert_chain(certificate, key, password="")  # or OpenSSL would ask for it
    client = _trusting(authority)
    for host in dict.fromkeys([*hosts, *_LOCAL]):
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        sides = [client.wrap_bio(down, up, server_hostname=host), server.wrap_bio(up, down, server_side=True)]
        try:
            for side in sides * 2:
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        except ssl.SSLCertVerificationError as error:
            reason = error.verify_message.rstrip(".")
            raise ConfigError(
                f"{certificate} is not accepted by who trusts {authority}: {reason}; {_REMEDY}"
            ) from None


def check_node(authority: Path, key: Path) -> None:
    """Check a node's files.

    Args:
        authority: the file with the certificate of the authority that it trusts.
        key: the file with its private key.

    Raises:
        ConfigError: a file cannot be read, or the authority's certificate is not valid now.
    """
    _trusting(authority)
    with reading(authority, ConfigError, _REMEDY):
        certificates = x509.load_pem_x509_certificates(authority.read_bytes())
    now = datetime.datetime.now(datetime.UTC)
    for each in certificates:
        first, last = each.not_valid_before_utc, each.not_valid_after_utc
        if not first <= now <= last:
            raise ConfigError(
                f"{authority} is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d}, and the clock of this machine says "
                f"{now:%Y-%m-%d}; {_REMEDY}"
            )
    with reading(key, ConfigError, _REMEDY):
        load_ssh_private_key(key.read_bytes(), None)


def _trusting(authority: Path) -> ssl.SSLContext:
    with reading(authority, ConfigError, _REMEDY):
        return ssl.create_default_context(cafile=authority)


def _private(key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
