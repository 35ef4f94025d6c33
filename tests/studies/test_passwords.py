"""Passwords in URLs: none is left, and nothing else changes."""

import json
import sys
from urllib.parse import urlsplit

import pytest
import sqlalchemy

from vaebench.studies import sweep as sweep_command
from vaebench.studies.command_line import format_command
from vaebench.studies.commands import sweep
from vaebench.studies.passwords import without_passwords
from vaebench.studies.tracking import views

DATABASES = [
    "postgresql+psycopg://me:secret@host:5432/db?sslmode=require",
    "postgresql://me:secret:secret@host/db",
    "postgresql://:secret@host/db",
    "postgresql://me:1secret2@[::1]:5432/db",
]
UNCHANGED = [
    "sqlite:////tmp/mlflow.db",
    "http://127.0.0.1:5000",
    "http://host:5000/team@x",
    "http://127.0.0.1:5000/#/models/mine@champion",
    "postgresql+psycopg://me@host:5432/db",
    "postgresql://[::1]:5432/db",
    "postgresql://h:5432/db?user=me@corp",
    "models:/mine@champion",
    "runs/mine/study.journal",
]


@pytest.mark.parametrize("url", DATABASES)
def test_of_a_database_user_host_and_place_stay(url):
    left, before = sqlalchemy.make_url(without_passwords(url)), sqlalchemy.make_url(url)
    assert "secret" not in str(left)
    assert left.password is None
    for part in ("drivername", "host", "port", "database", "query"):
        assert getattr(left, part) == getattr(before, part)
    assert (left.username or "") == (before.username or "")


@pytest.mark.parametrize(
    "url", ["http://me:secret@host:5000/team@x", "https://me:se@cret@host:5000", "http://me:@host"]
)
def test_of_a_server_user_host_and_place_stay(url):
    left, before = urlsplit(without_passwords(url)), urlsplit(url)
    assert "cret" not in left.geturl()
    assert left.password is None
    assert (left.username, left.hostname, left.port, left.path) == ("me", "host", before.port, before.path)


@pytest.mark.parametrize("name", ["password", "PASSWORD", "passwd", "sslpassword"])
def test_a_password_among_the_options_of_a_url_is_removed_too(name):
    for url in (f"postgresql://h/db?user=me&{name}=secret", f"postgresql://h/db?{name}=secret&user=me"):
        left = sqlalchemy.make_url(without_passwords(url))
        assert (left.host, left.database, dict(left.query)) == ("h", "db", {"user": "me"})


@pytest.mark.parametrize("url", UNCHANGED)
def test_a_url_without_password_stays_as_it_is(url):
    assert without_passwords(url) == url
    assert without_passwords(f"see {url} and {url}") == f"see {url} and {url}"


def test_each_url_of_a_text_loses_its_own():
    text = "from postgresql://me:secret@host/db to http://you:hidden@other:5000."
    assert without_passwords(text) == "from postgresql://me@host/db to http://you@other:5000."


def test_neither_a_printed_command_nor_a_kept_plan_nor_an_address_has_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [
        "--storage",
        "postgresql://me:sec'ret@h/db",
        "--tracking-uri",
        "http://me:secret@h:5000",
        "--study",
        "mine",
    ]
    plan = sweep.make_plan(sweep_command.parser().parse_args(given))
    assert "sec'ret" in plan.storage, "the process itself needs it"
    plan.folder.mkdir(parents=True)
    plan.save()
    kept = json.loads((plan.folder / "plan.json").read_text())
    assert (kept["storage"], kept["tracking"]) == ("postgresql://me@h/db", "http://me@h:5000")
    monkeypatch.setattr(sys, "argv", ["studies/sweep.py"])
    assert format_command("sweep", *given[:4]) == (
        "python studies/sweep.py --storage postgresql://me@h/db --tracking-uri http://me@h:5000"
    )
    assert {address.partition("/#")[0] for address in views.list_addresses(plan.tracking, "1", []).values()} == {
        "http://me@h:5000"
    }
    with pytest.raises(SystemExit):
        sweep_command.main(["--traking-uri", "http://me:secret@h:5000"])
    assert "me@h:5000" in (said := capsys.readouterr().err)
    assert "secret" not in said
