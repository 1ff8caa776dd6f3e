"""YAML that anybody may have written: what is read, and what is refused before it costs time or memory."""

import pytest

from fedmr_flwr.config.yaml_text import read_settings, read_yaml
from fedmr_flwr.errors import ConfigError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: &x {lr: 1, b: 2}, c: {<<: *x, lr: 3}}", {"a": {"lr": 1, "b": 2}, "c": {"lr": 3, "b": 2}}),
        ("{a: {<<: {name: fedavg}}}", {"a": {"name": "fedavg"}}),
        ("{a: &x {p: 1}, b: &y {q: 2}, c: {<<: [*x, *y]}}", {"a": {"p": 1}, "b": {"q": 2}, "c": {"p": 1, "q": 2}}),
        ("{a: &x {p: 1}, b: &y {<<: *x, p: 2}, c: {<<: *y}}", {"a": {"p": 1}, "b": {"p": 2}, "c": {"p": 2}}),
        ("{a: &x [1, 2], b: *x}", {"a": [1, 2], "b": [1, 2]}),
        ("{'<<': 1}", {"<<": 1}),
    ],
)
def test_merge_keys_and_aliases_are_read(text, value):
    assert read_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "line 5: it has more than 10,000 values"),
        (LAUGHS.replace("a0: &a0", "<<: &a0"), "more than 10,000 values"),
        ("a: &a [*a]", "the alias 'a' is inside of what it refers to"),
        ("a: &a {b: {c: *a}}", "the alias 'a' is inside of what it refers to"),
        ("a: &a {<<: *a}", "the alias 'a' is inside of what it refers to"),
        ("a: *nothing", "undefined alias"),
        ("<<: 5", "expected a mapping"),
        ("{a: {<<: [1, 2]}}", "expected a mapping"),
        ("{a: 1, a: 2}", "duplicate key 'a'"),
        (f"{{{'a' * 900}: 1, {'a' * 900}: 2}}", "duplicate key 'aaaa"),
        ("{1: 1, 0x1: 2}", "duplicate key '1'"),
        ("{<<: {a: 1}, <<: {a: 2}}", "duplicate key '<<'"),
        ("? [a, b]\n: 1", "a key is a list or a mapping"),
        ("? {a: b}\n: 1", "a key is a list or a mapping"),
        *((f"a: !!{tag} 1", "the tag '.*' is not supported") for tag in ("int", "str", "binary", "set", "timestamp")),
        ("a: !!python/object/apply:os.system ['false']", "the tag '.*' is not supported"),
        ("a: !own 1", "the tag '!own' is not supported"),
        ("a: " + "9" * 5000, "exceeds 64 bits"),
        ("a: 0x" + "f" * 10000, "exceeds 64 bits"),
        ("a: -" + "1" * 22, "exceeds 64 bits"),
        (f"a: {2**64}", "exceeds 64 bits"),
        ("[" * 51, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ("".join(" " * n + "a:\n" for n in range(100)), "nested too deeply"),
        ("- " * 60 + "1", "nested too deeply"),
        ("a: 1\x00", "special characters"),
        ("a: 1\n---\nb: 2", "another document"),
        ("x" * 200_001, "not a configuration: it has more than 200,000 characters"),
        ("[" + "1," * 10_000 + "]", "more than 10,000 values"),
        ("%YAML 9.9\n---\na", "incompatible YAML document"),
        ('a: "\\xZZ"', "hexadecimal"),
    ],
)
def test_hostile_text_is_one_line(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(text)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_file_without_an_end_is_refused(tmp_path):
    (tmp_path / "x.yaml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"x\.yaml is not a configuration: it has more than"):
        read_settings(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rounds: 3\n".decode().encode("utf-16"), "is not UTF-8 text"),
        (b"\xff", "is not UTF-8 text"),
        (b"- 1", "must contain 'key: value' lines"),
        (b"7", "must contain 'key: value' lines"),
    ],
)
def test_file_that_is_no_settings_is_named(content, message, tmp_path):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"x\.yaml {message}"):
        read_settings(tmp_path / "x.yaml")


def test_empty_file_is_empty_settings(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"# nothing\n")
    assert read_settings(tmp_path / "x.yaml") == {}
