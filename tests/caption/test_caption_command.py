"""python -m adapter_llm caption: what it prints, what it writes, and how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import folders
import psutil
import pytest

from adapter_llm import cli
from adapter_llm.__main__ import main

ROOT = Path(__file__).parents[2]
COUNT = 7


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    for seed in range(COUNT):
        folders.picture(seed, 40 + seed, 50).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def arguments(weights, decoder):
    return ["--weights", str(weights), "--llm", str(decoder), "--device", "cpu", "--max-new-tokens", "5"]


@pytest.fixture
def run(monkeypatch, arguments, capsys, pipe):
    """Exit code, stdout and stderr of a command, and the media that a model was loaded for."""
    from adapter_llm.pipeline import Pipeline

    monkeypatch.setattr(cli, "quiet", lambda: None)  # it changes the process for good
    loaded = []

    def load(weights, llm, media, **options):
        loaded.append(media)
        return Pipeline(pipe.checkpoint, settings=options["settings"]) if hasattr(pipe, "checkpoint") else pipe

    monkeypatch.setattr(Pipeline, "from_pretrained", load)

    def call(*given):
        loaded.clear()
        try:
            code = main(["caption", *map(str, given), *arguments])
        except SystemExit as end:
            code = end.code
        found = capsys.readouterr()
        return code, found.out, found.err

    call.loaded = loaded
    return call


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_folder(run, media, tmp_path, pipe):
    output = tmp_path / "rows.jsonl"
    code, out, err = run(media, "--output", output)
    assert (code, out, run.loaded) == (0, f"{output}\n", [{"image"}])
    assert err.startswith(f"{COUNT} inputs: {COUNT} captioned; ") and err.count("\n") == 1
    rows = rows_of(output)
    assert {row["path"] for row in rows} == {str(path) for path in media.iterdir()}
    for row in rows:
        assert row["caption"] == pipe.ask(image=row["path"], max_new_tokens=5)
        assert row["prompt"] == "Describe this picture." and row["model"].endswith(f"@{row['model'][-8:]}")
    code, out, err = run(media, "--output", output)
    assert (code, err, run.loaded) == (0, f"{COUNT} inputs: 0 captioned, {COUNT} there already; 0.0 s\n", [])
    assert rows_of(output) == rows
    code, _, err = run(media, "--output", output, "--no-resume")
    assert code == 0 and f"{COUNT} captioned;" in err and len(rows_of(output)) == COUNT


def test_options_reach_the_model(run, media, tmp_path, pipe):
    output = tmp_path / "rows.jsonl"
    drawing = ["--temperature", 1.2, "--top-p", 0.8, "--seed", 5, "--max-new-tokens", 3]
    code, *_ = run(media, "--output", output, "--prompt", "Hi", "--batch-size", 2, "--readers", 1, *drawing)
    assert code == 0  # the fixture's --max-new-tokens comes last
    for row in rows_of(output):
        assert row["generation"] == {"max_new_tokens": 5, "temperature": 1.2, "top_p": 0.8, "seed": 5}
        single = pipe.ask("Hi", image=row["path"], max_new_tokens=5, temperature=1.2, top_p=0.8, seed=5)
        assert (row["prompt"], row["caption"]) == ("Hi", single)


def test_weights_that_demo_can_use_can_caption(run, media, tmp_path, monkeypatch):
    from adapter_llm.pipeline import Pipeline

    load, given = Pipeline.from_pretrained, {}

    def watched(*args, **options):
        given.update(options)
        return load(*args, **options)

    monkeypatch.setattr(Pipeline, "from_pretrained", watched)
    flags = ["--faithful", "--allow-base-mismatch", "--device-map", "auto", "--offload-folder", "x"]
    plain, published = tmp_path / "plain.jsonl", tmp_path / "published.jsonl"
    assert run(media, "--output", plain)[0] == run(media, "--output", published, *flags)[0] == 0
    assert {name: given[name] for name in ("faithful", "allow_base_mismatch", "device_map", "offload_folder")} == {
        "faithful": True, "allow_base_mismatch": True, "device_map": "auto", "offload_folder": "x",
    }  # fmt: skip
    hashes = [{row["config_hash"] for row in rows_of(path)} for path in (plain, published)]
    assert len(hashes[0]) == len(hashes[1]) == 1 and hashes[0] != hashes[1]


def test_one_text_beside_a_file_that_is_asked_about_twice(run, media, tmp_path):
    table = tmp_path / "photos.csv"
    table.write_text("file,ask\nmedia/0.png,Hi\nmedia/0.png,Why?\n")
    code, _, err = run(table, "--output", media, "--format", "txt", "--prompt-column", "ask")
    assert code == 1 and "1 captioned, 1 failed" in err
    assert "is asked about twice, and there is room for one caption" in err
    code, *_ = run(table, "--output", tmp_path / "rows.jsonl", "--prompt-column", "ask")
    assert code == 0 and sorted(row["prompt"] for row in rows_of(tmp_path / "rows.jsonl")) == ["Hi", "Why?"]


def test_prompts_and_ids_of_a_table(run, media, tmp_path, pipe):
    table = tmp_path / "photos.csv"
    table.write_text("name,photo,ask\na,media/0.png,Hi\nb,media/1.png,\nc,media/0.png,Why?\n")
    output = tmp_path / "rows.jsonl"
    code, _, err = run(table, "--output", output, "--path-column", "photo", "--id-column", "name",
                       "--prompt-column", "ask", "--prompt", "What is this?")  # fmt: skip
    assert code == 0, err
    rows = {row["id"]: row for row in rows_of(output)}
    assert {name: row["prompt"] for name, row in rows.items()} == {"a": "Hi", "b": "What is this?", "c": "Why?"}
    for row in rows.values():
        assert row["caption"] == pipe.ask(row["prompt"], image=row["path"], max_new_tokens=5)


def test_a_prompt_beside_a_file(run, media, tmp_path):
    (media / "3.ask").write_text("Why?")
    code, *_ = run(media, "--output", tmp_path / "rows.jsonl", "--prompt-suffix", ".ask")
    asked = {os.path.basename(row["path"]): row["prompt"] for row in rows_of(tmp_path / "rows.jsonl")}
    assert code == 0 and [name for name, prompt in asked.items() if prompt == "Why?"] == ["3.png"]


def test_bad_files_are_told_and_the_exit_code_tells(run, media, tmp_path):
    (media / "bad.png").write_bytes(b"no picture")
    output = tmp_path / "rows.jsonl"
    code, out, err = run(media, tmp_path / "none.png", "--output", output)
    assert (code, out) == (1, f"{output}\n")
    assert f"{COUNT} captioned, 2 failed" in err.splitlines()[-1]
    assert "bad.png' is not a picture" in err and "there is no file" in err
    assert sorted(row["status"] for row in rows_of(output)) == ["error"] * 2 + ["ok"] * COUNT
    code, out, err = run(media, "--output", tmp_path / "other.jsonl", "--on-error", "fail")
    assert (code, out) == (1, "") and "with --on-error fail nothing more is done" in err.splitlines()[-1]


def test_files_that_are_left_out_are_counted(run, media, tmp_path):
    (media / "notes.xyz").write_text("")
    code, _, err = run(media, "--output", tmp_path / "rows.jsonl")
    assert code == 0 and err.splitlines()[0] == "files left out: 1 of unknown kind"


def test_shares_by_hand_and_together(run, media, tmp_path):
    output = tmp_path / "rows.jsonl"
    for share in ("1/3", "3/3"):
        code, out, err = run(media, "--output", output, "--shard", share)
        assert code == 0 and not output.exists()
        assert out == f"{tmp_path}/rows.shard-0000{share[0]}.jsonl\n" and Path(out.strip()).exists()
        assert f"share {share[0]} of 3; when all are done, the same command without --shard brings" in err
    folder = tmp_path / "parts"
    assert run(media, "--output", folder, "--format", "txt", "--shard", "2/3")[1] == f"{folder}\n"
    shutil.rmtree(folder)
    code, out, err = run(media, "--output", output)  # takes up both, and does the rest
    kept = int(err.split(" there already")[0].split()[-1])
    assert code == 0 and 0 < kept < COUNT and len(rows_of(output)) == COUNT and out == f"{output}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["media", "rows.jsonl"]
    assert len({row["id"] for row in rows_of(output)}) == COUNT


@pytest.mark.parametrize("given, message", [
    (["{media}"], "the following arguments are required: --output"),
    (["--output", "x.jsonl"], "the following arguments are required: INPUT"),
    (["{media}", "--output", "x.jsonl", "--as", "smell"], "invalid choice: 'smell'"),
    (["{media}", "--output", "x.jsonl", "--shard", "0/4"], "'0/4' is no share; write I/N, counted from 1"),
    (["{media}", "--output", "x.jsonl", "--batch-size", "0"], "'0' is not a whole number from 1 up"),
    (["{media}", "--output", "x.jsonl", "--set", "imu"], "'imu' is no setting; write KIND.NAME=VALUE"),
    (["{media}", "--output", "x.jsonl", "--blend", "0.5"], "--blend says how much of an index to take in"),
    (["{media}", "--output", "x.jsonl", "--shard", "1/2", "--no-resume"], "--no-resume would throw away what the"),
    (["{media}", "--output", "x.jsonl", "--device-map", "auto", "--engine", "ray"], "start one process, without Ray"),
    (["{media}", "--output", "x.jsonl", "--prompt", " "], "the prompt is empty; ask something, or leave"),
    (["{media}", "--output", "{media}/x.csv"], "x.csv ends in none of .jsonl, .parquet"),
    (["{media}", "--output", "{media}"], "for a folder, say --format txt, webdataset or parquet"),
    (["t.csv", "--output", "x.jsonl", "--prompt-column", "quest"],
     "--prompt-column quest: the table 't.csv' has no such column, but path, question"),
])  # fmt: skip
def test_wrong_use_is_one_line(run, media, monkeypatch, tmp_path, given, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("path,question\nmedia/0.png,Why?\n")
    code, out, err = run(*(argument.format(media=media) for argument in given))
    assert (code, out, run.loaded) == (2, "", []) and message in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["media", "t.csv"], "nothing is left behind"


@pytest.mark.parametrize("given, message", [
    (["{media}", "--output", "{media}/notes.jsonl"], "notes.jsonl"),
    (["{media}", "--output", "x.jsonl", "--set", "imu.speed=3"], "there is no setting 'imu.speed'"),
    (["{media}", "--output", "x.jsonl", "--as", "audio"], "audio"),
    (["{media}", "--output", "x.jsonl", "--index", "none.index"], "none.index"),
    (["{media}", "--output", "x.jsonl", "--weights", "nowhere"], "there is no weights folder nowhere"),
])  # fmt: skip
def test_what_is_wrong_is_said_before_a_model_is_loaded(run, arguments, media, monkeypatch, tmp_path, given, message):
    monkeypatch.chdir(tmp_path)
    (media / "notes.jsonl").write_text("somebody's\n")
    if "--weights" in given:
        del arguments[:2]
    code, out, err = run(*(argument.format(media=media) for argument in given))
    assert (code, out, run.loaded) == (1, "", []) and message in err and err.count("\n") == 1
    assert (media / "notes.jsonl").read_text() == "somebody's\n" and not (tmp_path / "x.jsonl").exists()


def test_an_error_can_be_looked_into(run, media, tmp_path):
    with pytest.raises(ValueError, match="there is no setting 'imu.speed'"):
        run("--debug", media, "--output", tmp_path / "x.jsonl", "--set", "imu.speed=3")


def test_launched_processes_cannot_share_stdin(run, tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = run("-", "--output", tmp_path / "x.jsonl")
    assert code == 2 and "stdin can be read by one process alone; write the list to a file" in err


def test_stopping_says_how_to_go_on(run, media, tmp_path, monkeypatch):
    from adapter_llm.batch import RunningBatch

    def press(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunningBatch, "step", press)
        code, out, err = run(media, "--output", tmp_path / "rows.jsonl")
    assert (code, out) == (130, "") and "the same command goes on from there" in err
    assert run(media, "--output", tmp_path / "rows.jsonl")[0] == 0


def test_sigterm_is_like_ctrl_c(run, media, tmp_path, monkeypatch):
    from adapter_llm.batch import RunningBatch

    step, steps = RunningBatch.step, []

    def end(self):
        if len(steps) == 20:
            signal.raise_signal(signal.SIGTERM)
        return steps.append(0) or step(self)

    output = tmp_path / "rows.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(RunningBatch, "step", end)
        code, out, err = run(media, "--output", output, "--batch-size", 1)
    assert (code, out) == (130, "") and "the same command goes on from there" in err and rows_of(output)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert run(media, "--output", output)[0] == 0 and len(rows_of(output)) == COUNT


def test_pipes_are_errors_and_nobody_waits_for_them(run, media, tmp_path):
    os.mkfifo(media / "x.png")
    os.mkfifo(tmp_path / "t.csv")
    output = tmp_path / "rows.jsonl"
    code, _, err = run(media, tmp_path / "t.csv", "--output", output)
    assert code == 1 and f"{COUNT} captioned, 2 failed" in err and err.count("is no regular file") == 2
    [row] = [row for row in rows_of(output) if row["status"] == "error"]
    assert row["path"] == str(media / "x.png") and "is no regular file" in row["error"]
    code, _, err = run(media / "x.png", "--output", tmp_path / "one.jsonl")
    assert (code, run.loaded, len(rows_of(tmp_path / "one.jsonl"))) == (1, [], 1)


def test_help_loads_nothing_heavy_and_finished_work_no_model(arguments, media, tmp_path, run):
    assert run(media, "--output", tmp_path / "rows.jsonl", "--dtype", "float32")[0] == 0
    command = ["caption", str(media), "--output", str(tmp_path / "rows.jsonl"), *arguments, "--dtype", "float32"]
    script = f"""
import sys
from adapter_llm.__main__ import main
try:
    main(["caption", "--help"])
except SystemExit as end:
    assert end.code == 0
assert not {{"torch", "numpy", "PIL", "transformers", "pyarrow", "ray", "fsspec"}} & set(sys.modules)
assert main({command}) == 0
assert not {{"transformers", "accelerate", "timm", "pyarrow", "ray"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{COUNT} inputs: 0 captioned, {COUNT} there already; 0.0 s\n"


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(150):
        folders.picture(number, 60, 40).save(folder / f"{number:03}.png")
    return folder


def killed(command, log, lines):
    """Run a command until its files hold so many lines, and kill it; what it had written then."""
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        if sum(path.read_bytes().count(b"\n") for path in log.parent.glob(f"{log.stem}*.jsonl")) >= lines:
            family = psutil.Process(process.pid)
            for each in [family, *family.children(recursive=True)]:  # a launcher's death alone stops nobody
                each.kill()
            break
        time.sleep(0.002)
    assert process.wait(60) == -signal.SIGKILL
    return {row["id"] for path in log.parent.glob(f"{log.stem}*.jsonl") for row in whole_rows(path)}


def whole_rows(path):
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def check_finished(output, many, done):
    rows = rows_of(output)
    assert sorted(row["path"] for row in rows) == sorted(map(str, many.iterdir()))
    assert {row["status"] for row in rows} == {"ok"} and len(rows) == 150
    assert sorted(output.parent.glob(f"{output.stem}*")) == [output], "nothing is left beside it"
    assert f"150 inputs: {150 - done} captioned, {done} there already" in (output.parent / "stderr").read_text()


@pytest.mark.slow
def test_killed_for_good_and_run_again(arguments, many, tmp_path):
    """A real process, really killed, several times; every input is there once, and none was captioned twice."""
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "adapter_llm", "caption", str(many), "--output", str(output), *arguments,
               "--batch-size", "3"]  # fmt: skip
    done: set[str] = set()
    for more in (10, 70):
        now = killed(command, output, len(done) + more)
        assert done < now
        done = now
    with (tmp_path / "stderr").open("w") as said:
        assert subprocess.run(command, cwd=ROOT, stderr=said, timeout=300).returncode == 0
    check_finished(output, many, len(done))


@pytest.mark.slow
@pytest.mark.loopback
def test_several_processes_killed_and_run_again_in_another_number(arguments, many, tmp_path):
    output = tmp_path / "rows.jsonl"
    accelerate = shutil.which("accelerate", path=os.path.dirname(sys.executable))
    if accelerate is None:
        pytest.skip("accelerate's launcher is not beside this Python")

    def launched(count, port):
        launch = ["launch", "--multi_gpu", "--num_processes", str(count), "--main_process_port", str(port)]
        job = ["caption", str(many), "--output", str(output), *arguments, "--batch-size", "3"]
        return [accelerate, *launch, "-m", "adapter_llm", *job]

    done = killed(launched(2, 29517), output, 40)
    assert 40 <= len(done) < 150 and len(list(tmp_path.glob("rows.shard-*"))) == 2
    with (tmp_path / "stderr").open("w") as said:
        assert subprocess.run(launched(3, 29518), cwd=ROOT, stderr=said, timeout=300).returncode == 0
    check_finished(output, many, len(done))
