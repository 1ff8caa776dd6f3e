"""A private certificate authority, a server certificate, and a key pair for each node."""

import datetime
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Flower accepts it for its nodes' keys, and it is fast for TLS.
_CURVE = ec.SECP384R1()
_DAYS = 365
# The ServerApp talks to its SuperLink on the same machine.
_LOCAL = ("localhost", "127.0.0.1", "::1")


class Authority:
    """A certificate authority whose private key is never written.

    So nobody can issue another certificate that the nodes trust; another server name needs a new authority.

    Args:
        name: for people who read the certificate.
        days: the validity of its certificates.
    """

    def __init__(self, name: str, days: int = _DAYS) -> None:
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


def _private(key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
