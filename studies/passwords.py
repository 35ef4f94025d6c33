"""Remove passwords from URLs, so that none is written to a file, a run, a report or the terminal."""

import re

_AFTER_USER = re.compile(r"(://[^\s:/?#@\[]*):[^\s@]*(?=@)")
_IN_QUERY = re.compile(r"([?&])password=[^\s&'\"]*&?")


def without_passwords(text: str) -> str:
    """Return a text whose URLs have no passwords: `postgresql://me:secret@host/db` becomes `postgresql://me@host/db`.

    Such a URL still works: PostgreSQL's library reads the password from PGPASSWORD or a password file, and MLflow's
    client that of a server from MLFLOW_TRACKING_PASSWORD.
    """
    return _IN_QUERY.sub(r"\1", _AFTER_USER.sub(r"\1", text))
