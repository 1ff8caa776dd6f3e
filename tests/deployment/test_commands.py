import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedmr_flwr.cli import main
from fedmr_flwr.deployment import commands, folders, processes
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.files import locking
from fedmr_flwr.wire.flower import access
from fedmr_flwr.wire.sealing import read_key


@pytest.fixture
def fedmr(monkeypatch, capsys):
    """Return a function that runs the command line and returns its status and its output."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["fedmr", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        output = capsys.readouterr()
        return status, output.out, output.err

    before = os.umask(0)
    os.umask(before)
    yield run
    os.umask(before)  # the commands of a deployment set it for the rest of their process


@pytest.fixture
def dep(tmp_path):
    folders.create(tmp_path / "dep", ["server.example"], 3)
    return tmp_path / "dep"


def test_init_keeps_secrets_private(fedmr, tmp_path):
    status, output, _ = fedmr("deploy", "init", tmp_path / "dep", "--host", "server.example", "--nodes", 2)
    assert status == 0
    assert "README.md for where" in output
    files = {
        str(path.relative_to(tmp_path / "dep")): path for path in (tmp_path / "dep").rglob("*") if path.is_file()
    }
    secret = {name for name, path in files.items() if b"PRIVATE KEY" in path.read_bytes()}
    assert secret == {"server/server.key", "node-0/node.key", "node-1/node.key"}
    sealing = {name for name in files if "sealing" in name}
    assert sealing == {"node-0/sealing.key", "node-1/sealing.key"}, "the server never has it"
    assert len({read_key(files[name]) for name in sealing}) == 1
    assert all(stat.S_IMODE(files[name].stat().st_mode) == 0o600 for name in secret | sealing)
    before = {name: path.read_bytes() for name, path in files.items()}
    status, _, error = fedmr("deploy", "init", tmp_path / "dep", "--host", "server.example", "--nodes", 2)
    assert (status, error.count("\n")) == (1, 1)
    assert "is not empty, and keys are never overwritten" in error
    assert before == {name: path.read_bytes() for name, path in files.items()}
    guide = files["README.md"].read_text()
    for command in ("fedmr deploy server server", "fedmr deploy node node-1", "--superlink deployment"):
        assert command in guide


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("init", "new", "--host", "https://a", "--nodes", 1), "write the name or address of the server"),
        (("server", "nowhere", "--allow-root"), "is not a server's folder: it has no server.yaml"),
        (("node", "nowhere", "--allow-root"), "is not a node's folder: it has no node.yaml"),
    ],
)
def test_mistakes_are_one_line(fedmr, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, _, error = fedmr("deploy", *arguments)
    assert (status, error.count("\n")) == (1, 1)
    assert words in error


def test_commands_require_keys_and_data(dep, monkeypatch):
    node = folders.read_node(dep / "node-1")
    with pytest.raises(ConfigError, match="has no data; set data to this node's npz file, to one of"):
        commands.supernode(dep / "node-1", node)
    node = node.model_copy(update={"data": "a folder/own.npz", "device": "cuda:1"})
    command = commands.supernode(dep / "node-1", node)
    own = dict(part.split("=", 1) for part in command[command.index("--node-config") + 1].split('" '))
    assert "--insecure" not in command
    assert command[command.index("--auth-supernode-private-key") + 1] == str(dep / "node-1/node.key")
    assert f"{dep}/node-1/a folder/own.npz" in command[command.index("--node-config") + 1]
    assert own["partition-id"].startswith("1 ")
    assert f'sealing-key="{dep}/node-1/sealing.key"' in command[command.index("--node-config") + 1]
    assert "--app-sha256" not in command
    pinned = commands.supernode(dep / "node-1", node.model_copy(update={"app_sha256": "0" * 64}))
    assert pinned[2:5] == ["fedmr_flwr.wire.flower.supernode", "--app-sha256", "0" * 64], "before Flower's own"
    assert f'app-sha256="{"0" * 64}"' in pinned[pinned.index("--node-config") + 1], "and for the client"
    server = commands.superlink(dep / "server", folders.read_server(dep / "server"))
    assert "--enable-supernode-auth" in server
    assert "--insecure" not in server
    for grpc in (True, False):
        monkeypatch.setattr(commands, "over_grpc", lambda grpc=grpc: grpc)
        command = commands.supernode(dep / "node-1", node)
        assert command[command.index("--superlink") + 1] == f"server.example:{9092 if grpc else 8000}"
        command = commands.superlink(dep / "server", folders.read_server(dep / "server"))
        assert ("--fleet-api-address" in command) == grpc


def test_insecure_needs_localhost(dep):
    server, node = folders.read_server(dep / "server"), folders.read_node(dep / "node-0")
    node = node.model_copy(update={"data": "own.npz"})
    with pytest.raises(
        ConfigError, match=r"--insecure is only for one machine, but listen is .*set it to 127\.0\.0\.1"
    ):
        commands.superlink(dep / "server", server, insecure=True)
    with pytest.raises(
        ConfigError, match=r"--insecure is only for one machine, but superlink is .*set it to 127\.0\.0\.1"
    ):
        commands.supernode(dep / "node-0", node, insecure=True)
    here = {"listen": "127.0.0.1"}
    assert "--insecure" in commands.superlink(dep / "server", server.model_copy(update=here), insecure=True)
    node = node.model_copy(update={"superlink": "localhost"})
    assert "--insecure" in commands.supernode(dep / "node-0", node, insecure=True)


@pytest.mark.parametrize("command", ["server", "node"])
def test_root_is_refused(fedmr, tmp_path, monkeypatch, command):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    status, _, error = fedmr("deploy", command, tmp_path)
    assert (status, error.count("\n")) == (1, 1)
    assert "this is root, and the code of every run would have its rights" in error


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_files_are_private_under_any_umask(tmp_path, mask):
    code = f"import os, sys; os.umask({mask}); from fedmr_flwr.cli import main; main()"
    arguments = ["deploy", "init", str(tmp_path / "dep"), "--host", "localhost", "--nodes", "1"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    before = os.umask(mask)
    try:
        commands.configure_server(tmp_path / "dep/server", folders.read_server(tmp_path / "dep/server"))
        commands.configure_node(tmp_path / "dep/node-0")
    finally:
        os.umask(before)
    secret = ("server.key", "node.key", "credentials.yaml", "superexec.key")
    for path in (tmp_path / "dep").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == 0o700 if path.is_dir() else mode == 0o600 or path.name not in secret, path
    assert stat.S_IMODE((tmp_path / "dep").stat().st_mode) == 0o700


def test_secrets_are_what_commands_use(dep):
    node = folders.read_node(dep / "node-1").model_copy(update={"data": "own.npz"})
    commands.configure_node(dep / "node-1")
    key = str(dep / "node-1/flower/superexec.key")
    for command in (commands.supernode(dep / "node-1", node), commands.supernode_executor(dep / "node-1", node, 7)):
        assert command[command.index("--superexec-auth-secret-file") + 1] == key
    assert len(Path(key).read_bytes()) == 32
    env = commands.configure_server(dep / "server", folders.read_server(dep / "server"))
    (token,) = access.tokens(Path(env["FLWR_HOME"]))
    commands.configure_server(dep / "server", folders.read_server(dep / "server"))
    assert access.tokens(Path(env["FLWR_HOME"])) == [token], "a copy of it elsewhere still opens"
    assert len(token) == 64


def test_unknown_settings_are_refused(dep):
    path = dep / "node-0/node.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"dta": "x"}))
    with pytest.raises(ConfigError, match="unknown key 'dta'; did you mean 'data'"):
        folders.read_node(dep / "node-0")


def test_commands_trust_the_servers_ca(dep):
    env = commands.configure_server(dep / "server", folders.read_server(dep / "server"))
    text = (dep / "server/flower/config.toml").read_text()
    assert env["FLWR_HOME"] == str(dep / "server/flower")
    assert 'address = "127.0.0.1:8000"' in text
    assert f"root-certificates = {json.dumps(str(dep / 'server/ca.crt'))}" in text


def test_grpc_control_api_is_local(dep, monkeypatch):
    server = folders.read_server(dep / "server")
    for grpc, host in ((True, "127.0.0.1"), (False, "0.0.0.0")):
        monkeypatch.setattr(commands, "over_grpc", lambda grpc=grpc: grpc)
        command = commands.superlink(dep / "server", server)
        assert command[command.index("--host") + 1] == host
        assert 'address = "127.0.0.1:8000"' in commands.configuration(dep / "server", server)
    elsewhere = server.model_copy(update={"listen": "10.0.0.5"})
    with pytest.raises(ConfigError, match="listen is 10.0.0.5 in server.yaml, but the certificate is not valid"):
        commands.superlink(dep / "server", elsewhere)
    monkeypatch.setattr(commands, "over_grpc", lambda: True)
    command = commands.superlink(dep / "server", elsewhere)
    assert command[command.index("--fleet-api-address") + 1] == "10.0.0.5:9092"


def test_ipv6_addresses_get_brackets(tmp_path):
    server, (node,) = folders.create(tmp_path / "dep", ["2001:db8::1"], 1)
    command = commands.supernode(tmp_path / "dep/node-0", node.model_copy(update={"data": "own.npz"}))
    assert command[command.index("--superlink") + 1].startswith("[2001:db8::1]:")
    everywhere = server.model_copy(update={"listen": "::"})
    assert '"127.0.0.1:8000"' in commands.configuration(tmp_path, everywhere)


def test_folders_are_private(dep):
    for name in ("server", "node-0"):
        assert stat.S_IMODE((dep / name).stat().st_mode) == 0o700


def test_host_with_a_port_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="without port"):
        folders.create(tmp_path / "other", ["server.example:9092"], 1)


@pytest.mark.parametrize("name", ['a "b"', "a\\b", "a\nb", "\x1b[31m"])
def test_what_flower_cannot_parse_is_refused(dep, name):
    node = folders.read_node(dep / "node-0").model_copy(update={"data": "own.npz"})
    for folder, update in [(dep / "node-0", {"name": name}), (dep / name, {})]:
        with pytest.raises(ConfigError, match="remove quotes, backslashes and control"):
            commands.supernode(folder, node.model_copy(update=update))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("node-0", "superlink", ""),
        ("node-0", "superlink", "server.example:9092"),
        ("node-0", "superlink", "http://server.example"),
        ("node-0", "superlink", "--help"),
        ("node-0", "device", "cudaa"),
        ("node-0", "data", ""),
        ("node-0", "state", ""),
        ("node-0", "name", ""),
        ("server", "listen", "*"),
        ("server", "hosts", [""]),
    ],
)
def test_impossible_settings_are_refused(dep, part, key, value):
    (path,) = (dep / part).glob("*.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: value}))
    read = folders.read_server if part == "server" else folders.read_node
    with pytest.raises(ConfigError, match=rf"{path}: {key}\S* = "):
        read(dep / part)


@pytest.mark.parametrize("key", ["data", "state", "sealing_key"])
def test_home_of_nobody_is_one_line(dep, key):
    node = folders.read_node(dep / "node-0").model_copy(update={"data": "own.npz", key: "~nobody-there/x"})
    with pytest.raises(ConfigError, match="there is no home folder for ~nobody-there/x; write the whole path"):
        commands.supernode(dep / "node-0", node)


@pytest.mark.parametrize("part", ["server", "node-0"])
def test_running_deployment_keeps_its_secrets(dep, fedmr, part, monkeypatch):
    started = []
    for name in ("run_superlink", "run_supernode"):
        monkeypatch.setattr(processes, name, lambda *_: started.append(1))
    (path,) = (dep / part).glob("*.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | ({} if part == "server" else {"data": "x"})))
    with locking(dep / part / ".lock"):
        status, _, error = fedmr("deploy", part.split("-")[0], dep / part, "--allow-root")
    assert (status, error.count("\n")) == (1, 1)
    assert f"{dep / part} is in use by process {os.getpid()} on " in error
    assert not started
    assert fedmr("deploy", part.split("-")[0], dep / part, "--allow-root")[0] == 0
    assert started


@pytest.mark.parametrize("content", ["[]", '{"a-access-token": 5}', "{", "null"])
def test_credentials_of_another_program_are_replaced(tmp_path, content):
    (tmp_path / "credentials.yaml").write_text(content)
    assert access.tokens(tmp_path) == []
    access.create(tmp_path, "127.0.0.1:8000")
    assert len(access.tokens(tmp_path)) == 1


@pytest.mark.parametrize(
    ("data", "given"),
    [
        ("x.npz", "{}/x.npz"),
        ("folder:x", "folder:{}/x"),
        ("npz:/x", "npz:/x"),
        ("hf:saved", "hf:{}/saved"),
        ("hf:owner/name", "hf:owner/name"),
    ],
)
def test_data_of_a_kind_keep_their_kind(tmp_path, data, given):
    (tmp_path / "saved").mkdir()
    assert commands._data(tmp_path, data) == given.format(tmp_path)
