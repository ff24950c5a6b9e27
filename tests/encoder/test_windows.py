"""Where the windows of a recording begin, whatever it is a recording of."""

from itertools import pairwise

import pytest

from imagebind_encoder.media.windows import Windows


@pytest.mark.parametrize("late", [0.0, 1e-12, 0.0004, 0.0009, 0.0011, 0.3])
@pytest.mark.parametrize("seconds, hop", [(2.0, None), (2.0, 0.7), (1.0, 2.5), (0.5, 0.0003)])
@pytest.mark.parametrize("hops", [0, 1, 4])
def test_windows_are_whole_and_none_begins_just_behind_another(late, seconds, hop, hops):
    windows = Windows(seconds, hop)
    duration = seconds + hops * windows.step + late
    starts = list(windows.starts(duration))
    assert starts[-1] == pytest.approx(duration - seconds)
    regular = starts[:-1]
    assert regular == [number * windows.step for number in range(len(regular))]
    gaps = [after - before for before, after in pairwise(starts)]
    nearest = min(0.001, windows.step / 100)
    assert all(nearest < gap < windows.step + nearest + 1e-6 for gap in gaps)
    assert starts[0] < 0.0011


@pytest.mark.parametrize("duration", [0.1, 1.0, 2.0])
def test_a_recording_no_longer_than_a_window_is_one(duration):
    assert list(Windows(2.0, 0.3).starts(duration)) == [0.0]
