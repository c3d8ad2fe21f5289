"""PAM: whether this host's own authentication lets a user in ([auth] pam), through pampy (Debian: python3-pampy,
which in bookworm needs python3-six and does not say so).

The service is "smtp": /etc/pam.d/smtp where there is one, else /etc/pam.d/other, which on Debian is the same as for
other logins. It blocks, may load whatever an administrator has configured, and needs root for shadow passwords: call it
in a process that is made for one check (auth/keeper.py). A verdict that PAM cannot reach is trouble, not a "no".
"""

from .optional import optional

SERVICE = "smtp"

# What PAM says about user and password; every other code is about itself. (pam_authenticate(3), pam_acct_mgmt(3))
_NO = frozenset((
    6,  # PAM_PERM_DENIED
    7,  # PAM_AUTH_ERR
    8,  # PAM_CRED_INSUFFICIENT
    10,  # PAM_USER_UNKNOWN
    11,  # PAM_MAXTRIES
    12,  # PAM_NEW_AUTHTOK_REQD
    13,  # PAM_ACCT_EXPIRED
    27,  # PAM_AUTHTOK_EXPIRED
))


class Trouble(Exception):
    """PAM could not tell. The text says why, without any secret."""


def is_available() -> bool:
    return optional("pam") is not None


def fits(user: str, password: str) -> bool:
    """Whether PAM lets this user in. Raises Trouble."""
    library = optional("pam")
    if library is None:
        raise Trouble("python3-pampy, or python3-six, is not installed")
    if not user or not password:
        return False
    try:
        asked = library.PamAuthenticator()
        if asked.authenticate(user, password, service=SERVICE, resetcreds=False):
            return True
    except Exception as problem:  # noqa: BLE001 - whatever a library of C functions raises; its text may hold secrets
        raise Trouble(type(problem).__name__) from None
    if asked.code in _NO:
        return False
    raise Trouble(str(asked.reason))
