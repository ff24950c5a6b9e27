"""`fetch_public` as the tests use it: one server of this machine may be reached, as if it were public, nothing else."""

import socket

import pytest

from adapter_llm.strangers import fetching
from adapter_llm.strangers.addresses import is_public
from adapter_llm.strangers.fetching import fetch_public
from imagebind_encoder.media.source import MediaError

HERE = "127.0.0.1"
HOSTS = {
    "media.example": [HERE],
    "public.example": ["8.8.8.8"],
    "inside.example": ["10.0.0.5"],
    "metadata.example": ["169.254.169.254"],
    "both.example": ["8.8.8.8", "10.0.0.5"],
    "six.example": ["2606:4700::1", "::1"],
}


def resolve(host, port):
    """As the system does: digits in all the ways of C's inet_aton, brackets off; then the hosts above."""
    if host in HOSTS:
        return HOSTS[host]
    try:
        return [socket.inet_ntoa(socket.inet_aton(host))]
    except OSError:
        return [host] if ":" in host else []


def refused(fetch, said, **options):
    with pytest.raises(MediaError) as error:
        fetch(said, **options)
    return str(error.value)


def fetcher(monkeypatch):
    """`fetch` of a path of a scripted server."""

    def fetch(said, path="/x.png", *, host="media.example", max_bytes=1000, seconds=5.0, scheme="http", **options):
        monkeypatch.setattr(fetching, "PORTS", (80, 443, said.port))
        options = {"allowed": lambda address: address == HERE or is_public(address), "resolve": resolve} | options
        return fetch_public(f"{scheme}://{host}:{said.port}{path}", max_bytes, seconds, **options)

    return fetch
