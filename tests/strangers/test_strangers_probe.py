"""The look into a film by a process of its own: it ends in time, and its own mistakes are nobody's file's."""

import io
import subprocess
import sys
import time

import pytest
from hostile_files import film, sound

from adapter_llm.strangers import headers, probe
from adapter_llm.strangers.headers import PROBE, ProbeError, check_header
from adapter_llm.strangers.limits import MediaLimits
from imagebind_encoder.media.source import MediaError

LIMITS = MediaLimits(reading_seconds=20.0)

linux = pytest.mark.skipif(not probe.STATUS.exists(), reason="the system does not tell what a process has in memory")


def refused(keyword, data, limits=LIMITS):
    with pytest.raises(MediaError) as error:
        check_header(keyword, data, limits)
    return str(error.value)


def test_a_probe_that_takes_too_long(monkeypatch, tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(headers, "PROBE", slow)
    begun = time.monotonic()
    assert "takes too long or too much memory" in refused("video", film(), MediaLimits(reading_seconds=0.2))
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("code", ["import os; os.abort()", "while True: pass", f"raise SystemExit({probe.TOO_MUCH})"])
def test_a_probe_that_ends_before_its_time(monkeypatch, tmp_path, code):
    broken = tmp_path / "broken.py"
    broken.write_text(code)
    monkeypatch.setattr(headers, "PROBE", broken)
    assert "takes too long or too much memory" in refused("audio", sound(1), MediaLimits(reading_seconds=0.2))


@pytest.mark.parametrize("code", ["raise SystemExit(7)", "raise KeyError('secret')", "print('no JSON')"])
def test_a_probe_that_breaks_is_nobodys_file(monkeypatch, tmp_path, code):
    """But the server's own mistake, which is not said of the file."""
    broken = tmp_path / "broken.py"
    broken.write_text(code)
    monkeypatch.setattr(headers, "PROBE", broken)
    with pytest.raises(ProbeError, match="the probe of a .* ended with code|the probe of a .* said") as error:
        check_header("audio", sound(1), LIMITS)
    assert not isinstance(error.value, ValueError)
    assert "secret" not in code or "secret" in str(error.value)


def test_the_probe_finds_packages_where_this_process_does(monkeypatch, tmp_path):
    """Also those of --user and PYTHONPATH."""
    (tmp_path / "av.py").write_text("raise ImportError('of the parent')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ProbeError, match="of the parent"):
        check_header("audio", sound(1), LIMITS)


def test_the_probe_is_not_led_astray(monkeypatch, tmp_path):
    """By what lies in the current folder, or by variables of the environment."""
    for name in ("av", "json", "adapter_llm"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('a trap')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", ["", ".", *sys.path])
    assert check_header("audio", sound(1), LIMITS) == 0


def test_a_probe_without_memory_has_taken_too_much(monkeypatch):
    def look(data, kind):
        raise MemoryError

    monkeypatch.setattr(sys, "argv", ["probe.py", "[]", "video", str(2**40), "9"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(film())))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(probe, "guard", lambda memory, seconds: None)
    monkeypatch.setattr(probe, "look", look)
    monkeypatch.setattr(probe.os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        probe.main()
    assert ended.value.code == probe.TOO_MUCH


@linux
def test_a_peak_that_nobody_saw_counts(monkeypatch):
    """The memory is looked at now and then, and filling it may be over in between."""
    monkeypatch.setattr(sys, "argv", ["probe.py", "[]", "video", "1000", "9"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(film())))
    monkeypatch.setattr(probe, "guard", lambda memory, seconds: None)
    monkeypatch.setattr(probe.os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        probe.main()
    assert ended.value.code == probe.TOO_MUCH


@linux
def test_a_probe_ends_itself():
    """Also where nobody waits for it."""
    code = "import sys; sys.argv = ['', 'video', str(10**9), '1']; sys.path.insert(0, sys.path[0])\n"
    code += f"import runpy; runpy.run_path({str(PROBE)!r})['guard'](10**9, 1)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", code], timeout=20)
    assert done.returncode < 0
    code = f"import runpy, time; runpy.run_path({str(PROBE)!r})['guard'](10**8, 9)\n"
    code += "x = bytearray(2 * 10**8); time.sleep(9)"
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 3
