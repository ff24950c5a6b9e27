"""Where the page's tests find a browser, and what they say where there is none."""

import importlib.util
import os
import subprocess

import browser
import pytest
from browser import NoBrowser

APT = "/usr/bin/apt-get"
COMMAND = "apt-get update && apt-get install -y --no-install-recommends chromium"


@pytest.fixture
def machine(monkeypatch):
    """A machine with these programs and rights, on which each command ends so; gives the commands that were run."""

    def simulate(programs=(), root=True, playwright=True, ends=lambda step: (0, ""), brings=None):
        programs, ran = dict(programs), []

        def run(step, **kwargs):
            ran.append(step)
            code, words = ends(step)
            programs.update(brings or {})
            return subprocess.CompletedProcess(step, code, "", words)

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if playwright else None)
        monkeypatch.setattr(browser.shutil, "which", programs.get)
        monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
        monkeypatch.setattr(subprocess, "run", run)
        return ran

    return simulate


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome"])
def test_a_browser_that_is_there_is_taken(machine, capfd, name):
    ran = machine({name: f"/usr/bin/{name}", "apt-get": APT})
    assert browser.chromium() == f"/usr/bin/{name}"
    assert ran == [] and capfd.readouterr() == ("", "")


def test_root_installs_it_and_says_so_in_one_line(machine, capfd):
    ran = machine({"apt-get": APT}, brings={"chromium": "/usr/bin/chromium"})
    assert browser.chromium() == "/usr/bin/chromium"
    assert " && ".join(map(" ".join, ran)) == COMMAND
    out, err = capfd.readouterr()
    assert out == "" and err.strip().endswith(COMMAND) and len(err.strip().splitlines()) == 1


def fails(step):
    return (100, "Reading\nE: Unable to fetch\n") if "install" in step else (0, "")


def hangs(step):
    raise subprocess.TimeoutExpired(step, 300)


@pytest.mark.parametrize("given, words, tried", [
    (dict(playwright=False, programs={"chromium": "/usr/bin/chromium"}), "pip install playwright", 0),
    (dict(), "there is no apt-get: install Chromium or Chrome", 0),
    (dict(programs={"apt-get": APT}, root=False), f"only root may install it: sudo sh -c '{COMMAND}'", 0),
    (dict(programs={"apt-get": APT}, ends=fails), f"chromium` failed (E: Unable to fetch): {COMMAND}", 2),
    (dict(programs={"apt-get": APT}, ends=lambda step: (1, "")), f"update` failed (it did not say why): {COMMAND}", 1),
    (dict(programs={"apt-get": APT}, ends=hangs), f"`apt-get update` took over 300 s: {COMMAND}", 1),
    (dict(programs={"apt-get": APT}), "none of these is on the PATH: chromium, ", 2),
])  # fmt: skip
def test_where_none_can_be_had_the_reason_and_the_remedy_are_said(machine, given, words, tried):
    ran = machine(**given)
    with pytest.raises(NoBrowser) as refused:
        browser.chromium()
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert len(ran) == tried


def test_only_root_goes_without_the_sandbox(machine):
    machine(root=True)
    assert "--no-sandbox" in browser.arguments("a.wav")
    machine(root=False)
    assert "--no-sandbox" not in browser.arguments("a.wav")
