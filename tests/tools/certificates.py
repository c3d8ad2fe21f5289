"""A certificate authority of our own, made with openssl(1): for tests of TLS."""

import ssl
import subprocess
from pathlib import Path

_DAYS = "30"


def _run(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=30)


def make(directory: Path, *names: str, expired: bool = False) -> tuple[Path, ssl.SSLContext]:
    """(certificate of the CA, context of a server with a certificate for `names`). Elliptic keys: they take no time."""
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    key, request, chain = directory / "host.key", directory / "host.csr", directory / "host.pem"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    if not ca.exists():
        _run("req", "-x509", *curve, "-keyout", str(ca_key), "-out", str(ca), "-days", _DAYS, "-subj", "/CN=Test CA",
             "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    _run("req", *curve, "-keyout", str(key), "-out", str(request), "-subj", f"/CN={names[0]}")
    kinds = ",".join(f"{'IP' if name.replace('.', '').isdigit() else 'DNS'}:{name}" for name in names)
    extensions = directory / "host.ext"
    extensions.write_text(f"subjectAltName={kinds}\nauthorityKeyIdentifier=none\n")  # as private ones often are
    when = ("-days", "-1") if expired else ("-days", _DAYS)
    _run("x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(ca_key), "-CAcreateserial", *when,
         "-extfile", str(extensions), "-out", str(chain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return ca, context
