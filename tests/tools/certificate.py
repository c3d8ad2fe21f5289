"""A self-signed certificate for host.example, localhost and 127.0.0.1, and its key: for tests, worth nothing elsewhere.

Made with: openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj /CN=host.example
-addext subjectAltName=DNS:host.example,DNS:localhost,IP:127.0.0.1
"""

import ssl
from pathlib import Path

KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQglul9Zk307T0KWq1f
9qycUu8EQvv9K54KH8ACtDlaYLKhRANCAATJyXAmGG8M3Up1dVvoXxktPFY++d4Z
CE1UNTP6K/8LDrPfH7l3plggkT/9vSwpUyBrZIdAUkg6FrzMGqau71R2
-----END PRIVATE KEY-----
"""

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBsDCCAVWgAwIBAgIUeDVf8C69LiTBIgBtLgFnfNpCqCIwCgYIKoZIzj0EAwIw
FzEVMBMGA1UEAwwMaG9zdC5leGFtcGxlMCAXDTI2MTEyNDA3MTQyNloYDzIxMjYx
MDMxMDcxNDI2WjAXMRUwEwYDVQQDDAxob3N0LmV4YW1wbGUwWTATBgcqhkjOPQIB
BggqhkjOPQMBBwNCAATJyXAmGG8M3Up1dVvoXxktPFY++d4ZCE1UNTP6K/8LDrPf
H7l3plggkT/9vSwpUyBrZIdAUkg6FrzMGqau71R2o30wezAdBgNVHQ4EFgQU352k
sJJpBi8lOP6/n2v23e+A2bowHwYDVR0jBBgwFoAU352ksJJpBi8lOP6/n2v23e+A
2bowDwYDVR0TAQH/BAUwAwEB/zAoBgNVHREEITAfggxob3N0LmV4YW1wbGWCCWxv
Y2FsaG9zdIcEfwAAATAKBggqhkjOPQQDAgNJADBGAiEArLigDXnW1KcFZJ3sTjug
cbGdZWewZCke14z6ivJZRD4CIQCv5hUXmEFMvtWLVSeA8z68hmbN88rFURkcjKxm
jSH+UQ==
-----END CERTIFICATE-----
"""


def write(directory: Path) -> tuple[Path, Path]:
    """(certificate file, key file) in a directory of the caller's."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    certificate.write_text(CERTIFICATE)
    key.touch(0o600)
    key.write_text(KEY)
    return certificate, key


def server_context(directory: Path) -> ssl.SSLContext:
    certificate, key = write(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def client_context() -> ssl.SSLContext:
    """One that trusts this certificate and nothing else."""
    return ssl.create_default_context(cadata=CERTIFICATE)
