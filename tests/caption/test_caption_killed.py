"""kill -9 at any moment, run again: every input exactly once, and nothing is done twice."""

import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from output_readers import FORMATS, NAMES, found

SCRIPT = Path(__file__).parent / "killed_writer.py"
RUNS = ("first", "torn", "retry", "again", "merge")  # see killed_writer.first_run


def kill_at_places(tmp_path, forms, kind, first, step):
    """How many places there were in each format."""
    command = [sys.executable, str(SCRIPT), str(tmp_path), ",".join(forms), kind, str(first), str(step)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return [int(line.split()[1]) for line in ended.stdout.splitlines()]


def test_killed_at_some_places(tmp_path):
    forms = FORMATS if find_spec("pyarrow") else [form for form in FORMATS if form != "parquet"]
    assert min(kill_at_places(tmp_path, forms, "first", random.randrange(8, 30), 37)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("form", FORMATS)
def test_killed_before_every_call_of_the_system(tmp_path, form, kind):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    assert kill_at_places(tmp_path, [form], kind, 1, 1)[0] > 4


WRITER = """
import sys
sys.path[:0] = {path!r}
from output_readers import done
from adapter_llm.caption.outputs import OutputOptions, open_output
output = open_output(sys.argv[1], sys.argv[2], options=OutputOptions(rows_a_part=50, samples_a_tar=30))
print("open", flush=True)
for start in range(0, 300, 5):
    batch = [done(number) for number in range(start, start + 5)]
    output.write([one for one in batch if not output.finished(one.row.id, "h1")])
output.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_killed_at_random_moments(tmp_path, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    if form == "parquet":
        pytest.importorskip("pyarrow")
    here = Path(__file__).parent
    script = WRITER.format(path=[str(here), str(here.parent.parent)])
    output, kills = tmp_path / NAMES[form], 0
    while True:
        process = subprocess.Popen([sys.executable, "-c", script, str(output), form], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(random.random() * 0.03)
        if kills < 8:
            process.send_signal(signal.SIGKILL)
        process.stdout.close()
        code = process.wait()
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
        kills += 1
    rows = found(form, output)
    assert sorted(row[0] for row in rows) == sorted(f"q/{number}.jpg" for number in range(300))
