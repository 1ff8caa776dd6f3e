"""Which keys a SuperLink is told to admit, and to revoke."""

import json
import shutil
from pathlib import Path

import pytest

from fedmr_flwr.deployment import admission
from fedmr_flwr.errors import EngineError


class Link:
    """Plays a SuperLink: knows keys by the text of their files."""

    def __init__(self):
        self.keys, self.taken, self.trouble, self.verbs = {}, 0, "", []

    def command(self, kind, verb, what, *_):
        self.verbs.append(verb)
        if self.trouble:
            raise EngineError(self.trouble)
        if verb == "list":
            past = [str(number) for number in range(1, self.taken + 1)]
            return {"nodes": [{"node-id": key, "status": self.status(key)} for key in past]}
        if verb == "register":
            text = Path(what).read_text()
            if text in self.keys.values():
                raise EngineError("this key is already in use")
            self.taken += 1
            self.keys[str(self.taken)] = text
            return {"node-id": str(self.taken)}
        if what not in self.keys:
            raise EngineError("node not found")
        return {"node-id": self.keys.pop(what)}

    def status(self, key):
        return "registered" if key in self.keys else "unregistered"


@pytest.fixture
def link(monkeypatch):
    link = Link()
    monkeypatch.setattr(admission, "Connection", lambda *_: link)
    return link


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nodes").mkdir()
    for name in "abc":
        (tmp_path / f"nodes/{name}.pub").write_text(f"key of {name}\n")
    return tmp_path


def test_admits_and_revokes_keys(link, folder):
    assert admission.admit(folder, {}) == (3, 3, 0)
    assert admission.admit(folder, {}) == (3, 0, 0)
    (folder / "nodes/b.pub").unlink()
    (folder / "nodes/d.pub").write_text("key of d\n")
    assert admission.admit(folder, {}) == (3, 1, 1)
    assert sorted(link.keys.values()) == ["key of a\n", "key of c\n", "key of d\n"]
    (folder / "nodes/a.pub").write_text("another key\n")
    assert admission.admit(folder, {}) == (3, 1, 1)
    assert "key of a\n" not in link.keys.values()


def test_known_keys_cost_one_command(link, folder):
    admission.admit(folder, {})
    link.verbs.clear()
    assert admission.admit(folder, {}) == (3, 0, 0)
    assert link.verbs == ["list"]


def test_key_that_the_superlink_no_longer_admits_is_registered(link, folder):
    admission.admit(folder, {})
    del link.keys["2"]
    assert admission.admit(folder, {}) == (3, 1, 0)
    assert "key of b\n" in link.keys.values()


def test_new_database_gets_all_keys(link, folder):
    admission.admit(folder, {})
    link.keys.clear()
    (folder / "nodes/b.pub").unlink()
    assert admission.admit(folder, {}) == (2, 2, 1)
    assert sorted(json.loads((folder / "registered.json").read_text())) == ["key of a", "key of c"]


def damage(folder, what):
    keys = folder / "nodes"
    if what == "none":
        shutil.rmtree(keys)
    elif what == "folder":
        (keys / "z.pub").mkdir()
    elif what == "binary":
        (keys / "b.pub").write_bytes(b"\xff")
    elif what == "copy":
        shutil.copy(keys / "a.pub", keys / "d.pub")
    else:
        (folder / "registered.json").write_text(what)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("none", r"cannot read \S+nodes: No such file or directory; it must have the \.pub of each node"),
        ("folder", r"cannot read \S+z\.pub: Is a directory; remove it, or replace it"),
        ("binary", r"cannot read \S+b\.pub: "),
        ("copy", r"a\.pub and \S+d\.pub have the same key; each node needs one of its own"),
        ("{", r"cannot read \S+registered\.json: .*; remove it and state\.db"),
        ("[]", r"cannot read \S+registered\.json: "),
    ],
)
def test_damaged_files_are_named_and_nobody_is_revoked(link, folder, what, words):
    admission.admit(folder, {})
    damage(folder, what)
    with pytest.raises(EngineError, match=words):
        admission.admit(folder, {})
    assert len(link.keys) == 3


def test_failed_revocation_is_an_error(link, folder):
    admission.admit(folder, {})
    (folder / "nodes/b.pub").unlink()
    link.trouble = "the SuperLink is tired"
    with pytest.raises(EngineError, match=r"still admits node 2, although its key was removed .* remove state\.db"):
        admission.admit(folder, {})
    link.trouble = ""
    assert admission.admit(folder, {}) == (2, 0, 1)
