"""What is finished stays finished, wherever a process ends."""

from pathlib import Path

import numpy
import pytest

from adapter_llm.space.files import MediaFile
from adapter_llm.space.journal import Journal, only_writer, seed
from adapter_llm.space.records import OutputError, Record

FILES = [MediaFile(f"{number}.png", "image", 10 + number, 20 + number) for number in range(4)]


def record(file, rows=1, seed=0):
    vectors = numpy.random.default_rng(seed).normal(size=(rows, 2, 3)).astype(numpy.float32)
    return Record(file, tuple((float(row), row + 1.5) for row in range(rows)) if rows > 1 else (), vectors)


def same(one, other):
    return one.file == other.file and one.spans == other.spans and numpy.array_equal(one.vectors, other.vectors)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.npz.journal"


@pytest.fixture
def filled(path):
    journal = Journal(path, "hash1")
    for number, file in enumerate(FILES[:3]):
        journal.add(record(file, number + 1, number))
    journal.close()
    return path


def test_a_journal_is_taken_up(filled):
    journal = Journal(filled, "hash1")
    assert len(journal) == 3 and FILES[2] in journal and FILES[3] not in journal
    journal.add(record(FILES[3]))
    found = journal.records([FILES[3], FILES[1], MediaFile("other.png", "image", 1, 1), FILES[0]])
    assert (len(found), found.rows) == (3, 4)
    wanted = [record(FILES[3]), record(FILES[1], 2, 1), record(FILES[0], 1, 0)]
    for _ in range(2):  # as often as is wanted
        assert all(same(one, other) for one, other in zip(found, wanted, strict=True))
    journal.close()


def test_a_record_is_on_its_way_when_add_returns(path):
    journal = Journal(path, "hash1")
    for number in range(3):
        journal.add(record(FILES[number]))
        assert path.read_bytes().count(b"\n") == number + 2  # another process would find it
    journal.close()


def test_a_line_torn_anywhere_is_done_again(filled):
    whole = filled.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in (*range(last, len(whole), 7), len(whole) - 1):
        filled.write_bytes(whole[:cut])
        journal = Journal(filled, "hash1")
        assert len(journal) == 2
        journal.add(record(FILES[2], 3, 2))
        journal.close()
        assert filled.read_bytes() == whole


def test_a_journal_torn_in_its_first_line_begins_again(path, filled):
    first = filled.read_bytes().index(b"\n")
    for cut in (0, 1, 20, first):
        filled.write_bytes(filled.read_bytes()[:cut])
        journal = Journal(path, "hash1")
        assert len(journal) == 0
        journal.add(record(FILES[0]))
        journal.close()
        reopened = Journal(path, "hash1")
        assert len(reopened) == 1
        reopened.close()


def test_zeros_of_a_crashed_disk_are_cut_off(filled):
    whole = filled.read_bytes()
    filled.write_bytes(whole + bytes(4096))
    Journal(filled, "hash1").close()
    assert filled.read_bytes() == whole


def test_another_job_begins_anew(filled):
    journal = Journal(filled, "hash2")
    assert len(journal) == 0
    journal.close()
    journal = Journal(filled, "hash1")
    assert len(journal) == 0
    journal.close()


def test_a_file_that_is_no_journal_is_left_alone(path):
    path.write_text("somebody's words\n")
    with pytest.raises(OutputError, match="is in the way and is no journal of this command; move it"):
        Journal(path, "hash1")
    assert path.read_text() == "somebody's words\n"
    path.unlink()
    path.mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        Journal(path, "hash1")


def test_a_changed_file_is_another_file(filled):
    journal = Journal(filled, "hash1")
    first = FILES[0]
    for size, modified in ((11, first.modified), (first.size, 21)):
        changed = MediaFile(first.path, first.keyword, size, modified)
        assert changed not in journal
    assert MediaFile(first.path, "depth", first.size, first.modified) not in journal
    journal.close()


def test_a_full_disk_keeps_what_is_finished(filled):
    journal = Journal(filled, "hash1")

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            self.file.write(data[:10])
            raise OSError(28, "No space left on device")

    whole, plain = filled.read_bytes(), journal._file
    journal._file = Full(plain)
    with pytest.raises(OutputError, match="No space left on device.*make room and run again, what is finished is kept"):
        journal.add(record(FILES[3]))
    plain.close()
    assert filled.read_bytes() == whole


def test_a_journal_is_seeded_whole_or_not_at_all(path):
    def broken():
        yield record(FILES[0])
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        seed(path, "hash1", broken())
    assert not path.exists()
    seed(path, "hash1", [record(FILES[1]), record(FILES[0])])
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    journal = Journal(path, "hash1")
    assert same(journal.record(FILES[1]), record(FILES[1]))
    journal.close()


def test_one_writer_at_a_time(tmp_path):
    with only_writer(tmp_path / "x.npz"):
        with only_writer(tmp_path / "y.npz"):
            pass
        with pytest.raises(OutputError, match="another process is writing .*x.npz"), only_writer(tmp_path / "x.npz"):
            pass
    with only_writer(tmp_path / "x.npz"):
        pass
    assert not list(tmp_path.iterdir())


def test_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / ".x[1].npz.123.partial").write_bytes(b"half")
    (tmp_path / ".x1.npz.123.partial").write_bytes(b"another output's")
    with only_writer(tmp_path / "x[1].npz"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".x1.npz.123.partial"]


def test_a_folder_is_made_or_refused(tmp_path):
    with only_writer(tmp_path / "a" / "b" / "x.npz"):
        pass
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written to"), only_writer(tmp_path / "file" / "x.npz"):
        pass


def test_only_a_lock_that_is_held_is_another_process(tmp_path, monkeypatch):
    """Where the lock's file cannot be made filelock only says that it has none."""
    import filelock

    def refuse(lock, **options):
        raise filelock.Timeout(lock.lock_file)

    monkeypatch.setattr(filelock.BaseFileLock, "acquire", refuse)
    gone = tmp_path / "gone"
    monkeypatch.setattr(Path, "mkdir", lambda *args, **options: None)
    expected = r"gone cannot be written to \(No such file or directory\); give another --output"
    with pytest.raises(OutputError, match=expected), only_writer(gone / "x.npz"):
        pass
    (tmp_path / ".x.npz.lock").touch()
    with pytest.raises(OutputError, match="another process is writing"), only_writer(tmp_path / "x.npz"):
        pass
