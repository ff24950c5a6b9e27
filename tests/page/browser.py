"""A Chromium for the tests of the chat page: found, or installed by apt-get, or a reason why not."""

import importlib.util
import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL = (("apt-get", "update"), ("apt-get", "install", "-y", "--no-install-recommends", "chromium"))
PATIENCE = 300  # seconds for each of them
QUIET = (  # a browser that calls nobody by itself
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-device-for-media-stream",  # a microphone and a camera, where the machine has none
    "--use-fake-ui-for-media-stream",
)


class NoBrowser(RuntimeError):
    """Why no page can be opened here, and the command that would help."""


def chromium() -> str:
    """The path of a Chromium, which is installed first where this process may do so. Raises NoBrowser."""
    if importlib.util.find_spec("playwright") is None:
        raise NoBrowser("Playwright's Python package is missing: pip install playwright")
    if not (path := found()):
        install()
        path = found()
    if not path:
        raise NoBrowser("apt-get installed chromium, but none of these is on the PATH: " + ", ".join(NAMES))
    return path


def found() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


def install() -> None:
    """Debian's chromium by apt-get, in processes of its own. Raises NoBrowser."""
    command = " && ".join(" ".join(step) for step in INSTALL)
    if not shutil.which("apt-get"):
        raise NoBrowser("Chromium is missing, and there is no apt-get: install Chromium or Chrome with your system")
    if not is_root():
        raise NoBrowser(f"Chromium is missing, and only root may install it: sudo sh -c '{command}'")
    print(f"\nChromium is missing, so the page's tests install it: {command}", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in INSTALL:
        try:
            done = subprocess.run(step, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise NoBrowser(f"Chromium is missing, and `{' '.join(step)}` took over {PATIENCE} s: {command}") from None
        if done.returncode:
            last = (done.stderr.strip() or "it did not say why").splitlines()[-1]
            raise NoBrowser(f"Chromium is missing, and `{' '.join(step)}` failed ({last}): {command}")


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def arguments(heard: Path) -> list[str]:
    """What Chromium is started with; its microphone hears this recording. Its sandbox refuses to work for root."""
    microphone = f"--use-file-for-fake-audio-capture={heard}"
    return [*QUIET, microphone, *(["--no-sandbox"] if is_root() else [])]


def noise(path: Path, seconds: float = 0.5) -> Path:
    """Make a recording there."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(range(250)) * int(seconds * 128))
    return path
