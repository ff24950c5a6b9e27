"""Containers open what is given and nothing else; what is no film, or a broken one, is said in one sentence."""

import base64
import io
import os
import pathlib

import numpy
import pytest
import torch
from made_films import LEVELS, LOSSLESS, SMALL, film, greys, numbers, pictures, recording, remuxed

from imagebind_encoder import VideoConfig
from imagebind_encoder.media import MediaError, container
from imagebind_encoder.media import film as film_module
from imagebind_encoder.media.container import open_container
from imagebind_encoder.media.video import Frames, load_video

WHOLE = film(pictures(20), codec="libx264", sound=2.0)


def said(source, **options):
    """The sentence that a film which cannot be loaded gives."""
    with pytest.raises(MediaError) as caught:
        load_video(source, SMALL, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence and not sentence.endswith(".")
    return sentence


# --- sources


def test_a_film_is_the_same_from_every_source(tmp_path, monkeypatch):
    expected = load_video(WHOLE, SMALL)
    path = tmp_path / "film.mp4"
    path.write_bytes(WHOLE)
    uri = "data:video/mp4;base64," + base64.b64encode(WHOLE).decode()
    asked = []

    def fetch(url):
        asked.append(url)
        return WHOLE

    for source in (path, str(path), bytearray(WHOLE), memoryview(WHOLE), uri, "https://example.org/f", "HTTP:/a/b"):
        assert torch.equal(load_video(source, SMALL, fetch=fetch), expected), source
    assert asked == ["https://example.org/f", "HTTP://a/b"]  # each once, though a film is read twice
    monkeypatch.setattr("imagebind_encoder.media.source.fetch_url", lambda url, limits: WHOLE)
    assert torch.equal(load_video("https://example.org/f", SMALL), expected)


def test_a_container_is_open_in_the_block_and_closed_behind_it():
    with open_container(WHOLE, "audio") as opened:
        assert [stream.type for stream in opened.streams] == ["video", "audio"]
        assert sum(len(packet.decode()) for packet in opened.demux(opened.streams.audio[0])) > 0
    with pytest.raises(AssertionError, match="not open"):
        next(opened.demux())


def test_a_file_is_read_piece_by_piece(tmp_path, monkeypatch):
    path = tmp_path / "film.mp4"
    path.write_bytes(WHOLE)
    with path.open("r+b") as file:  # a box that is to be skipped, of 4 GB, most of which is not on the disk
        file.seek(0, os.SEEK_END)
        file.write((2**32 - 1).to_bytes(4, "big") + b"free")
        file.truncate(len(WHOLE) + 2**32 - 1)
    monkeypatch.setattr(container, "read_source", lambda *_, **__: pytest.fail("the file was read whole"))
    assert torch.equal(load_video(path, SMALL), load_video(Frames(decoded(WHOLE), 10), SMALL))


def decoded(data):
    return numpy.stack([frame for _, frame in film_module.Film(io.BytesIO(data), "it", True).read(range(20))])


def test_the_library_does_not_see_the_name(tmp_path):
    path = tmp_path / "film.mp3"
    path.write_bytes(WHOLE)
    with open_container(path, "video") as opened:
        assert opened.name == "" and "mp4" in opened.format.name


def test_an_address_is_not_taken_for_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for scheme in ("http:", "https:", "data:"):
        pathlib.Path(scheme).mkdir()
        (pathlib.Path(scheme) / "x,y").write_bytes(film(pictures(3)))
    for address in ("http:/x,y", "https:/x,y"):
        assert torch.equal(load_video(address, SMALL, fetch=lambda url: WHOLE), load_video(WHOLE, SMALL))
    assert said("data:/x,y").startswith("'data:/x,y' is no film that")


@pytest.mark.parametrize(
    "name", ["img%03d.png", "a%d.mp4", "concat:b.mp4", "-", "100%.mp4", "x.m3u8", "naïve [1] ?.mp4"]
)
def test_a_name_is_only_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    pathlib.Path(name).write_bytes(WHOLE)
    for decoy in ("img001.png", "a1.mp4", "b.mp4"):
        pathlib.Path(decoy).write_bytes(b"not this one")
    assert torch.equal(load_video(name, SMALL), load_video(WHOLE, SMALL))


# --- what is not given is not opened

LISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:2.0,\n{path}\n#EXT-X-ENDLIST\n",
    "m3u8 of lists": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000\n{path}\n",
    "ffconcat": "ffconcat version 1.0\nfile '{path}'\n",
    "concat": "file '{path}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    'bandwidth="1"><BaseURL>{path}</BaseURL></Representation></AdaptationSet></Period></MPD>\n',
    "f4m": '<manifest xmlns="http://ns.adobe.com/f4m/1.0"><media url="{path}" bitrate="1"/></manifest>\n',
    "imf": '<AssetMap xmlns="http://www.smpte-ra.org/schemas/429-9/2007/AM"><Path>{path}</Path></AssetMap>\n',
}


@pytest.mark.parametrize("suffix", ["list", "m3u8", "mp4", "txt", "mpd"])
@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("named", ["film", "/etc/hostname"])
def test_lists_of_other_files_are_refused(tmp_path, kind, suffix, named):
    target = tmp_path / "named.mp4"
    target.write_bytes(WHOLE)
    content = LISTS[kind].format(path=target if named == "film" else named)
    path = tmp_path / f"it.{suffix}"
    path.write_text(content)
    for source in (path, content.encode()):
        sentence = said(source)
        assert "is no film" in sentence and "localhost" not in sentence


@pytest.mark.parametrize("kept", ["FORMATS", "PROTOCOLS", None])
def test_each_of_the_two_defences_holds_alone(tmp_path, monkeypatch, kept):
    monkeypatch.chdir(tmp_path)  # the list must name a neighbour: of others the library itself is wary
    pathlib.Path("named.mp4").write_bytes(WHOLE)
    lowered = {"FORMATS": (*container.FORMATS, "concat"), "PROTOCOLS": "file"}
    for name in lowered.keys() - {kept}:
        monkeypatch.setattr(container, name, lowered[name])
    content = LISTS["ffconcat"].format(path="named.mp4").encode()
    if kept is None:  # what they are good for
        assert torch.equal(load_video(content, SMALL), load_video(WHOLE, SMALL))
    else:
        assert "is no film" in said(content)


def test_formats_that_follow_names_or_devices_are_not_on_the_list():
    followers = {"hls", "applehttp", "concat", "dash", "sdp", "rtsp", "rtp", "sap", "image2", "lavfi", "tee", "imf"}
    followers |= {"ffmetadata", "vobsub", "webm_dash_manifest", "x11grab", "fbdev", "alsa", "oss", "v4l2", "kmsgrab"}
    assert not followers & set(container.FORMATS)


def test_every_format_on_the_list_exists():
    from av.format import ContainerFormat

    assert len(set(container.FORMATS)) == len(container.FORMATS)
    for name in container.FORMATS:
        assert ContainerFormat(name, "r").is_input


def test_the_library_writes_nothing_to_the_terminal(capfd):
    data = bytearray(WHOLE)
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    for source in (bytes(data), b"#EXTM3U\n/etc/hostname\n", b"ffconcat version 1.0\nfile x\n", WHOLE[:999], png()):
        said(source)
    assert capfd.readouterr() == ("", "")


# --- what is no film


def test_unreadable_sources(tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert "is a directory" in said(tmp_path)
    assert said(tmp_path / "no.mp4") == f"there is no file {str(tmp_path / 'no.mp4')!r}; check the path"
    assert said(empty) == f"{str(empty)!r} is empty; check that it was written or copied completely"
    assert said(b"") == "0 bytes is empty; check that it was written or copied completely"
    assert said("data:video/mp4;base64,!").startswith("the data URI")
    assert said(12) == "an object of type int is no film; give a path, URL, data: URI or bytes"
    with pytest.raises(MediaError, match="an object of type NoneType is no recording"), open_container(None, "audio"):
        pass
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "is not a regular file" in said(fifo)
    assert "is made of bytes" in said(type("P", (), {"__fspath__": lambda self: b"x"})())


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(WHOLE)
    path.chmod(0)
    assert "may not be read" in said(path)


def png():
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(file, "PNG")
    return file.getvalue()


def test_what_is_no_film():
    give = "give an MP4, WebM, MKV, MOV, AVI or GIF file"
    refused = f"is no film: pictures and playlists, which name other files, are not opened as one; {give}"
    assert said(png()).endswith(refused)
    assert said(b"no film at all" * 99).startswith("1386 bytes is no film that can be read, or it is cut off (")
    assert said(b"no film at all" * 99).endswith(f"); {give}")
    assert said(recording()).endswith("has no moving pictures, only sound: give it as audio")
    with (
        pytest.raises(MediaError, match=r"is no recording that .* give a WAV, FLAC"),
        open_container(b"x" * 99, "audio"),
    ):
        pass


def test_the_cover_of_a_recording_is_no_film():
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as made:
        sound = made.add_stream("libmp3lame", rate=8000, layout="mono")
        cover = made.add_stream("png", rate=1)
        cover.height, cover.width, cover.pix_fmt = 32, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        made.mux(cover.encode(av.VideoFrame.from_ndarray(pictures(1)[0], format="rgb24")))
        frame = av.AudioFrame.from_ndarray(numpy.zeros((1, 8000), "int16"), "s16p", "mono")
        frame.rate = 8000
        made.mux(sound.encode(frame))
        made.mux(sound.encode(None))
    assert said(file.getvalue()).endswith("only sound: give it as audio")


def test_a_codec_that_is_not_known():
    data = film(pictures(3), format="matroska", codec="libx264").replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/AVC")
    assert said(data).endswith("is coded in a way that is not known here; convert it to MP4 (H.264)")


def test_frames_that_are_too_large(monkeypatch):
    monkeypatch.setattr(film_module, "MAX_PIXELS", 32 * 48 - 1)
    assert said(WHOLE).endswith("has frames of 48 x 32 pixels; give at most 1535 pixels")
    monkeypatch.setattr(film_module, "MAX_PIXELS", 32 * 48)
    load_video(WHOLE, SMALL)


def test_frames_that_grow_too_large_on_the_way(monkeypatch):
    monkeypatch.setattr(film_module, "MAX_PIXELS", 40 * 50)
    data = film(pictures(5), format="mpegts", codec="mpeg2video", rate=25)
    data += film(pictures(5, 64, 96), format="mpegts", codec="mpeg2video", rate=25)
    assert "has frames of 96 x 64 pixels" in said(data)


def test_a_film_without_frames():
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as made:
        sound = made.add_stream("aac", rate=8000, layout="mono")
        stream = made.add_stream("mpeg4", rate=5)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        frame = av.AudioFrame.from_ndarray(numpy.zeros((1, 8000), "float32"), "fltp", "mono")
        frame.rate = 8000
        made.mux(sound.encode(frame))
        made.mux(sound.encode(None))
    assert "no frames" in said(file.getvalue()) or "only sound" in said(file.getvalue())


@pytest.mark.parametrize(
    ("pixels", "rate", "expected"),
    [
        (numpy.zeros((0, 8, 8, 3), "uint8"), 5, "give a uint8 array (T, H, W, 3) or tensor (T, 3, H, W), values 0 to"),
        (numpy.zeros((4, 3, 8, 8), "uint8"), 5, "frames of shape (4, 3, 8, 8) and type uint8 cannot be a film; give"),
        (numpy.zeros((4, 8, 8, 3), "float32"), 5, "and type float32 cannot be a film"),
        (numpy.zeros((8, 8, 3), "uint8"), 5, "frames of shape (8, 8, 3)"),
        (torch.zeros((4, 8, 8, 3), dtype=torch.uint8), 5, "frames of shape (4, 8, 8, 3) and type torch.uint8"),
        (torch.zeros((4, 3, 8, 8)), 5, "and type torch.float32 cannot be a film"),
        ([[1, 2]], 5, "a list cannot be a film"),
        (
            numpy.zeros((4, 8, 8, 3), "uint8"),
            0,
            "the rate of a film must be a positive number of frames a second, not 0",
        ),
        (numpy.zeros((4, 8, 8, 3), "uint8"), float("nan"), "not nan"),
        (numpy.zeros((4, 8, 8, 3), "uint8"), "25", "not '25'"),
    ],
)
def test_frames_that_are_no_film(pixels, rate, expected):
    assert expected in said(Frames(pixels, rate))


# --- broken films


@pytest.mark.parametrize("format", ["matroska", "webm", "avi"])
def test_a_film_that_is_cut_off_says_at_which_second(format):
    data = film(pictures(50), format=format, codec="libvpx-vp9" if format == "webm" else "mpeg4", g=5)
    sentence = said(data[: len(data) * 3 // 4])
    assert "is broken at second 3." in sentence or "is broken at second 2." in sentence
    assert sentence.endswith("; copy or download it again")


def test_seconds_are_counted_from_the_first_frame():
    late = film(pictures(50), times=[7000 + 100 * number for number in range(50)], **LOSSLESS)
    sentence = said(late[: len(late) * 3 // 4])
    assert "is broken at second 3." in sentence or "is broken at second 2." in sentence


def test_an_mp4_that_is_cut_off_behind_its_index():
    pieces = film(pictures(50), g=5)
    start = pieces.index(b"mdat") - 4
    end = start + int.from_bytes(pieces[start : start + 4], "big")
    # The index goes first, as in files for the web; its offsets then are too small by its length.
    index = bytearray(pieces[end:])
    place = index.index(b"stco") + 12
    for entry in range(int.from_bytes(index[place - 4 : place], "big")):
        at = slice(place + 4 * entry, place + 4 * entry + 4)
        index[at] = (int.from_bytes(index[at], "big") + len(index)).to_bytes(4, "big")
    fast = pieces[:start] + bytes(index) + pieces[start:end]
    assert torch.equal(load_video(fast, SMALL), load_video(pieces, SMALL))
    with open_container(fast, "video") as opened:
        places = [packet.pos for packet in opened.demux() if packet.size]
    for kept, second, why in ((places[30], 2.9, "the rest is missing"), (len(fast) - 9, 4.9, "a frame is not whole")):
        assert f"is broken at second {second} ({why})" in said(fast[:kept])
    assert "or it is cut off" in said(pieces[: len(pieces) // 2])  # the index is at the end


def test_a_film_that_is_broken_in_the_middle_says_at_which_second():
    data = bytearray(film(pictures(50), g=5))
    data[len(data) // 2 : len(data) * 6 // 10] = bytes(len(data) * 6 // 10 - len(data) // 2)
    assert any(f"is broken at second {second}." in said(bytes(data)) for second in (2, 3))


def test_a_film_of_which_nothing_can_be_decoded():
    junk = remuxed(film(pictures(9), format="webm", codec="libvpx-vp9"), "webm", lambda packets: packets[1:])
    assert said(junk).endswith("is broken at second 0.0 (none of its frames can be decoded); copy or download it again")


def test_what_a_header_promises_may_be_missing_by_a_rounding():
    data = film(greys(30), **LOSSLESS, sound=0.5)
    longer = film(greys(3), **LOSSLESS, sound=3.0)  # the sound goes on: nothing is missing
    assert load_video(data, SMALL).shape == load_video(longer, SMALL).shape


def test_a_file_of_nothing_is_not_searched_to_its_end(tmp_path, monkeypatch):
    path = tmp_path / "film.mkv"
    frames = numpy.random.default_rng(0).integers(0, 256, (60, 120, 160, 3), dtype=numpy.uint8)
    data = film(frames, **LOSSLESS)
    path.write_bytes(data)
    expected = load_video(path, SMALL)
    # The film is larger, but frames are found in it.
    monkeypatch.setattr(film_module, "BARREN", len(data) - 2**19)
    assert torch.equal(load_video(path, SMALL), expected)
    with path.open("r+b") as file:
        file.truncate(8 * 2**30)
    assert "is broken at second 5.9 (nothing is in the next" in said(path)
    with path.open("wb") as file:
        file.truncate(8 * 2**30)
    assert "is no film that can be read" in said(path)


def test_what_begins_in_the_middle_is_read_from_where_it_can_be():
    data = film(greys(30), format="mpegts", codec="libx264", g=10)
    cut = data[len(data) // 4 // 188 * 188 :]
    shown = numbers(load_video(cut, LEVELS, VideoConfig(clips=1, crops=1)))
    assert 0 < shown[0][0] < shown[0][1]
