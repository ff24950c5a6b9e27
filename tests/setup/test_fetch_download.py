"""Parts out of wheels: whole or not at all, resumed, checked, and every failure a sentence."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import wheelhouse
from wheelhouse import CONTENT, NAME, PART, WHEEL

from adapter_llm.fetch import FetchError, cache_dir, fetch, files, wheels

MEMBER = CONTENT[PART.member]
SIZE = len(WHEEL)
pytestmark = pytest.mark.loopback


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def kept(cache):
    """Files in the cache that matter; locks are empty and stay."""
    return [name for name in files_in(cache) if not name.endswith(".lock")]


def refused(message, part=PART):
    with pytest.raises(FetchError, match=message) as caught:
        fetch(part)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("own, shared, expected", [
    ("/a", "/b", "/a"), ("~/a", "/b", "HOME/a"), ("", "/b", "/b/adapter_llm"),
    ("", "b", "HOME/.cache/adapter_llm"), ("", "", "HOME/.cache/adapter_llm"),
])  # fmt: skip
def test_cache_folder(monkeypatch, tmp_path, own, shared, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ADAPTER_LLM_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", shared)
    assert cache_dir().as_posix() == expected.replace("HOME", tmp_path.as_posix())


def test_a_part_is_fetched_once_and_the_wheel_does_not_stay(index, cache):
    path = fetch(PART)
    assert path.read_bytes() == MEMBER
    assert kept(cache) == [f"parts/tiny-part-1.2-{PART.sha256[:12]}/weights.bin"]
    assert fetch(PART) == path
    assert index.ranges == [None]


def test_a_folder_is_unpacked_whole(index, cache):
    path = fetch(replace(PART, member="tiny_part/folder/", member_sha256=None))
    assert files_in(path) == ["a.txt", "b/c.txt"]


def test_redirects_are_followed(index, cache, monkeypatch):
    monkeypatch.setattr(wheels, "_locate", lambda part: f"{index.url}/moved/{NAME}")
    assert fetch(PART).read_bytes() == MEMBER


def test_a_cut_connection_is_resumed_where_it_broke(index, cache):
    index.cuts = [1000, 5000]
    assert fetch(PART).read_bytes() == MEMBER
    assert index.ranges == [None, "bytes=1000-", "bytes=6000-"]


def test_the_next_run_resumes_what_a_killed_one_left(index, cache):
    cache.mkdir()
    (cache / f"{NAME}.part").write_bytes(WHEEL[:777])
    leftover = cache / "parts" / f"tiny-part-1.2-{PART.sha256[:12]}" / "weights.bin.part"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    assert fetch(PART).read_bytes() == MEMBER
    assert index.ranges == ["bytes=777-"]
    assert len(kept(cache)) == 1


def test_a_download_that_was_whole_is_not_repeated(index, cache):
    cache.mkdir()
    (cache / f"{NAME}.part").write_bytes(WHEEL)
    assert fetch(PART).read_bytes() == MEMBER
    assert index.ranges == []


def test_a_server_without_ranges_sends_it_all_again(index, cache):
    index.cuts, index.knows_ranges = [1000], False
    assert fetch(PART).read_bytes() == MEMBER


def test_a_line_that_always_breaks_is_given_up_but_what_came_is_kept(index, cache):
    index.cuts = [1000] * 99
    message = refused(r"download of tiny-part 1.2 from 127.0.0.1 broke off after 0.0 of 1.0 MB")
    assert "run again to continue" in message and f"pip download --no-deps tiny-part==1.2` gets into {cache}" in message
    assert (cache / f"{NAME}.part").stat().st_size == 1000 * wheels.ATTEMPTS
    index.cuts = []
    assert fetch(PART).read_bytes() == MEMBER
    assert index.ranges[-1] == f"bytes={1000 * wheels.ATTEMPTS}-"


def test_an_interrupted_download_is_resumed(index, cache, monkeypatch):
    original = wheels._receive

    def interrupted(part, client, url, partial):
        index.cuts = [2000]
        with pytest.raises(Exception, match="peer closed"):
            original(part, client, url, partial)
        raise KeyboardInterrupt

    monkeypatch.setattr(wheels, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(PART)
    monkeypatch.setattr(wheels, "_receive", original)
    assert fetch(PART).read_bytes() == MEMBER
    assert index.ranges == [None, "bytes=2000-"]


@pytest.mark.parametrize("status", [403, 404, 503])
def test_an_error_status_is_named(index, cache, status):
    index.status = status
    refused(f"127.0.0.1 answered with status {status}; run again later, or put the wheel")
    assert kept(cache) == []


def test_a_wrong_checksum_deletes_the_download(index, cache):
    index.body = WHEEL[:-1] + b"!"
    refused(r"tiny-part 1.2 arrived with SHA-256 [0-9a-f]{64}, not [0-9a-f]{64}, and was deleted; run again")
    assert kept(cache) == []
    index.body = WHEEL
    assert fetch(PART).read_bytes() == MEMBER


@pytest.mark.parametrize("part, message", [
    (replace(PART, member_sha256="0" * 64), "has not the SHA-256 of the manifest"),
    (replace(PART, member="tiny_part/nothing.bin"), "tiny-part 1.2 holds no tiny_part/nothing.bin"),
])  # fmt: skip
def test_a_wrong_member_is_not_unpacked(index, cache, part, message):
    refused(message, part)
    assert not [name for name in kept(cache) if not name.endswith(".whl")]


def test_a_full_disk_is_noticed_before_the_download(index, cache, monkeypatch):
    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_500_000))
    refused(rf"cache folder {cache} has 2 MB of free disk space and \S+ needs 3; make room, or set ADAPTER_LLM_")
    assert index.ranges == [] and kept(cache) == []


def test_a_disk_that_fills_up_meanwhile_is_a_sentence(index, cache, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(wheels, "_receive", full)
    refused("the disk is full; make room")


def test_a_cache_that_cannot_be_written_is_a_sentence(index, cache):
    cache.write_bytes(b"a file where the folder should be")
    refused(rf"the cache folder {cache} cannot be used \(.*; set ADAPTER_LLM_CACHE to a folder that")
    assert index.ranges == []


def test_a_filled_cache_may_be_read_only(index, cache, monkeypatch):
    path = fetch(PART)
    monkeypatch.setattr(files.Path, "mkdir", lambda *args, **kwargs: pytest.fail("written to"))
    assert fetch(PART) == path


def test_a_wheel_put_there_by_hand_is_used(index, cache, monkeypatch):
    cache.mkdir()
    (cache / NAME).write_bytes(WHEEL)
    monkeypatch.setattr(wheels, "_locate", lambda part: pytest.fail("asked pip"))
    assert fetch(PART).read_bytes() == MEMBER
    assert index.ranges == []


def test_a_wrong_wheel_put_there_by_hand_is_named_and_kept(index, cache):
    cache.mkdir()
    (cache / NAME).write_bytes(WHEEL[:-5])
    refused(rf"{cache / NAME} is not tiny-part 1.2: its SHA-256 differs; delete it")
    assert kept(cache) == [NAME]


def test_two_at_once_download_once(index, cache, capsys):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(fetch(PART).read_bytes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [MEMBER] * 4
    assert index.ranges == [None]
    assert capsys.readouterr().out == ""


def test_progress_goes_to_stderr(index, cache, capsys):
    fetch(PART)
    out, err = capsys.readouterr()
    assert out == "" and "fetching tiny-part 1.2 (1 MB: tiny_part/weights.bin)" in err and "100%" in err


@pytest.fixture
def pip(cache, monkeypatch):
    """The real pip, with no settings but the test's."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    return monkeypatch


def test_pip_says_where_the_wheel_is(pip, cache):
    with wheelhouse.serving() as server:
        pip.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        assert fetch(PART).read_bytes() == MEMBER
        assert server.ranges == [None]  # and pip has not downloaded it a second time
        assert "pip says 'Could not find a version" in refused("(from versions: 1.2)", replace(PART, version="9"))


def test_a_pip_that_lists_nothing_is_asked_another_way(pip, cache):
    ask = wheels._pip
    pip.setattr(wheels, "_pip", lambda command, *rest: ask("--version") if command == "index" else ask(command, *rest))
    with wheelhouse.serving() as server:
        pip.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        assert fetch(PART).read_bytes() == MEMBER


@pytest.mark.parametrize("name, right", [
    (NAME, True), ("Tiny.Part-1.2-py3-none-any.whl", True), ("tiny_part-1.20-py3-none-any.whl", False),
    ("tiny_part_more-1.2-py3-none-any.whl", False), ("tiny_part-1.2.tar.gz", False), ("x", False), ("", False),
])  # fmt: skip
def test_names_of_wheels(name, right):
    assert wheels._is_wheel_of(PART, name) == right


def test_wheels_in_the_users_own_folder_are_found(pip, cache, tmp_path):
    house = tmp_path / "a wheel house"
    house.mkdir()
    (house / NAME).write_bytes(WHEEL)
    pip.setenv("PIP_NO_INDEX", "1")
    pip.setenv("PIP_FIND_LINKS", house.as_uri())
    assert fetch(PART).read_bytes() == MEMBER
    assert files_in(house) == [NAME]


def test_no_network_is_a_sentence(pip, cache):
    pip.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    message = refused("tiny-part 1.2 cannot be located: pip reaches no package index that has it; check the network")
    assert f"or put the wheel that `pip download --no-deps tiny-part==1.2` gets into {cache}" in message
    assert kept(cache) == []


def test_python_without_pip_is_a_sentence(pip, cache):
    pip.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    refused("this Python has no pip; run .* -m ensurepip, or put the wheel")


def test_pips_own_settings_are_read(pip, tmp_path):
    (tmp_path / "pip.conf").write_text("[global]\ncert = /from/file\n")
    pip.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert wheels._pip_setting("cert") == "/from/file"
    assert wheels._pip_setting("proxy") is None
    pip.setenv("PIP_CERT", "/from/environment")
    assert wheels._pip_setting("cert") == "/from/environment"


def test_a_missing_certificate_file_is_named(monkeypatch):
    monkeypatch.setattr(wheels, "_pip_setting", lambda name: "/nowhere/ca.pem")
    with pytest.raises(FetchError, match="pip's certificate file /nowhere/ca.pem cannot be read"):
        wheels._certificates()


@pytest.mark.parametrize("field, value", [
    ("package", "--index-url=http://x"), ("package", "../x"), ("package", ""), ("version", "-1"), ("version", "1 2"),
    ("version", None), ("sha256", "0" * 63), ("sha256", "G" * 64), ("member", "../../etc/x"), ("member", "/etc/x"),
    ("member", "a//b"), ("member", ""), ("size", 0), ("size", True), ("size", "9"),
])  # fmt: skip
def test_manifests_cannot_smuggle_anything_in(field, value):
    with pytest.raises(ValueError, match=field):
        replace(PART, **{field: value})


def test_importing_it_is_light():
    script = "import sys, adapter_llm.fetch, adapter_llm.parts; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "httpx", "timm", "numpy", "filelock"} & set(done.stdout.split())
