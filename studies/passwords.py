"""Remove passwords from URLs, so that none is written to a file, a run, a report or the terminal."""

import re

_PORT = r"\d*(?:[/?#]|$)"
_TO_LAST_AT = r"(?:[^\s@]*@(?=[^\s/?#]*@))*[^\s@]*(?=@)"
_AFTER_USER = re.compile(rf"(://[^\s:/?#\[]*):(?!{_PORT}){_TO_LAST_AT}")
_IN_QUERY = re.compile(r"([?&])(?:ssl)?pass(?:word|wd)=[^\s&]*&?", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Return a text whose URLs have no passwords: `postgresql://me:secret@host/db` becomes `postgresql://me@host/db`.

    Such a URL still works: PostgreSQL's library reads the password from PGPASSWORD or a password file, and MLflow's
    client reads user and password of a server from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """
    return _IN_QUERY.sub(r"\1", _AFTER_USER.sub(r"\1", text))
