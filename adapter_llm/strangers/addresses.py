"""Which internet addresses belong to the public, and not to this machine, its network or its cloud.

The table is written out because `ipaddress.is_global` means something else in every release of Python. It follows
IANA's registries of special-purpose addresses, and of IPv6 lets through what has been given out at all (2000::/3).
"""

from __future__ import annotations

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private, as are 172.16/12 and 192.168/16
        "100.64.0.0/10",  # shared by the customers of a provider; a cloud's metadata at 100.100.100.200
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a cloud's own services, at an address that looks public
        "169.254.0.0/16",  # link-local, and most clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments, and a cloud's metadata at 192.0.0.192
        "192.0.2.0/24",  # documentation, as are 198.51.100/24 and 203.0.113/24
        "192.88.99.0/24",  # relays from IPv6
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation, as is 3fff::/20
        "3fff::/20",
    )
]
GIVEN_OUT = ipaddress.ip_network("2000::/3")  # loopback, link-local, local, multicast, metadata lie outside
# Addresses that lead on to the IPv4 address in them, and how many bits stand behind it.
LEADING_ON = {
    ipaddress.ip_network("::ffff:0:0/96"): 0,  # mapped
    ipaddress.ip_network("64:ff9b::/96"): 0,  # NAT64
    ipaddress.ip_network("2002::/16"): 80,  # 6to4
}


def is_public(address: str) -> bool:
    """Whether an address, written with digits, is one that anybody on the internet could reach; False if it is none."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if found.version == 6:
        for network, behind in LEADING_ON.items():
            if found in network:
                return is_public(str(ipaddress.IPv4Address(int(found) >> behind & 0xFFFF_FFFF)))
        if found not in GIVEN_OUT:
            return False
    return not any(found in network for network in NOT_PUBLIC)


def is_own(address: str) -> bool:
    """Whether an address is one of this machine's, whose services may trust who comes from inside. Nothing is sent."""
    version = ipaddress.ip_address(address).version
    with socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:  # no way leads there
            return False
        return ipaddress.ip_address(probe.getsockname()[0]) == ipaddress.ip_address(address)


def may_be_fetched(address: str) -> bool:
    return is_public(address) and not is_own(address)
