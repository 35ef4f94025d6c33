"""The place that runs are written to: which URIs can work, how SQLite is opened, and what an error of it is called."""

import contextlib
import gc
import importlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy import orm

from vaebench.studies.tracking.record import StoreError
from vaebench.vae.errors import InputError, sentence

SCHEMES = ("http", "https", *DATABASE_ENGINES)


def default_uri(folder: Path) -> str:
    """Return the database that `mlflow ui` opens when it is started in this folder."""
    path = folder.resolve() / "mlflow.db"
    if "?" in str(path):
        raise InputError(
            f"no URL can name the database {path}, since a ? begins its options; start in another folder, or give "
            "--tracking-uri."
        )
    return f"sqlite:///{path}"


def choose_uri(option: str | None) -> str | None:
    """Return the URI that `--tracking-uri` names, the database in this folder by default; None where it is `none`."""
    return None if option == "none" else resolve_uri(option)


def resolve_uri(option: str | None) -> str:
    """Return the URI that an option names, the database in this folder by default; one that cannot work is refused."""
    uri = option or default_uri(Path())
    require_writable(uri)
    return uri


def require_writable(uri: str) -> None:
    """Refuse a tracking URI that can never work; a server that does not answer may still come back."""
    path = sqlite_path(uri)
    if path is not None and not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write to {path.parent}, where MLflow's database would be; give --tracking-uri.")
    scheme, _, place = uri.partition("://")
    if scheme.partition("+")[0] not in SCHEMES or not place:
        raise InputError(
            f"--tracking-uri takes http://HOST:PORT or the URL of a database ({', '.join(DATABASE_ENGINES)}), "
            f"got {uri!r}."
        )
    if scheme.startswith("http"):
        try:
            host, _ = urlsplit(uri).hostname, urlsplit(uri).port
        except ValueError:
            host = None
        if not host:
            raise InputError(f"--tracking-uri takes http://HOST:PORT, with a port below 65536; got {uri!r}.")


def preload_store(uri: str) -> None:
    """Import the modules that open a database once before the fork; it would take each forked process half a second."""
    if not uri.startswith("http"):
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
        orm.configure_mappers()


def sync_at_checkpoints_only() -> None:
    """Do not wait for the disk after each commit to SQLite, which saves eight waits a trial.

    The write-ahead log survives the end of any process. After a power failure the curves of the last trials may be
    missing. Optuna's journal still has their results, and a record is deleted from the outbox only after a `sync`.
    """
    if not sqlalchemy.event.contains(sqlalchemy.Engine, "connect", _set_synchronous_normal):
        sqlalchemy.event.listen(sqlalchemy.Engine, "connect", _set_synchronous_normal)


def _set_synchronous_normal(connection: Any, _: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        ((mode,),) = connection.execute("PRAGMA journal_mode")
        if mode == "wal":
            connection.execute("PRAGMA synchronous=NORMAL")


def run_pragma(uri: str, command: str) -> None:
    """Run a PRAGMA command of SQLite, if the tracker is a file of this machine."""
    path = sqlite_path(uri)
    if path is not None and path.exists():
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute(f"PRAGMA {command}")


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite database; None for any other URI."""
    try:
        url = sqlalchemy.make_url(uri) if uri.startswith("sqlite") else None
    except sqlalchemy.exc.ArgumentError as error:
        raise InputError(f"--tracking-uri takes sqlite:///FILE for a file, got {uri!r}.") from error
    return Path(url.database).resolve() if url is not None and url.database else None


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn the errors of a tracker that cannot be reached into `StoreError`, with the garbage collector off.

    MLflow creates an object for each row, and repeated collections over all objects of torch and MLflow would take two
    thirds of the time in which 5 000 runs are read.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError, sqlite3.Error) as error:
        raise StoreError(f"the tracker cannot be reached ({_find_cause(error)})") from error
    finally:
        if was_enabled:
            gc.enable()


def _find_cause(error: BaseException) -> str:
    """Return the sentence of the error that a chain began with; clients wrap `Connection refused` in 400 characters."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return sentence(error)[:200]
