"""What identifies a run: every setting, unless it is named as one that changes no result."""

import hashlib

import pytest

from fedmr_flwr.config.identity import HOW_COMPUTED, LENGTH, check_resumable, differences, identity, own_code
from fedmr_flwr.config.loading import parse
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError

KEYS = {field.alias for field in Settings.model_fields.values()}


def test_every_other_setting_identifies_a_run():
    assert HOW_COMPUTED | LENGTH <= KEYS, "a name of no setting would exempt nothing"
    assert set(identity(parse({}, "test"))) == KEYS - HOW_COMPUTED


def test_where_files_come_from_does_not_count():
    assert identity(parse({"data": {"download": True}}, "test")) == identity(parse({}, "test"))


def test_nothing_and_something_differ():
    before, now = (identity(parse(values, "test")) for values in ({}, {"guard": 5}))
    assert [*differences(before, now)] == [("guard", None, 5.0)]


def test_differences_name_the_inner_key():
    before, now = {"a": {"b": 1, "c": [1]}, "x": 1}, {"a": {"b": 2, "c": [1], "d": 3}, "y": 1}
    assert [*differences(before, now)] == [("a.b", 1, 2)], "an older version knew neither d nor y"


def test_own_code_is_hashed(tmp_path, monkeypatch):
    for name in ("identity_model", "identity_rule"):
        (tmp_path / f"{name}.py").write_text(f"# {name}")
    monkeypatch.syspath_prepend(tmp_path)
    settings = parse({"model": {"name": "identity_model:Net"}, "data": {"name": "npz:file"}}, "test")
    assert own_code(settings) == {"identity_model": hashlib.sha256(b"# identity_model").hexdigest()}
    assert own_code(parse({"strategy": {"name": "flwr:FedAdam"}}, "test")) == {}
    assert own_code(parse({"strategy": {"unit": "block:2"}}, "test")) == {}


@pytest.mark.parametrize("text", ["rounds=9", "engine=gpu", "ray.client-gpus=1", "device=cpu", "max-bad-rounds=3"])
def test_length_and_place_may_change_on_resuming(text):
    check_resumable([text])


@pytest.mark.parametrize("text", ["roundz=9", "clients=2", "run-dir=x", "strategy.name=fedavg"])
def test_nothing_else_may_change_on_resuming(text):
    with pytest.raises(ConfigError, match=f"'{text}': a run that is resumed may change only"):
        check_resumable([text])
