import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedmr_flwr.deployment.certificates import Authority, check_node, check_server, node_keys
from fedmr_flwr.errors import ConfigError


def test_server_certificate():
    authority = Authority("test")
    pem, key = authority.issue(["server.example", "10.1.2.3"])
    certificate, root = x509.load_pem_x509_certificate(pem), x509.load_pem_x509_certificate(authority.certificate)
    certificate.verify_directly_issued_by(root)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["server.example", "localhost"]
    assert [str(own) for own in names.get_values_for_type(x509.IPAddress)] == ["10.1.2.3", "127.0.0.1", "::1"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    lasts = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert 364 <= lasts.days <= 365
    assert serialization.load_pem_private_key(key, None).public_key() == certificate.public_key()


def test_authorities_trust_only_their_own():
    pem, _ = Authority("test").issue(["localhost"])
    other = x509.load_pem_x509_certificate(Authority("test").certificate)
    try:
        x509.load_pem_x509_certificate(pem).verify_directly_issued_by(other)
    except Exception as error:
        assert "Signature" in type(error).__name__
    else:
        raise AssertionError("it was verified")


def test_node_keys_match_and_differ():
    (public, private), (other, _) = node_keys(), node_keys()
    key = serialization.load_ssh_private_key(private, None)
    assert serialization.load_ssh_public_key(public) == key.public_key()
    assert public != other


@pytest.fixture
def files(tmp_path):
    """Return a function that writes the files of a server and a node, some of them with another content."""

    def write(days=365.0, **other):
        authority = Authority("test", days)
        certificate, key = authority.issue(["server.example"])
        contents = {"ca": authority.certificate, "crt": certificate, "key": key, "node": node_keys()[1]} | other
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
        return [tmp_path / name for name in contents]

    return write


def test_certificates_of_a_deployment_are_accepted(files):
    authority, certificate, key, node = files()
    check_server(authority, certificate, key, ["server.example"])
    check_node(authority, node)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crt": b"x"}, "cannot read .*crt with key: "),
        ({"key": b"x"}, "cannot read .*crt with key: "),
        (
            {"key": Authority("test").issue(["server.example"])[1]},
            "cannot read .*crt with key: .*key values mismatch",
        ),
        ({"ca": b"x"}, "cannot read .*ca: "),
        ({"ca": Authority("test").certificate}, "crt is not accepted by who trusts .*ca: "),
        ({"days": -0.002}, "crt is not accepted by who trusts .*ca: certificate has expired"),
    ],
)
def test_server_with_wrong_files_is_refused(files, change, words):
    authority, certificate, key, _ = files(**change)
    with pytest.raises(ConfigError, match=f"{words}.*; copy the files of `fedmr deploy init` again"):
        check_server(authority, certificate, key, ["server.example"])


def test_server_of_another_name_is_refused(files):
    authority, certificate, key, _ = files()
    with pytest.raises(ConfigError, match="certificate is not valid for 'other.example'"):
        check_server(authority, certificate, key, ["server.example", "other.example"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ca": b"x"}, "cannot read .*ca: "),
        ({"node": b"x"}, "cannot read .*node: "),
        ({"days": -0.002}, "ca is valid from .*, and the clock of this machine says "),
    ],
)
def test_node_with_wrong_files_is_refused(files, change, words):
    authority, _, _, key = files(**change)
    with pytest.raises(ConfigError, match=words):
        check_node(authority, key)
