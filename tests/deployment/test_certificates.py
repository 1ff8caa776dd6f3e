import datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedmr_flwr.deployment.certificates import Authority, node_keys


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
