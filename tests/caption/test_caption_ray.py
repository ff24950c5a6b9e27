"""Captions by workers on a Ray of this machine: the rows of one process, whoever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import folders
import pytest

from adapter_llm.__main__ import main
from adapter_llm.caption.captioner import CaptionOptions
from adapter_llm.caption.content import LocalFile
from adapter_llm.caption.inputs import Input, SourceOptions, read_inputs
from adapter_llm.caption.job import CaptionError, Job, run_job
from adapter_llm.caption.model import ModelFolders
from adapter_llm.caption.outputs import open_output
from adapter_llm.caption.ray_engine import AHEAD, EngineError, RayEngine, _Sender, _with_content
from adapter_llm.results import GenerationOptions

pytestmark = [
    pytest.mark.loopback,
    # Ray Data sets its own deprecated settings when it makes its defaults
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
ROOT = Path(__file__).parents[2]
COUNT, SIZE = 23, 3


@pytest.fixture(scope="module")
def cluster():
    """Two workers' Ray. What this file defines is sent to them, who could not import it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        engine = RayEngine(workers=2)
        with engine.connected() as ray:
            here = sys.modules[__name__]
            ray.cloudpickle.register_pickle_by_value(here)
            yield engine
            ray.cloudpickle.unregister_pickle_by_value(here)


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    for seed in range(COUNT):
        folders.picture(seed, 40 + seed, 50).save(folder / f"{seed}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def job(media, weights, decoder):
    model = ModelFolders.find(weights, decoder, device="cpu", dtype="float32")
    options = CaptionOptions("What?", GenerationOptions(max_new_tokens=7), batch_size=SIZE, readers=2)
    return Job(model, [str(media)], SourceOptions(model.keywords), options)


def changed(job, kind, **more):
    return kind(**vars(job) | more)


def written(job, path, **options):
    """How the job ends, and its rows but for their times, by their ids; each once."""
    output = open_output(path)
    try:
        outcome = run_job(job, output, show=False, **options)
    finally:
        output.close()
    return outcome, rows_of(path)


def rows_of(path):
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: {name: row[name] for name in row if name != "seconds"} for row in rows}


@dataclass(frozen=True)
class Deadly(Job):
    """One input kills the first worker that reads it; `notes` has, by input, which workers read it."""

    notes: str = ""
    deadly: str = ""

    def captioner(self, kinds, keep_content=False):
        captioner = super().captioner(kinds, keep_content)
        read, notes = captioner._read, Path(self.notes)

        def noted(entry):
            name = Path(entry.path).name
            with (notes / name).open("a") as file:
                file.write(f"{os.getpid()}\n")
            if name == self.deadly and (notes / name).read_text().count("\n") == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(entry)

        captioner._read = noted
        return captioner


@needs_ray
def test_the_rows_of_one_process(cluster, job, tmp_path):
    """With a file that is no picture, a worker that is killed, and rows that were there before."""
    _, alone = written(job, tmp_path / "alone.jsonl")
    assert len(alone) == COUNT + 1
    output, notes = tmp_path / "rows.jsonl", tmp_path / "notes"
    notes.mkdir()
    few = [str(Path(job.given[0]) / f"{seed}.png") for seed in range(4)]
    written(changed(job, Job, given=few), output)
    deadly = changed(job, Deadly, notes=str(notes), deadly="11.png")
    outcome, rows = written(deadly, output, writer=cluster.captions)
    assert rows == alone
    assert (outcome.kept, outcome.captioned, outcome.failed) == (4, COUNT - 4, 1)
    read = {path.name: path.read_text().split() for path in notes.iterdir()}
    assert read.keys() == {"broken.png"} | {f"{seed}.png" for seed in range(4, COUNT)}, "finished work was sent"
    assert len({worker for workers in read.values() for worker in workers}) == 3, "two workers, and one that was killed"
    assert len(read["11.png"]) == 2
    again = sum(len(workers) > 1 for workers in read.values())
    assert again <= 2 * SIZE, "more was done again than what the worker had in hand"


@dataclass(frozen=True)
class Unloadable(Job):
    def captioner(self, kinds, keep_content=False):
        raise ValueError("there are no weights here; get them")


@needs_ray
def test_the_first_error_is_the_end_where_it_is_to_be(cluster, job, tmp_path):
    """And what is wrong with the model is said as it is said with one process."""
    few = [str(Path(job.given[0]) / name) for name in ("broken.png", "1.png")]
    with pytest.raises(CaptionError, match="broken.png"):
        written(changed(job, Job, given=few, on_error="fail"), tmp_path / "rows.jsonl", writer=cluster.captions)
    assert rows_of(tmp_path / "rows.jsonl")[few[0]]["status"] == "error"
    with pytest.raises(ValueError, match="^there are no weights here; get them$") as caught:
        written(changed(job, Unloadable), tmp_path / "none.jsonl", writer=cluster.captions)
    assert "in captioner" in str(caught.value.__cause__), "where it was raised is lost"
    assert not rows_of(tmp_path / "none.jsonl")


@needs_ray
def test_an_input_that_ends_every_worker_is_found(cluster, job):
    """A worker that is tried again takes inputs one by one, and leaves out the one over which two died alone."""
    import pyarrow
    import ray

    from adapter_llm.caption.ray_engine import _start_feed
    from adapter_llm.caption.ray_feed import CHUNK
    from adapter_llm.caption.ray_workers import Worker, WorkerError

    feed = _start_feed(ray)
    entries = [entry_of(Path(job.given[0]) / f"{seed}.png") for seed in range(4)]
    chunk = [ray.cloudpickle.dumps(entry) for entry in entries]
    table = pyarrow.table({"number": [0], "inputs": [chunk]}, CHUNK)
    ray.get(feed.add.remote(chunk))

    def tell(worker):
        [answer] = worker(table).to_pylist()
        assert answer["number"] == 0
        return answer["error"], [json.loads(row)["error"] for row in answer["rows"]]

    for _ in range(2):  # the process that reads from the feed may die, too
        assert ray.get(feed.chunk.remote(0)) == chunk
    assert not ray.get(feed.begin.remote(0))  # a worker dies here; then one that was alone with 0, 1 and 2, twice
    for place in (0, 1, 2, 0, 1, 2):
        assert ray.get(feed.begin_alone.remote(0, place))
    error, rows = tell(Worker(job, {"image"}, 1, feed))
    assert error is None and [bool(row) for row in rows] == [False, False, True, False]
    assert "2.png' ended each worker that read it" in rows[2]
    worker = Worker(job, {"image"}, 1, feed)
    for place in (0, 0, 3, 3):
        ray.get(feed.begin_alone.remote(0, place))
    error, rows = tell(worker)
    assert error is None and [bool(row) for row in rows] == [True, False, True, True]
    for place in (1, 1):  # nothing that was read survives: it is not the files
        ray.get(feed.begin_alone.remote(0, place))
    error, rows = tell(worker)
    broken, _ = ray.cloudpickle.loads(error)
    assert not rows and isinstance(broken, WorkerError) and "workers died again and again" in str(broken)
    ray.get(feed.done.remote(0))
    assert not ray.get(feed.begin.remote(0)) and ray.get(feed.chunk.remote(0)) == []
    feed.end.remote()
    assert ray.get(feed.chunk.remote(1)) is None


def entry_of(path):
    return Input(str(path), str(path), "image", None, LocalFile(str(path)))


@needs_ray
def test_no_more_is_under_way_than_keeps_the_workers_busy(cluster):
    """Of however many inputs. What breaks them off comes after what was before it."""
    import ray

    from adapter_llm.caption.ray_engine import _start_feed

    walked = []

    def endless():
        for number in range(10**9):
            walked.append(number)
            yield entry_of(f"{number}.png")

    feed = _start_feed(ray)
    sender = _Sender(ray, feed, endless(), SIZE, AHEAD)
    assert sender.wait(2) == 2
    for number in range(5):
        assert len(ray.get(feed.chunk.remote(number))) == SIZE
        time.sleep(0.1)
        assert len(walked) <= (number + AHEAD) * SIZE
        inputs = sender.received(number)
        assert [one.id for one in inputs] == [f"{SIZE * number + place}.png" for place in range(SIZE)]
        assert sender.received(number) == [], "the rows of a chunk count twice"
    sender.close()

    def few():
        yield from map(entry_of, "abcd")
        raise ValueError("a damaged archive")

    sender = _Sender(ray, feed, few(), SIZE, AHEAD)
    assert sender.wait(9) == 1
    with pytest.raises(ValueError, match="a damaged archive"):
        sender.check()


@needs_ray
def test_one_file_with_two_prompts(cluster, job, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("path,ask\nmedia/1.png,Who?\nmedia/1.png,\nmedia/1.png,Why?\n")
    sources = SourceOptions(job.sources.keywords, prompt_column="ask")
    twice = changed(job, Job, given=[str(table)], sources=sources)
    entries = iter(read_inputs(twice.given, sources))
    with closing(cluster.captions(twice, {"image"}, False, entries)) as results:
        done = [one for some in results for one in some]
    assert {(one.item.prompt, one.row.prompt) for one in done} == {("Who?",) * 2, (None, "What?"), ("Why?",) * 2}


def test_media_that_were_changed_meanwhile_are_not_kept(job, tmp_path):
    _, rows = written(job, tmp_path / "rows.jsonl")
    from adapter_llm.caption.done import Done
    from adapter_llm.caption.rows import CaptionRow

    ok, broken = (Path(job.given[0]) / name for name in ("3.png", "broken.png"))
    done = [Done(CaptionRow(**rows[str(path)], seconds=0.0), entry_of(path)) for path in (ok, broken)]
    kept = _with_content(done[0])
    assert kept.row == done[0].row and kept.content.data() == ok.read_bytes()
    assert _with_content(done[1]) == done[1]
    ok.write_bytes(b"something else")
    lost = _with_content(done[0])
    assert lost.content is None and not lost.row.ok and lost.row.caption is None
    assert "was changed while it was captioned; run again" in lost.row.error
    undone = {name: getattr(done[0].row, name) for name in ("caption", "finish_reason", "status", "error")}
    assert replace(lost.row, **undone) == done[0].row


def test_options_that_do_not_go_together(monkeypatch, capsys):
    def told(*options):
        with pytest.raises(SystemExit) as caught:
            main(["caption", "x.png", "--output", "x.jsonl", *options])
        assert caught.value.code == 2
        return capsys.readouterr().err

    assert "--workers and --ray-address are for --engine ray" in told("--workers", "2")
    assert "write --device cuda, not cuda:1" in told("--engine", "ray", "--device", "cuda:1")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert "start it without accelerate or torchrun" in told("--engine", "ray")
    with pytest.raises(EngineError, match="'ray://head:10001' is no address of a cluster's head; .* auto or host:port"):
        RayEngine(address="ray://head:10001")


def test_without_ray_the_extra_is_named(monkeypatch, job, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r'^--engine ray needs Ray; pip install "adapter-llm\[ray\]"$'):
        written(job, tmp_path / "rows.jsonl", writer=RayEngine().captions)


@pytest.mark.parametrize(
    ("engine", "device", "resources", "expected"),
    [
        (RayEngine(), "auto", {"CPU": 64.0, "GPU": 8.0}, (8, 1)),
        (RayEngine(workers=3), "cuda", {"CPU": 64.0, "GPU": 8.0}, (3, 1)),
        (RayEngine(workers=5), "auto", {"CPU": 64.0, "GPU": 2.0}, (5, 1 / 3)),
        (RayEngine(threads=4), "cpu", {"CPU": 63.0, "GPU": 8.0}, (15, 0)),
        (RayEngine(), "auto", {"CPU": 2.0}, (2, 0)),
    ],
)
def test_as_many_workers_as_there_are_gpus_or_else_processors(engine, device, resources, expected):
    assert engine._size(resources, device) == expected
    with pytest.raises(EngineError, match="a worker takes 9 processors, and the cluster has 8"):
        RayEngine(threads=9)._size({"CPU": 8.0}, "cpu")


@pytest.mark.slow
@needs_ray
def test_killed_and_run_again(job, weights, decoder, tmp_path):
    """The driver: what is written stays and is not done again; and nothing but the path is printed."""
    _, alone = written(job, tmp_path / "alone.jsonl")
    output = tmp_path / "rows.jsonl"
    model = ["--weights", str(weights), "--llm", str(decoder), "--device", "cpu", "--dtype", "float32"]
    options = f"--prompt What? --max-new-tokens 7 --batch-size {SIZE} --engine ray --workers 2".split()
    command = [sys.executable, "-m", "adapter_llm", "caption", *job.given, "--output", str(output), *model, *options]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while run.poll() is None and (not output.exists() or output.read_bytes().count(b"\n") < 5):
        time.sleep(0.05)
    run.kill()
    run.wait()
    before = rows_of(output)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (1, f"{output}\n")
    kept = sum(row["status"] == "ok" for row in before.values())
    assert f"{COUNT - kept} captioned, {kept} there already, 1 failed" in again.stderr or kept in (0, COUNT)
    assert rows_of(output) == alone
