"""What inputs stand for: each once, in order, near or far, and a sentence for those that stand for nothing."""

import io
import ntpath
import os
import pickle
import sys
from types import SimpleNamespace

import fsspec
import pytest

from adapter_llm.caption.inputs import Input, Problem, SourceOptions, read_inputs
from adapter_llm.caption.items import tidy
from adapter_llm.caption.kinds import hinted
from adapter_llm.caption.stores import expanded
from imagebind_encoder.media.source import MediaError

KINDS = ("image", "video", "audio", "imu")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a tree of small files."""
    monkeypatch.chdir(tmp_path)
    names = ("a.jpg", "b.PNG", "q/c.mp4", "q/r/d.wav", "q/d.txt", "q/t.csv", ".hidden.jpg", ".cache/e.jpg", "notes.md")
    for name in names:
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"bytes of {name}".encode())
    return tmp_path


@pytest.fixture
def memory():
    """fsspec's file system in memory, emptied."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


def walk(*given, **options):
    return list(read_inputs(given, SourceOptions(**{"keywords": KINDS, **options})))


def ids(*given, **options):
    found = walk(*given, **options)
    assert not [one for one in found if isinstance(one, Problem)]
    return [one.id for one in found]


def problems(*given, **options):
    return [one.message for one in walk(*given, **options) if isinstance(one, Problem)]


def test_files_folders_and_globs(place):
    everything = ["photos/a.jpg", "photos/b.PNG", "photos/q/c.mp4", "photos/q/r/d.wav"]
    assert ids("photos") == everything
    found = walk("photos")
    assert [one.keyword for one in found] == ["image", "image", "video", "audio"]
    assert [one.name for one in found] == ["a.jpg", "b.PNG", "q/c.mp4", "q/r/d.wav"]
    assert [one.place for one in found] == [one.path for one in found] == everything
    assert found[2].read().source == b"bytes of q/c.mp4" and found[2].prompt is None
    assert ids("photos/*.jpg", "photos/q") == ["photos/a.jpg", "photos/q/c.mp4", "photos/q/r/d.wav"]
    assert ids("photos/**/*.mp4") == ["photos/q/c.mp4"]
    assert [one.name for one in walk("photos/*/*.mp4")] == ["q/c.mp4"]
    assert [one.name for one in walk("photos/q/c.mp4", str(place / "photos/a.jpg"))] == ["photos/q/c.mp4", "a.jpg"]
    assert ids("photos/q/t.csv", forced="imu") == ["photos/q/t.csv"]
    assert ids("photos", forced="thermal", keywords=("thermal",)) == ["photos/a.jpg", "photos/b.PNG"]


def test_each_input_once_however_it_is_called(place):
    given = ("photos", "photos/a.jpg", "./photos/../photos/b.PNG", str(place / "photos"), "photos/*", "photos/**")
    assert ids(*given) == ["photos/a.jpg", "photos/b.PNG", "photos/q/c.mp4", "photos/q/r/d.wav"]


def test_a_walk_may_be_taken_again(place):
    inputs = read_inputs(["photos", "photos/a.jpg"], SourceOptions(KINDS))
    first = [one.id for one in inputs]
    assert [one.id for one in inputs] == first and len(first) == 4
    assert inputs.left_out == "files left out: 1 of the kind imu, 1 of the kind text, 1 of unknown kind"
    assert not inputs.streams
    for given in ("-", "s3://bucket/x", "x.tar.gz", "x.TGZ"):
        assert read_inputs([given]).streams
    assert not read_inputs(["x.tar", "t.csv", "photos"]).streams


def test_inputs_come_one_by_one(place, monkeypatch):
    """A million files are no list: the first is there before the next folder is looked at."""
    looked, original = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(str(path)) or original(path))
    walking = iter(read_inputs(["photos"], SourceOptions(KINDS)))
    assert next(walking).id == "photos/a.jpg"
    assert len(looked) == 1
    assert len(list(walking)) == 3 and len(looked) == 3


def test_inputs_that_stand_for_nothing(place):
    found = walk("nothing.jpg", "no/*.jpg", "folder", "photos/notes.md", "photos/q/d.txt", "x.jsonl", "photos/a.jpg")
    assert [getattr(one, "message", one.id) for one in found] == [
        "nothing.jpg",
        "nothing matches 'no/*.jpg'; check the pattern",
        "there is no file or folder 'folder'; check the path",
        "the suffix of 'photos/notes.md' does not tell what it is; say it with "
        "--as image|video|audio|text|imu|point|depth|thermal",
        "'photos/q/d.txt' is of the kind text, and these weights take image, video, audio, imu",
        "there is no file or folder 'x.jsonl'; check the path",
        "photos/a.jpg",
    ]
    rows = [one.id for one in found if isinstance(one, Problem)]
    assert rows == [None, None, "photos/notes.md", "photos/q/d.txt", None]
    with pytest.raises(MediaError, match="there is no file 'nothing.jpg'; check the path"):
        found[0].read()


def test_a_folder_without_media(place):
    (place / "empty").mkdir()
    assert problems("empty") == ["the folder 'empty' holds no file of the kind image or video or audio"]
    for name in ("s-0.tar", "t.jsonl", "x.txt"):
        (place / "empty" / name).write_text("x")
    assert problems("empty", keywords=("image",)) == [
        "the folder 'empty' holds no file of the kind image; its 2 tables and tar shards are read if they are named"
    ]


def test_reading_tells_what_is_wrong(place):
    (place / "empty.jpg").write_bytes(b"")
    os.symlink("nowhere", place / "photos" / "dangling.jpg")
    (place / "photos" / "folder.jpg").mkdir()
    messages = {}
    for one in walk("empty.jpg", "photos", "list.csv"):
        if isinstance(one, Input):
            try:
                one.read()
            except MediaError as error:
                messages[one.id] = str(error)
    assert messages == {
        "empty.jpg": "'empty.jpg' is empty; check that it was written or copied completely",
        "photos/dangling.jpg": "there is no file 'photos/dangling.jpg'; check the path",
    }


def test_what_is_hashed_is_what_is_captioned(place, monkeypatch):
    import hashlib

    from adapter_llm.caption import content

    [one] = walk("photos/a.jpg")
    assert one.read().sha256 == hashlib.sha256(b"bytes of a.jpg").hexdigest() and one.read().size == 14
    monkeypatch.setattr(content, "IN_MEMORY", 5)
    large = one.read()
    assert large.source == place / "photos" / "a.jpg" and large.sha256 == hashlib.sha256(b"bytes of a.jpg").hexdigest()
    assert large.data() == b"bytes of a.jpg" and large.size == 14
    assert pickle.loads(pickle.dumps(one)) == one  # workers in other processes read, too


def test_names_with_strange_letters(place):
    strange = os.fsdecode(b"photos/\xff[1]{2,3} a.jpg")
    with open(strange, "wb") as file:
        file.write(b"x")
    assert strange in ids("photos") and ids(strange) == [strange]
    assert walk(strange)[0].read().source == b"x"
    assert ids(strange, "photos").count(strange) == 1


@pytest.mark.parametrize("text, wanted", [
    ("a.tar", ["a.tar"]),
    ("s-{000..003}.tar", ["s-000.tar", "s-001.tar", "s-002.tar", "s-003.tar"]),
    ("{9..11}", ["9", "10", "11"]), ("{2..0}", ["2", "1", "0"]), ("{08..10}", ["08", "09", "10"]),
    ("{a,b}/{0..1}.jpg", ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"]),
    ("x{,y}", ["x", "xy"]), ("{x}", ["{x}"]), ("{..}", ["{..}"]), ("{", ["{"]), ("{a..b}", ["{a..b}"]),
])  # fmt: skip
def test_braces(text, wanted):
    assert list(expanded(text)) == wanted


def test_braces_are_lazy_and_files_named_so_come_first(place):
    assert next(expanded("{0..99999999999}.tar")) == "0.tar"
    (place / "x{1,2}.jpg").write_bytes(b"x")
    assert ids("x{1,2}.jpg") == ["x{1,2}.jpg"]


# lists on stdin


@pytest.fixture
def stdin(monkeypatch):
    def give(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


def test_a_list_on_stdin(place, stdin):
    strange = b"photos/\xff.jpg"
    stdin(b"photos/a.jpg\r\n\nphotos/q\nno[thing].jpg\nphotos/a.jpg\n" + strange)
    assert ids("-") == ["photos/a.jpg", "photos/q/c.mp4", "photos/q/r/d.wav", "no[thing].jpg", os.fsdecode(strange)]
    stdin(b'{"file": "photos/a.jpg", "q": "Who?"}\n{"q": 1}\n{"file": "photos/a.jpg", "q": 7}\n{odd.jpg\n')
    found = walk("-", prompt_column="q")
    assert (found[0].id, found[0].prompt, found[3].id) == ("photos/a.jpg", "Who?", "{odd.jpg")
    assert [one.message for one in found[1:3]] == [
        "line 2 of the list has the columns q, of which none is called as paths and URLs usually are; "
        "name it with --path-column",
        "line 3 of the list has '7' in the column 'q', which is no prompt",
    ]


# prompts beside the inputs


def test_prompts_from_files_beside(place):
    (place / "photos" / "a.prompt").write_text(" What breed? \n")
    (place / "photos" / "b.prompt").write_text("\n")
    (place / "photos" / "q" / "c.prompt").write_bytes(b"\xff\xfe")
    first, second, third, fourth = walk("photos", prompt_suffix=".prompt")
    assert (first.prompt, second.prompt, fourth.prompt) == ("What breed?", None, None)
    assert third.message.startswith("'photos/q/c.prompt' holds no prompt") and third.id == "photos/q/c.mp4"
    (place / "photos" / "a.what").mkdir()
    assert walk("photos/a.jpg", prompt_suffix=".what")[0].message.startswith("'photos/a.what' cannot be read (Is a dir")
    (place / "photos" / "a.json").write_text('{"prompt": "Who?", "q": "Where?", "n": 1}')
    asked = [walk("photos/a.jpg", prompt_suffix=".json", prompt_column=field)[0] for field in (None, "q", "z", "n")]
    assert [one.prompt for one in asked[:3]] == ["Who?", "Where?", None]
    assert "'n' is no text" in asked[3].message


def test_one_file_with_several_prompts(place):
    rows = ["file,prompt", "photos/a.jpg,Who?", "photos/a.jpg,Where?", "photos/a.jpg,Who?", "./photos/a.jpg,Where?",
            "photos/a.jpg,", "photos/b.PNG,", "photos/b.PNG,Who?", "photos/a.jpg,Why?"]  # fmt: skip
    (place / "t.csv").write_text("\n".join(rows))
    found = walk("t.csv", prompt_column="prompt")
    assert [(one.id, one.prompt) for one in found] == [
        ("photos/a.jpg", "Who?"), ("photos/a.jpg", "Where?"), ("photos/a.jpg", None),
        ("photos/b.PNG", None), ("photos/b.PNG", "Who?"), ("photos/a.jpg", "Why?"),
    ]  # fmt: skip
    assert ids("t.csv") == ["photos/a.jpg", "photos/b.PNG"]
    assert len(ids("photos/a.jpg", "t.csv", prompt_column="prompt")) == len(found)
    (place / "t.csv").write_text("\n".join([rows[0], "photos/q/c.mp4,When?", *rows[1:]]))
    moved = walk("t.csv", prompt_column="prompt")[1:]
    assert [(one.id, one.prompt) for one in moved] == [(one.id, one.prompt) for one in found]


def test_one_prompt_each_where_there_is_room_for_one(place):
    (place / "t.csv").write_text("file,prompt\nphotos/a.jpg,Who?\nphotos/b.PNG,\nphotos/a.jpg,Who?\nphotos/a.jpg,Why?")
    *found, problem = walk("t.csv", prompt_column="prompt", one_each=True)
    assert [(one.id, one.prompt) for one in found] == [("photos/a.jpg", "Who?"), ("photos/b.PNG", None)]
    assert problem.id is None and problem.message == (
        "'photos/a.jpg' is asked about twice, and there is room for one caption; take --format jsonl"
    )


# far away


def test_far_files_folders_and_globs(memory):
    for name in ("a.jpg", "q/b.mp4", ".hidden.jpg", ".cache/c.jpg", "q/x.txt"):
        memory.pipe(f"/photos/{name}", f"bytes of {name}".encode())
    found = walk("memory://photos")
    assert [one.id for one in found] == ["memory:///photos/a.jpg", "memory:///photos/q/b.mp4"]
    assert [(one.name, one.place) for one in found] == [("a.jpg", None), ("q/b.mp4", None)]
    assert found[1].read().data() == b"bytes of q/b.mp4"
    assert ids("memory://photos/*.jpg") == ["memory:///photos/a.jpg"]
    assert ids("memory://photos/**") == ["memory:///photos/a.jpg", "memory:///photos/q/b.mp4"]
    assert ids("memory://photos/a.jpg", "memory:///photos/a.jpg", "memory://photos") == [
        "memory://photos/a.jpg", "memory:///photos/q/b.mp4",
    ]  # fmt: skip
    memory.pipe("/photos/a.prompt", b"Who?")
    assert [one.prompt for one in walk("memory://photos", prompt_suffix=".prompt")] == ["Who?", None]
    assert pickle.loads(pickle.dumps(found[0])).read() == found[0].read()


def test_far_things_that_are_not_there(memory):
    assert problems("memory://nothing", "memory://no/*.jpg") == [
        "there is no file or folder 'memory://nothing'; check the path",
        "nothing matches 'memory://no/*.jpg'; check the pattern",
    ]
    [missing] = walk("memory://nothing.jpg")
    with pytest.raises(MediaError, match="'memory://nothing.jpg' cannot be read"):
        missing.read()


def test_a_client_that_is_missing_or_unknown_is_named(monkeypatch):
    from fsspec.registry import known_implementations

    told = {"class": "no_such_client.FileSystem", "err": "Install no_such_client to read such files"}
    monkeypatch.setitem(known_implementations, "nsc", told)
    assert problems("nsc://bucket/*.jpg", "zzz://x.jpg") == [
        "'nsc://bucket/*.jpg' needs a package that is not here: Install no_such_client to read such files",
        "'zzz://x.jpg': zzz:// cannot be used (Protocol not known: zzz); check the address",
    ]


def test_a_store_that_fails_with_an_error_of_its_own(memory, monkeypatch):
    class NoCredentials(Exception):
        pass

    def refuse(*args, **kwargs):
        raise NoCredentials("log in first")

    memory.pipe("/photos/a.jpg", b"x")
    [one] = walk("memory://photos/a.jpg")
    monkeypatch.setattr(type(memory), "_open", refuse)
    with pytest.raises(MediaError, match=r"'memory://photos/a.jpg' cannot be read \(log in first\); check it"):
        one.read()
    monkeypatch.setattr(type(memory), "info", refuse)
    assert problems("memory://photos") == ["'memory://photos' cannot be read (log in first); check address and access"]


def test_addresses(monkeypatch):
    from adapter_llm.caption import content

    asked = []
    monkeypatch.setattr(content, "fetch_url", lambda url: asked.append(url) or b"picture")
    found = walk("https://host/a/b.mp4?x=1.jpg", "http://host/picture", "https://host/a/b.mp4?x=1.jpg")
    assert [(one.id, one.keyword, one.name) for one in found] == [
        ("https://host/a/b.mp4?x=1.jpg", "video", "host/a/b.mp4"), ("http://host/picture", "image", "host/picture"),
    ]  # fmt: skip
    assert found[1].read().source == b"picture" and asked == ["http://host/picture"]


@pytest.mark.parametrize("path, name", [
    ("../x/a.jpg", "x/a.jpg"), ("x/../../a.jpg", "a.jpg"), ("./x//a.jpg", "x/a.jpg"), ("/etc/a.jpg", "a.jpg"),
    ("https://host/../../etc/a.jpg?b=/c", "etc/a.jpg"), ("s3://bucket/../a.jpg", "a.jpg"),
    ("http://ann:secret@localhost:8000/a.jpg", "localhost_8000/a.jpg"),
])  # fmt: skip
def test_names_lead_nowhere_but_down(path, name):
    """Outputs are written below a folder under these names."""
    assert tidy(path) == name


def test_names_have_slashes_where_paths_have_others(monkeypatch):
    from adapter_llm.caption import stores

    monkeypatch.setattr(stores, "os", SimpleNamespace(path=ntpath, sep="\\"))
    assert stores.Local().relative("C:\\photos\\2024\\a.jpg", "C:\\photos") == "2024/a.jpg"


def test_kinds_by_the_name_of_a_column():
    kinds = {"image_path": "image", "Video": "video", "audio-file": "audio", "url": None, "images": None}
    assert {name: hinted(name) for name in kinds} == kinds
