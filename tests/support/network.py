"""Hosts of their own on one machine: network namespaces, joined by a wire that is slow, loses packets and can be cut.

`tc netem` could do the same, but many kernels come without it; nearly all of them have TUN devices.
"""

import fcntl
import os
import random
import selectors
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import uuid4

_TUNSETIFF = 0x400454CA
_BARE_PACKETS = 0x1001  # IFF_TUN | IFF_NO_PI
_NETWORK = bytes([10, 77, 0])
_CONNECT = """
import socket, sys, time
began = time.monotonic()
socket.create_connection((sys.argv[1], int(sys.argv[2])), 30).close()
print(time.monotonic() - began)
"""


class Network:
    """Hosts 0, 1, … with the addresses 10.77.0.1, 10.77.0.2, …; gone, with the wire, at the end of the block.

    Args:
        hosts: how many, at most 254.
        delay: seconds that each packet takes, in each direction.
        loss: the share of packets that never arrive.
        seed: of the draw of those that are lost.

    Attributes:
        carried: how many packets arrived.
        lost: how many were lost by chance.
        blocked: how many were lost because a host's link was cut.
    """

    def __init__(self, hosts, delay=0.05, loss=0.01, seed=0):
        mark = uuid4().hex[:8]
        self._names = [f"fedmr-{mark}-{host}" for host in range(hosts)]
        self._devices = [f"fm{mark}-{host}" for host in range(hosts)]  # at most 15 characters
        self._delay, self._loss, self._random = delay, loss, random.Random(seed)
        self._cut, self._over = set(), threading.Event()
        self.carried = self.lost = self.blocked = 0

    def __enter__(self):
        with ExitStack() as stack:
            self._tuns = [stack.enter_context(_device(name)) for name in self._devices]
            for host, (name, device) in enumerate(zip(self._names, self._devices, strict=True)):
                _ip("netns", "add", name)
                stack.callback(_ip, "netns", "del", name)
                _ip("link", "set", device, "netns", name)
                _ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", device)
                for interface in ("lo", device):
                    _ip("-n", name, "link", "set", interface, "up")
            wire = threading.Thread(target=self._carry, daemon=True)
            wire.start()
            stack.callback(wire.join)
            stack.callback(self._over.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def address(self, host):
        return f"10.77.0.{host + 1}"

    def inside(self, host):
        """What stands before a command that is to run on a host."""
        return ["ip", "netns", "exec", self._names[host]]

    def cut(self, host):
        """Lose all packets of a host, those that are on their way included, and tell nobody."""
        self._cut.add(host)

    def mend(self, host):
        self._cut.discard(host)

    def connect_seconds(self, host, other, port):
        """How long a TCP connection from a host to another takes: there and back."""
        command = [*self.inside(host), sys.executable, "-c", _CONNECT, self.address(other), str(port)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def _carry(self):
        """Take packets from the hosts and hand each one over when its time has come."""
        travelling = deque()  # in the order of their arrival, because all are equally slow
        with selectors.DefaultSelector() as selector:
            for host, tun in enumerate(self._tuns):
                selector.register(tun, selectors.EVENT_READ, host)
            while not self._over.is_set():
                wait = max(0.0, travelling[0][0] - time.monotonic()) if travelling else 0.1
                for key, _ in selector.select(wait):
                    packet = key.fileobj.read(65536)
                    network, target = packet[16:19], packet[19] - 1  # of the destination
                    if network == _NETWORK and 0 <= target < len(self._tuns):  # others only look for routers
                        travelling.append((time.monotonic() + self._delay, key.data, target, packet))
                while travelling and travelling[0][0] <= time.monotonic():
                    self._deliver(*travelling.popleft()[1:])

    def _deliver(self, host, target, packet):
        if self._random.random() < self._loss:
            self.lost += 1
        elif {host, target} & self._cut:
            self.blocked += 1
        else:
            self._tuns[target].write(packet)
            self.carried += 1


def obstacle():
    """Why there can be no such hosts on this machine; None if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip`, of iproute2"
    name = f"fedmr-{uuid4().hex[:8]}"
    try:
        _device(name).close()
    except OSError as error:
        return f"no TUN devices: {error}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "exec", name, "true")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: {error.stderr.strip()}"
    finally:
        with suppress(subprocess.CalledProcessError):
            _ip("netns", "del", name)
    return None


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _device(name):
    """A new network device whose packets are read from and written to a file; it goes when the file is closed."""
    tun = Path("/dev/net/tun").open("r+b", buffering=0)  # noqa: SIM115
    try:
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _BARE_PACKETS))
    except OSError:
        tun.close()
        raise
    return tun
