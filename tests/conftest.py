"""What every test gets: a golden folder, no network, fixed seeds, few threads."""

import ipaddress
import os
import random
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the two packages, also where nothing is installed
sys.path.insert(0, str(Path(__file__).parent / "pipeline"))  # the plugin below
os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported, so before anything else
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# models here are tiny: a second thread costs more than it does, and ten times so on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy
import pytest
import torch

pytest_plugins = ["tiny_pipeline"]

MARKERS = {
    "slow": "takes a minute or more; run with --slow alone",
    "gpu": "needs a GPU",
    "weights": "needs the trained default weights and the parts they are used with, which it may fetch",
    "loopback": "may talk to this machine over the loopback interface",
}


class NetworkRefused(RuntimeError):
    """A test tried to reach another machine. No OSError, which code under test may take for a bad connection."""


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        type=Path,
        metavar="DIR",
        default=Path(__file__).parent / "golden",
        help="folder of recorded numbers for the parity tests (default: the small one in tests/golden)",
    )
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes a minute or more; give --slow"))


def pytest_configure(config):
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    if not config.getoption("golden").is_dir():
        raise pytest.UsageError(f"--golden {config.getoption('golden')} is no folder")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden(pytestconfig):
    """The golden folder; tests skip what it does not hold."""
    return pytestconfig.getoption("golden").resolve()


def is_loopback(host):
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def _no_network():
    """Only sockets inside this machine, and only for tests marked `loopback`, whose item sets `allowed`.

    Tests marked `weights` fetch the parts that are not in the cache yet: their item sets `anywhere`.
    """

    def check(what, host):
        if _no_network.anywhere:
            return
        if not (_no_network.allowed and is_loopback(host)):
            hint = "" if not is_loopback(host) else "; mark the test with @pytest.mark.loopback"
            raise NetworkRefused(f"a test called {what} for {host!r}: tests do not use the network{hint}")

    def guarded(name):
        original = getattr(socket.socket, name)

        def connect(self, address):
            if isinstance(address, tuple):  # anything else is a Unix socket
                check(f"socket.{name}", address[0])
            return original(self, address)

        return connect

    def getaddrinfo(host, *args, _original=socket.getaddrinfo, **kwargs):
        check("socket.getaddrinfo", host)
        return _original(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded("connect"))
        patch.setattr(socket.socket, "connect_ex", guarded("connect_ex"))
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


_no_network.allowed = _no_network.anywhere = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    _no_network.allowed = item.get_closest_marker("loopback") is not None
    _no_network.anywhere = item.get_closest_marker("weights") is not None
    try:
        return (yield)
    finally:
        _no_network.allowed = _no_network.anywhere = False


@pytest.fixture(autouse=True)
def _seeds():
    torch.manual_seed(20)
    random.seed(20)
    numpy.random.seed(20)
