"""Films become tensors: which frames are taken, how they are resized and cut, windows, broken and hostile files."""

import io
import itertools
import json
import math
import weakref

import numpy
import pytest
import torch
from made_films import LEVELS, LOSSLESS, SMALL, film, greys, numbers, pictures, with_matrix
from safetensors.torch import load_file
from torch.nn import functional as F

from imagebind_encoder import ImageConfig, VideoConfig
from imagebind_encoder.media import MediaError
from imagebind_encoder.media.film import Film
from imagebind_encoder.media.timeline import Timeline
from imagebind_encoder.media.video import Frames, _in_order, _plans, _tensors, cut, load_video, video_windows
from imagebind_encoder.media.windows import Windows

# --- the recorded numbers of the original


@pytest.fixture(scope="module")
def recorded(golden):
    if not (golden / "preprocess" / "video.safetensors").exists():
        pytest.skip(f"no film in {golden}")
    described = json.loads((golden / "preprocess" / "preprocess.json").read_text())["video"]
    return golden / "preprocess" / described["file"], described, load_file(golden / "preprocess" / "video.safetensors")


def test_the_tensor_is_the_original_s(recorded):
    path, _, expected = recorded
    tensor = load_video(path, config=VideoConfig(orient=False))
    mean, std = tensor.mean((-2, -1)), tensor.std((-2, -1))
    assert tensor.dtype == torch.float32 and tensor.shape[:3] == expected["output_mean"].shape
    thinned = tensor[..., ::8, ::8]
    for ours, theirs in (
        (thinned, expected["output_every8"]),
        (mean, expected["output_mean"]),
        (std, expected["output_std"]),
    ):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.square().mean().sqrt()


def test_decoded_pixels_are_the_original_s(recorded):
    path, _, expected = recorded
    pixels = expected["decoded_uint8_cthw"].permute(1, 2, 3, 0).numpy()
    with path.open("rb") as file:
        made = Film(file, "it", orient=False)
        frames = list(made.read(range(made.timeline.count)))
    assert [index for index, _ in frames] == list(range(len(pixels)))
    assert numpy.array_equal(numpy.stack([frame for _, frame in frames]), pixels)


def test_clips_hold_the_frames_of_the_original(recorded):
    _, described, _ = recorded
    timeline = Timeline.constant(described["n"], float(described["fps"]))
    seconds, clips = described["clip_seconds"], len(described["clip_seconds"])
    for (start, end), (first, last) in zip(seconds, described["clip_frames"], strict=True):
        assert timeline.span(start, end) == range(first, last)
    chosen = timeline.choose(clips, VideoConfig().seconds, 2)
    assert chosen == [[first, last - 1] for first, last in described["clip_frames"]]


# --- which frames


@pytest.mark.parametrize(
    ("count", "rate", "clips", "expected"),
    [
        (23, 5, 5, [[0, 9], [4, 13], [7, 16], [10, 19], [13, 22]]),
        (23, 5, 1, [[0, 9]]),
        (10, 5, 3, [[0, 9]] * 3),  # as long as a clip
        (7, 5, 2, [[0, 6]] * 2),  # shorter
        (1, 5, 2, [[0, 0]] * 2),
        (3, 0.25, 3, [[0, 0], [1, 1], [2, 2]]),  # a frame is on display for longer than a clip
    ],
)
def test_frames_at_a_constant_rate(count, rate, clips, expected):
    assert Timeline.constant(count, rate).choose(clips, 2.0, 2) == expected
    tensor = load_video(Frames(greys(count), rate), LEVELS, VideoConfig(clips=clips, crops=1))
    assert tensor.shape == (clips, 3, 2, 16, 16)
    assert numbers(tensor) == expected


def test_frames_between_first_and_last_are_spread_evenly_and_repeated():
    timeline = Timeline.constant(10, 5)
    assert timeline.choose(1, 2.0, 4) == [[0, 3, 6, 9]]
    assert timeline.choose(1, 2.0, 1) == [[0]]
    assert Timeline.constant(3, 5).choose(1, 2.0, 5) == [[0, 0, 1, 1, 2]]
    assert numbers(load_video(Frames(greys(3), 5), LEVELS, VideoConfig(clips=1, crops=1), frames=5)) == [
        [0, 0, 1, 1, 2]
    ]


def test_starts_of_clips_are_exact_before_they_are_rounded():
    # In floating point 1.6 * 3 / 3 is above 1.6, where frame 8 begins.
    assert Timeline.constant(18, 5.0).choose(4, 2.0, 2)[3] == [8, 17]


def test_frames_at_a_varying_rate_are_taken_by_their_times():
    times = [0, 100, 200, 300, 400, 2000, 2100, 3000, 3990]  # milliseconds
    data = film(greys(len(times)), times=times, **LOSSLESS)
    made = Film(io.BytesIO(data), "it", orient=True)
    assert made.timeline.rate is None
    assert list(made.timeline.times) == pytest.approx([time / 1000 for time in times])
    # Four seconds and what the last frame takes; clips start at 0, half of the rest, and the rest.
    rest = made.timeline.duration - 2.0
    assert 1.99 < rest < 3.0
    chosen = numbers(load_video(data, LEVELS, VideoConfig(clips=2, crops=1)))
    first = next(number for number, time in enumerate(times) if time / 1000 >= rest)
    assert chosen == [[0, 4], [first, 8]]


def test_where_no_frame_begins_the_one_on_display_is_taken():
    data = film(greys(3), times=[0, 100, 9000], **LOSSLESS)
    config = VideoConfig(clips=3, crops=1)
    assert numbers(load_video(data, LEVELS, config))[1] == [1, 1]
    steady = Timeline(3, 9.0, None, [0.0, 0.1, 9.0])
    assert [steady.span(start, start + 2) for start in (0.0, 0.1, 0.2, 7.0, 7.5)] == [
        range(2), range(1, 2), range(1, 2), range(1, 2), range(2, 3)
    ]  # fmt: skip


def test_times_rounded_to_milliseconds_are_still_a_constant_rate():
    data = film(greys(40), 30, format="webm", codec="libvpx-vp9")
    timeline = Film(io.BytesIO(data), "it", orient=True).timeline
    assert timeline == Timeline.constant(40, 30.0)


def test_a_film_that_has_lost_a_frame_is_not_of_constant_rate():
    # In AVI a tick is a frame: being off by one is not rounding.
    ticks = numpy.array([0, 1, 2, 4, 5, 6])
    assert Timeline.at(ticks, 0.1, 10.0, 1).rate is None
    assert Timeline.at(ticks, 0.1, 10.0, 1).duration == pytest.approx(0.7)
    assert Timeline.at(numpy.arange(6), 0.1, 10.0, 1) == Timeline.constant(6, 10.0)


def test_a_rate_that_the_file_does_not_tell_is_that_of_its_frames():
    assert Timeline.at(numpy.array([5, 10, 15, 20]), 0.01, 0.0, 0).rate == pytest.approx(20.0)
    assert Timeline.at(numpy.array([7]), 0.01, 0.0, 40).duration == pytest.approx(0.4)
    assert Timeline.at(numpy.array([7]), 0.01, 0.0, 0).duration > 0


# --- which pixels


@pytest.mark.parametrize(
    ("height", "width"), [(40, 60), (40, 65), (61, 35), (33, 33), (200, 17), (1, 9), (16, 16), (120, 67)]
)
def test_squares_are_those_of_an_interpolated_frame(height, width):
    pixels = pictures(1, height, width)[0]
    config = ImageConfig(size=24, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    high = 24 if height <= width else math.floor(height / width * 24)
    wide = 24 if width <= height else math.floor(width / height * 24)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    whole = F.interpolate(whole, size=(high, wide), mode="bilinear", align_corners=False)[0]
    whole = (whole - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(config.std).view(3, 1, 1)
    y, x = math.ceil((high - 24) / 2), math.ceil((wide - 24) / 2)
    expected = [whole[:, :24, :24], whole[:, y : y + 24, x : x + 24], whole[:, -24:, -24:]]
    torch.testing.assert_close(cut(pixels, config, 3), torch.stack(expected), atol=2e-5, rtol=0)
    torch.testing.assert_close(cut(pixels, config, 1), expected[1][None], atol=2e-5, rtol=0)


def test_tensors_go_clip_by_clip_and_in_each_crop_by_crop():
    frames = pictures(30, 20, 50)
    tensor = load_video(Frames(frames, 10), SMALL, VideoConfig(clips=2), frames=3)
    assert tensor.shape == (6, 3, 3, 16, 16) and tensor.is_contiguous()
    for clip, chosen in enumerate([[0, 9, 19], [10, 19, 29]]):
        for crop in range(3):
            expected = torch.stack([cut(frames[index], SMALL, 3)[crop] for index in chosen], dim=1)
            assert torch.equal(tensor[3 * clip + crop], expected)


def test_squash_keeps_the_whole_frame_and_has_one_crop():
    frames = pictures(4, 20, 50)
    tensor = load_video(Frames(frames, 10), ImageConfig(size=16, crop="squash"))
    assert tensor.shape == (5, 3, 2, 16, 16)
    whole = F.interpolate(torch.from_numpy(frames[:1]).permute(0, 3, 1, 2).float(), size=(16, 16), mode="bilinear")
    expected = (whole[0] / 255 - torch.tensor(SMALL.mean).view(3, 1, 1)) / torch.tensor(SMALL.std).view(3, 1, 1)
    torch.testing.assert_close(tensor[0, :, 0], expected, atol=1e-5, rtol=0)


def test_channels_are_swapped_before_the_norm():
    frames = pictures(2)
    unit = {"size": 16, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    swapped = load_video(Frames(frames, 5), ImageConfig(**unit, channels="bgr"))
    assert torch.equal(swapped, load_video(Frames(frames[..., ::-1].copy(), 5), ImageConfig(**unit)))


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((0, 1, -1, 0), lambda frame: numpy.rot90(frame, -1)),  # a phone held upright
        ((-1, 0, 0, -1), lambda frame: numpy.rot90(frame, 2)),
        ((0, -1, 1, 0), lambda frame: numpy.rot90(frame, 1)),
        ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
        ((1, 0, 0, -1), lambda frame: frame[::-1]),
        ((0, 1, 1, 0), lambda frame: frame.transpose(1, 0, 2)),
        ((1, 0, 0, 1), lambda frame: frame),
    ],
)
def test_films_are_turned_by_their_display_matrix(matrix, upright):
    data = film(pictures(2))
    turned = with_matrix(data, *matrix)
    stored = [frame for _, frame in Film(io.BytesIO(data), "it", orient=False).read([0, 1])]
    for orient, expected in ((True, [upright(frame) for frame in stored]), (False, stored)):
        made = Film(io.BytesIO(turned), "it", orient)
        assert all(numpy.array_equal(frame, expected[index]) for index, frame in made.read([0, 1]))
        expected = load_video(Frames(numpy.stack(expected), 10), SMALL)
        assert torch.equal(load_video(turned, SMALL, VideoConfig(orient=orient)), expected)


def test_frames_may_be_an_array_or_a_tensor_or_a_file():
    frames = pictures(30)
    expected = load_video(Frames(frames, 10), SMALL)
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    assert torch.equal(load_video(Frames(tensor, 10), SMALL), expected)
    assert torch.equal(load_video(film(frames, **LOSSLESS), SMALL), expected)


# --- windows


def parts(frames, rate, seconds, hop):
    """The frames of each window of `frames` at a constant rate, by the rule in words."""
    duration = len(frames) / rate
    starts, start = [], 0.0
    while start + seconds < duration - 1e-9:
        starts.append(start)
        start += hop
    for start in [*starts, max(0.0, duration - seconds)]:
        yield frames[round(start * rate) : round((start + seconds) * rate)]


@pytest.mark.parametrize(
    ("seconds", "hop", "clips"), [(3.0, None, 2), (3.0, 1.0, 2), (2.0, None, 1), (0.5, 0.2, 1), (60.0, None, 2)]
)
def test_a_window_is_what_a_film_of_its_frames_is(seconds, hop, clips):
    frames, config = pictures(83), VideoConfig(clips=2)
    made = list(video_windows(film(frames, **LOSSLESS), Windows(seconds, hop), SMALL, config))
    expected = list(parts(frames, 10, seconds, hop or seconds))
    assert len(made) == len(expected)
    for ours, part in zip(made, expected, strict=True):
        assert torch.equal(ours, load_video(Frames(part, 10), SMALL, VideoConfig(clips=clips)))


def test_a_film_shorter_than_a_clip_is_one_clip_in_any_window():
    short = Frames(pictures(13), 10)
    (made,) = video_windows(short, Windows(60.0), SMALL)
    assert torch.equal(made, load_video(short, SMALL, VideoConfig(clips=1)))


def test_windows_of_films_in_memory_are_those_of_the_file():
    frames = pictures(50)
    for ours, theirs in itertools.zip_longest(
        video_windows(Frames(frames, 10), Windows(1.5, 1.1), SMALL),
        video_windows(film(frames, **LOSSLESS), Windows(1.5, 1.1), SMALL),
    ):
        assert torch.equal(ours, theirs)


def test_a_window_at_a_varying_rate_is_what_a_film_of_its_frames_is():
    times = [0, 150, 300, 1000, 2000, 2500, 2600, 2700, 4100, 5900, 6100, 6400]
    frames = pictures(len(times))
    config = VideoConfig(clips=3, seconds=1.0)
    made = list(video_windows(film(frames, times=times, **LOSSLESS), Windows(2.0), SMALL, config))
    assert len(made) == 4
    for ours, start in zip(made[:3], (0, 2000, 4000), strict=False):
        inside = [number for number, time in enumerate(times) if start <= time < start + 2000]
        after = times[inside[-1] + 1]
        # One frame more tells how long the last one is shown; it is not in the part.
        timeline = Timeline(len(inside) + 1, math.inf, None, [(times[n] - times[inside[0]]) / 1000 for n in inside] + [
            (after - times[inside[0]]) / 1000
        ]).part(range(len(inside)))  # fmt: skip
        plan = timeline.choose(3, 1.0, 2)
        expected = [torch.stack([cut(frames[inside[index]], SMALL, 3) for index in clip], dim=2) for clip in plan]
        assert torch.equal(ours, torch.cat(expected))


def test_windows_come_one_by_one_and_a_broken_end_spoils_only_what_is_behind():
    data = bytearray(film(pictures(90), g=5))
    data[len(data) * 6 // 10 : len(data) * 8 // 10] = bytes(len(data) // 5)
    windows = video_windows(bytes(data), Windows(1.0), SMALL)
    good = [next(windows) for _ in range(4)]
    assert all(window.shape == (3, 3, 2, 16, 16) for window in good)
    with pytest.raises(MediaError, match=r"broken at second [4-9]\.\d"):
        list(windows)


def test_a_film_of_days_is_not_cut_into_windows():
    sources = (film(greys(3), times=[0, 100, 50_000_000], **LOSSLESS), Frames(greys(5), 1e-4))
    for source, name in zip(sources, (f"{len(sources[0])} bytes", "a film in memory"), strict=True):
        with pytest.raises(MediaError, match=rf"{name} is longer than 12 hours by the times of its [35] frames; cut"):
            next(video_windows(source, Windows(1.0), SMALL))
        assert load_video(source, SMALL).shape == (15, 3, 2, 16, 16)


def test_no_more_plans_are_made_than_overlap():
    made = []

    def plans():
        for number in itertools.count():
            made.append(number)
            yield [[number * 5, number * 5 + 12]]

    order = _in_order(plans())
    assert [next(order) for _ in range(9)] == [0, 5, 10, 12, 15, 17, 20, 22, 25]
    assert made[-1] == 6  # 25 and all below are given out when the plan that begins at 30 is known


def test_a_frame_that_windows_share_is_decoded_once():
    class Counting:
        timeline = Timeline.constant(60, 10.0)

        def read(self, indices):
            for index in indices:
                asked.append(index)
                yield index, pictures(1)[0]

    asked = []
    plans = _plans(Counting.timeline, Windows(3.0, 0.5), 2, 2.0, 4)
    assert len(list(_tensors(Counting(), plans, SMALL, 1))) == 7
    assert asked == sorted(set(asked))


def test_what_earlier_windows_showed_is_forgotten(monkeypatch):
    shown = []

    def watched(pixels, *_):
        square = torch.zeros(1, 3, 2, 2)
        shown.append(weakref.ref(square))
        return square

    monkeypatch.setattr("imagebind_encoder.media.video.cut", watched)
    for _ in video_windows(Frames(pictures(300, 8, 8), 10), Windows(2.0, 1.0), SMALL):
        assert sum(square() is not None for square in shown) <= 6  # of this window and the next
    assert len(shown) > 50
