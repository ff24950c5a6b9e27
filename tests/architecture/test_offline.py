"""The fixture that keeps tests off the network, itself tested."""

import os
import socket

import pytest


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org", "127.0.0.1"])
def test_connections_are_refused(host):
    with socket.socket() as sock:
        for connect in (sock.connect, sock.connect_ex):
            with pytest.raises(RuntimeError, match=f"for '{host}': tests do not use the network"):
                connect((host, 9))
    with pytest.raises(RuntimeError, match="tests do not use the network"):
        socket.create_connection((host, 9), timeout=1)


def test_names_are_not_looked_up():
    with pytest.raises(RuntimeError, match="socket.getaddrinfo for 'example.org'"):
        socket.getaddrinfo("example.org", 443)
    with pytest.raises(RuntimeError, match="mark the test with @pytest.mark.loopback"):
        socket.getaddrinfo("localhost", 443)


@pytest.mark.loopback
def test_marked_tests_reach_this_machine_and_no_other():
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname(), timeout=5) as client:
            client.sendall(b"x")
            with server.accept()[0] as accepted:
                assert accepted.recv(1) == b"x"
    with pytest.raises(RuntimeError, match="for '192.0.2.1': tests do not use the network"):
        socket.create_connection(("192.0.2.1", 9), timeout=1)


def test_the_hub_is_offline():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    from huggingface_hub.constants import HF_HUB_OFFLINE

    assert HF_HUB_OFFLINE
