"""Which addresses strangers may have fetched, in tables."""

import pytest

from adapter_llm.strangers.addresses import is_own, is_public, may_be_fetched

NOT_PUBLIC = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.254
168.63.129.16 169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1
192.88.99.1 192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255 198.51.100.7 203.0.113.7 224.0.0.1 239.255.255.250
240.0.0.1 255.255.255.255
:: ::1 ::2 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.1.2.3 ::ffff:169.254.169.254 ::ffff:7f00:1
::ffff:0:8.8.8.8
64:ff9b::127.0.0.1 64:ff9b::169.254.169.254 64:ff9b::a00:1 64:ff9b:1::8.8.8.8 100::1 2001::1 2001:0:4136:e378::1
2001:10::1 2001:20::1 2001:2::1 2001:db8::1 2002:7f00:1:: 2002:a9fe:a9fe::1 2002:a00:1::1 2002:c0a8:101::1 3fff::1
3fff:fff::1 5f00::1 4000::1 fc00::1 fd00:ec2::254 fd20:ce::254 fe80::1 fe80::1%eth0 febf::1 fec0::1 ff02::1 ff0e::1
""".split()
PUBLIC = """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.15
169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.167.255.255 192.169.0.0
198.17.255.255 198.20.0.0 223.255.255.255 2001:200::1 2001:4860:4860::8888 2003::1 2606:4700:4700::1111
2a00:1450:4001::200e 3ffe::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1
""".split()


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_that_are_public(address):
    assert is_public(address)


NO_ADDRESSES = ["", "localhost", "8.8.8", "08.8.8.8", "8.8.8.8/32", "0x8.8.8.8", "[2003::1]", "134744072"]


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_what_is_no_address_is_not_public(text):
    assert not is_public(text)


@pytest.mark.loopback
def test_own_addresses():
    assert is_own("127.0.0.1")
    assert not may_be_fetched("127.0.0.1")


def test_own_addresses_that_are_public_are_not_fetched(monkeypatch):
    monkeypatch.setattr("adapter_llm.strangers.addresses.is_own", lambda address: address == "8.8.8.8")
    assert may_be_fetched("1.1.1.1")
    assert not may_be_fetched("8.8.8.8")
