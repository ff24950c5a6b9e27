"""Downloads for strangers: nothing but the public internet is reached, whatever a URL, a name or a server says."""

import socket

import pytest
from fetched import HERE, fetcher, refused, resolve
from scripted_server import answer, redirect, serving, tls_contexts

from adapter_llm.strangers import fetching
from adapter_llm.strangers.addresses import is_public
from adapter_llm.strangers.fetching import MAX_REDIRECTS, MAX_URL, fetch_public, look_up
from imagebind_encoder.media.source import MediaError


def outside(url):
    """Fetched by the real rules. Sockets are refused by the test suite with an error of another type."""
    return fetch_public(url, 1000, 5.0, resolve=resolve, allowed=is_public)


SPELLED = """
http://127.0.0.1/ http://127.1/ http://127.0.1/ http://2130706433/ http://0x7f000001/ http://0x7f.1/ http://0177.0.0.1/
http://017700000001/ http://0/ http://0.0.0.0:8080/ http://127.0.0.1:80/ https://127.0.0.1/ HTTP://127.0.0.1/
http://[::1]/ http://[::]/ http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/ http://[0:0:0:0:0:ffff:a9fe:a9fe]/
http://[64:ff9b::7f00:1]/ http://[2002:7f00:1::]/ http://[fe80::1]/ http://[fd00:ec2::254]/
http://169.254.169.254/latest/meta-data/ http://2852039166/ http://0xa9fea9fe/ http://169.254.43518/ http://100.100.100.200/
http://168.63.129.16/ http://inside.example/ http://metadata.example/ http://both.example/ http://six.example/
http://INSIDE.example/ http://not-known.example/ http://localhost/
""".split()


@pytest.mark.parametrize("url", SPELLED)
def test_no_spelling_leads_inside(url):
    with pytest.raises(MediaError, match="as its host has no public address|Invalid IPv4 address"):
        outside(url)


def test_names_that_exist_inside_are_not_told_from_those_that_do_not():
    said = []
    for host in ("inside", "unknown"):
        with pytest.raises(MediaError) as error:
            outside(f"http://{host}.example/")
        said.append(str(error.value).replace(host, ""))
    assert said[0] == said[1]


REFUSED = {
    "file:///etc/passwd": "http:// or https://",
    "ftp://public.example/": "http:// or https://",
    "gopher://public.example:80/": "http:// or https://",
    "unix:///var/run/docker.sock": "http:// or https://",
    "//public.example/": "http:// or https://",
    "/etc/passwd": "http:// or https://",
    "public.example/x.png": "http:// or https://",
    "http:///x": "http:// or https://",
    "http:public.example": "http:// or https://",
    "http://user:secret@public.example/": "user name or password",
    "http://user@public.example/": "user name or password",
    "http://public.example@127.0.0.1/": "user name or password",
    "http://public.example%40127.0.0.1/": "no public address",
    "http://127.0.0.1\\@public.example/": "user name|Invalid",
    "http://public.example:22/": "port 22",
    "https://public.example:6379/": "port 6379",
    "http://public.example:0/": "port 0",
    "http://public.example:99999/": "port 99999",
    "http://public.example/\r\nHost: inside": "non-printable",
    "http://①②⑦.0.0.1/": "Invalid IDNA",
    "http://[::1/": "cannot be fetched",
    "http://public.example/" + "a" * MAX_URL: f"at most {MAX_URL}",
    "http://" + "ⓐ" * 2000 + "/": "cannot be fetched",
    "": "http:// or https://",
}


@pytest.mark.parametrize("url, why", REFUSED.items(), ids=[url[:40] for url in REFUSED])
def test_urls_that_are_refused(url, why):
    with pytest.raises(MediaError, match=why) as error:
        outside(url)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


# Below, one server of this machine may be reached, as if it were public, and everything else as ever.


@pytest.fixture
def fetch(monkeypatch):
    return fetcher(monkeypatch)


@pytest.mark.loopback
def test_a_file_is_fetched(fetch, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(answer(b"bytes of it", content_type="image/png")) as said:
        assert fetch(said, "/a%20b/x.png?q=1") == b"bytes of it"
    heard = said.requests[0].decode().lower()
    assert heard.startswith("get /a%20b/x.png?q=1 http/1.1\r\n")
    assert f"host: media.example:{said.port}\r\n" in heard
    assert "accept-encoding: identity\r\n" in heard and "user-agent: adapter_llm\r\n" in heard
    assert "cookie" not in heard and "authorization" not in heard


@pytest.mark.loopback
def test_passwords_of_this_machine_stay_here(fetch, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine media.example login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with serving(answer()) as said:
        fetch(said)
    assert b"authorization" not in said.requests[0].lower()


@pytest.mark.loopback
def test_a_name_is_looked_up_once(fetch):
    """DNS rebinding: the second answer, which is not asked for, would be where the attacker wants to get."""
    answers, asked = iter([["127.0.0.1"], ["10.0.0.5"]]), []

    def rebinding(host, port):
        asked.append(host)
        return next(answers)

    with serving(answer(b"checked")) as said:
        assert fetch(said, resolve=rebinding) == b"checked"
    assert asked == ["media.example"]


@pytest.mark.loopback
@pytest.mark.parametrize(
    "to",
    ["http://10.0.0.5/", "http://169.254.169.254/latest/", "http://inside.example/", "//inside.example/", "http://0x0a000005/",
     "http://[::ffff:10.0.0.5]/", "http://both.example/", "http://localhost:80/"],
)  # fmt: skip
def test_redirects_do_not_lead_inside(fetch, to):
    with serving(redirect(to)) as said:
        assert "no public address" in refused(fetch, said)


@pytest.mark.loopback
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_every_kind_of_redirect_is_checked(fetch, status):
    with serving(redirect("http://10.0.0.5/", status)) as said:
        assert "no public address" in refused(fetch, said)


@pytest.mark.loopback
@pytest.mark.parametrize(
    "to, why",
    [("file:///etc/passwd", "http:// or https://"), ("ftp://public.example/", "http:// or https://"),
     ("data:image/png;base64,AAAA", "cannot be fetched"), ("http://me:secret@public.example/", "password"),
     ("http://public.example:25/", "port 25"), ("http://[::1", "cannot be fetched"),
     ("http://\x01/", "cannot be fetched")],
)  # fmt: skip
def test_redirects_to_what_is_no_web_address(fetch, to, why):
    with serving(redirect(to)) as said:
        assert why in refused(fetch, said)


@pytest.mark.loopback
def test_redirects_are_looked_up_anew(fetch):
    """The same name may lead elsewhere the second time."""
    answers = iter([["127.0.0.1"], ["10.0.0.5"]])
    with serving(redirect("/again")) as said:
        assert "no public address" in refused(fetch, said, resolve=lambda host, port: next(answers))
    assert len(said.requests) == 1


@pytest.mark.loopback
def test_redirects_are_followed_but_not_for_ever(fetch):
    with serving(*[redirect("/next")] * MAX_REDIRECTS, answer(b"there")) as said:
        assert fetch(said) == b"there"
    assert [line.split()[1] for line in said.requests] == [b"/x.png"] + [b"/next"] * MAX_REDIRECTS
    with serving(redirect("/next")) as said:
        assert f"redirected more than {MAX_REDIRECTS} times" in refused(fetch, said)
    assert len(said.requests) == MAX_REDIRECTS + 1


WRONG = {
    "status 404": answer(status="404 Not Found"),
    "status 500": answer(status="500 Oops"),
    "status 206": answer(status="206 Partial Content"),
    "status 304": answer(b"", status="304 Not Modified"),
    "is a web page": answer(b"<html>", content_type="Text/HTML; charset=utf-8"),
    "is empty": answer(b""),
    "cannot be fetched": b"SSH-2.0-OpenSSH_9.6\r\n",
    "peer closed connection": answer(b"short", content_length=50),
    "Server disconnected": b"",
}


@pytest.mark.loopback
@pytest.mark.parametrize("why, reply", WRONG.items(), ids=list(WRONG))
def test_answers_that_are_no_file(fetch, why, reply):
    with serving(reply) as said:
        assert why in refused(fetch, said)


@pytest.mark.loopback
def test_another_address_is_tried(fetch):
    addresses = ["127.0.0.2", "127.0.0.1"]  # nobody listens at the first
    with serving(answer()) as said:
        assert fetch(said, resolve=lambda host, port: addresses, allowed=addresses.__contains__) == b"media"


@pytest.mark.loopback
def test_nobody_listens(fetch):
    with serving(answer()) as said:
        pass
    assert "cannot be fetched" in refused(fetch, said)


@pytest.mark.loopback
def test_certificates_are_for_the_name(fetch, monkeypatch, tmp_path):
    server, client = tls_contexts(tmp_path)
    names = []
    server.sni_callback = lambda connection, name, context: names.append(name)
    monkeypatch.setattr(fetching, "_certificates", lambda: client)
    with serving(answer(b"secret"), tls=server) as said:
        assert fetch(said, scheme="https") == b"secret"
        assert names == ["media.example"]
        assert "certificate" in refused(fetch, said, scheme="https", host="other.example", resolve=lambda *_: [HERE])
        assert "certificate" in refused(fetch, said, scheme="https", host="127.0.0.1")


@pytest.mark.loopback
def test_certificates_of_nobody_are_refused(fetch, tmp_path):
    server, _ = tls_contexts(tmp_path)
    with serving(answer(b"secret"), tls=server) as said:
        assert "certificate" in refused(fetch, said, scheme="https")
    assert not said.requests


@pytest.mark.loopback
def test_a_connection_serves_once(fetch):
    """One that was checked for a name could otherwise be used for another name at the same address."""
    two = answer(b"", "302 Found", location="/next") + answer(b"of the old connection")
    with serving(two, answer(b"of a new one")) as said:
        assert fetch(said) == b"of a new one"


@pytest.mark.loopback
def test_looking_up():
    assert look_up("127.0.0.1", 80) == ["127.0.0.1"]


def test_looking_up_what_is_not_known(monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert look_up("nowhere.example", 80) == []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: host.encode("idna"))
    assert look_up("x" * 64 + ".example", 80) == []
