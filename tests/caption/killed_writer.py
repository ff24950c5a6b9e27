"""Writers of an output that are killed before each of their calls of the system; run as a script by the tests.

Each next run must leave every input exactly once, and do none again whose row had been written.
Arguments: a folder, formats, the kind of run, the first place and the steps to the next ones.
"""

import os
import signal
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

from output_readers import NAMES, done, found  # noqa: E402

from adapter_llm.caption import rowlog, tarshards  # noqa: E402
from adapter_llm.caption.outputs import OutputOptions, merge, open_output  # noqa: E402

CHANGES = {"write", "truncate", "replace", "unlink", "remove", "fsync", "mkdir", "open", "close", "rename"}
OPTIONS = OutputOptions(rows_a_part=4, samples_a_tar=2)
BATCHES = ((0, 1, 2), (3,), (4, 5), (6, 7, 8))
FAILING = (1, 5)  # in the first run


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_before(count):
    """Die before call number `count` that changes something on the disk."""
    calls = 0

    def watch(frame, event, what):
        nonlocal calls
        if event == "c_call" and getattr(what, "__name__", "") in CHANGES:
            calls += 1
            if calls == count:
                die()

    sys.setprofile(watch)


def killed_within(count):
    """Die when half of the write number `count` is on the disk."""
    calls = 0

    def write_half(file, data):
        nonlocal calls
        calls += 1
        if calls == count:
            file.write(data[: len(data) // 2])
            die()
        file.write(data)

    rowlog.write_all = tarshards.write_all = write_half


def job(form, path, first, told, shard=None, config_hash="h1"):
    """Write what is not there yet; `told` gets the numbers of inputs whose row is written, each when it is."""
    output = open_output(path, form, shard=shard, options=OPTIONS)
    for batch in BATCHES:
        entries = [done(number, "bad" if first and number in FAILING else None, config_hash) for number in batch]
        entries = [one for one in entries if not output.finished(one.row.id, config_hash)]
        for one in entries:
            assert output.refuses(one.item) is None, output.refuses(one.item)
        if entries:
            output.write(entries)
            os.write(told, bytes(int(Path(one.row.id).stem) for one in entries))
    output.close()


def in_a_child(work):
    """What the work told until it was killed, and whether it came to its end."""
    reading, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(told)
            sys.setprofile(None)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    os.close(told)
    with os.fdopen(reading, "rb") as file:
        numbers = list(file.read())
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        return numbers, True
    assert os.WTERMSIG(status) == signal.SIGKILL
    return numbers, False


def first_run(form, path, told, kind, count):
    """The run that is killed: of all inputs, of those that failed, or of all with another prompt."""
    if kind in ("retry", "again"):
        job(form, path, True, os.open(os.devnull, os.O_WRONLY))
    (killed_within if kind == "torn" else killed_before)(count)
    if kind == "merge":
        merge(path, form, OPTIONS)
    else:
        job(form, path, kind in ("first", "torn"), told, config_hash="h2" if kind == "again" else "h1")


def check(form, path, kind):
    rows = found(form, path)
    hashes = ["h1", "h2"] if kind == "again" and form != "txt" else ["h2"] if kind == "again" else ["h1"]
    wanted = sorted((f"q/{number}.jpg", one) for one in hashes for number in range(9))
    rows = [row for row in rows if not (row[1] == "h1" and kind == "again" and row[2] == "error")]
    have = sorted((row[0], row[1]) for row in rows)
    if kind == "again":  # what failed with the other prompt was not tried again
        wanted = [one for one in wanted if one not in {(f"q/{number}.jpg", "h1") for number in FAILING}]
    assert have == wanted, (have, wanted)
    assert all(row[2] == "ok" for row in rows)


def main(place, forms, kind, first, step):
    for form in forms.split(","):
        print(form, kill_everywhere(Path(place) / form, form, kind, int(first), int(step)))


def kill_everywhere(place, form, kind, count, step):
    """How many places there were."""
    places, made = 0, "h2" if kind == "again" else "h1"
    while True:
        places += 1
        path = place / str(count) / NAMES[form]
        path.parent.mkdir(parents=True)
        if kind == "merge":
            for shard in range(2):
                in_a_child(lambda told, shard=shard, path=path: shard_job(form, path, told, shard))
        told, ended = in_a_child(lambda told, path=path, count=count: first_run(form, path, told, kind, count))
        if kind == "merge":
            in_a_child(lambda told, path=path: merge(path, form, OPTIONS))
        again, whole = in_a_child(lambda told, path=path: job(form, path, False, told, config_hash=made))
        assert whole
        failed = FAILING if kind in ("first", "torn") else ()
        assert not {*told} & {*again} - {*failed}, (count, told, again)
        assert kind != "merge" or again in ([], [*FAILING]), again
        check(form, path, kind)
        left = [entry.name for entry in path.parent.rglob("*") if entry.name.endswith((".partial", ".lock"))]
        if kind == "merge":  # nobody knows whether a shard that is gone is about to come back
            left = [name for name in left if "shard" not in name and "part-s" not in name]
        assert not left, left
        if ended:
            return places
        count += step


def shard_job(form, path, told, shard):
    """Half of the inputs; the second process is killed before it closes."""
    output = open_output(path, form, shard=shard, options=OPTIONS)
    output.write([done(number, "bad" if number in FAILING else None) for number in range(shard, 9, 2)])
    if shard:
        os._exit(0)
    output.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
