"""Every way a recording of motion can come in, how it becomes windows, and every way it can be unreadable."""

import base64
import io
from itertools import islice
from pathlib import Path

import numpy
import pytest
import torch

from imagebind_encoder import ConfigError, ImuConfig, MediaError
from imagebind_encoder.media import Limits, imu_table
from imagebind_encoder.media.imu import Motion, imu_windows, load_imu
from imagebind_encoder.media.windows import Windows

RATE, SECONDS, SAMPLES = 20, 3.0, 45
CONFIG = ImuConfig(seconds=SECONDS)
NAMES = ("ax", "ay", "az", "gx", "gy", "gz")


@pytest.fixture
def channels():
    """(6, 140): 7 seconds that wander."""
    return numpy.random.default_rng(5).normal(size=(6, 140)).cumsum(axis=1) * 0.2


def times(channels, rate=RATE):
    return numpy.arange(channels.shape[1]) / rate


def table(columns, header=None, separator=",", end="\n"):
    rows = [separator.join(repr(float(cell)) for cell in row) for row in zip(*columns, strict=True)]
    return end.join([*([separator.join(header)] if header else []), *rows]).encode()


def named(channels, names=NAMES, time="time_s", at=None):
    return table([times(channels) if at is None else at, *channels], [time, *names])


def npy(array):
    buffer = io.BytesIO()
    numpy.save(buffer, array)
    return buffer.getvalue()


def loaded(source, windows=None, config=CONFIG, samples=SAMPLES, **options):
    return torch.stack(list(imu_windows(source, windows, config, samples, **options)))


def expected(channels, rate=RATE):
    return loaded(Motion(channels, rate))


def close(found, wanted, tolerance=1e-4):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


# sources


def test_arrays_tensors_and_npy(channels, tmp_path):
    said = ImuConfig(seconds=SECONDS, rate=RATE)
    single = channels.astype(numpy.float32)
    (tmp_path / "a.bin").write_bytes(npy(channels))
    sources = [channels, channels.T, single, single.astype(">f4"), numpy.asfortranarray(channels)]
    sources += [torch.from_numpy(single), torch.from_numpy(channels).T, npy(channels), npy(channels.T)]
    sources += [tmp_path / "a.bin", str(tmp_path / "a.bin"), bytearray(npy(channels))]
    for source in sources:
        close(loaded(source, config=said), expected(channels))
    close(loaded(Motion(torch.from_numpy(single), RATE)), expected(channels))
    whole = (channels * 10).astype(numpy.int16)
    close(loaded(whole, config=said), expected(whole.astype(float)))


def test_tables_of_any_dialect(channels, tmp_path):
    plain = named(channels)
    (tmp_path / "a.csv").write_bytes(plain)
    german = plain.replace(b",", b";").replace(b".", b",")
    quoted = b'"' + plain.replace(b",", b'","').replace(b"\n", b'"\n"') + b'"'
    sources = [plain, tmp_path / "a.csv", str(tmp_path / "a.csv")]
    sources += ["data:text/csv;base64," + base64.b64encode(plain).decode()]
    sources += [plain.replace(b",", b"\t"), plain.replace(b",", b"  "), german, quoted, plain.replace(b"\n", b"\r\n")]
    sources += [b"\xef\xbb\xbf" + plain, b"# a watch\n\n% on the left\n" + plain + b"\n\n"]
    for source in sources:
        close(loaded(source), expected(channels))
    close(loaded("https://a.b/c.csv", fetch=lambda url: plain), expected(channels))


def test_six_columns_without_names_are_in_order(channels):
    said = ImuConfig(seconds=SECONDS, rate=RATE)
    close(loaded(table(channels), config=said), expected(channels))
    close(loaded(b"\xef\xbb\xbf" + table(channels), config=said), expected(channels))
    close(loaded(table(channels, NAMES), config=said), expected(channels))


def test_a_time_column_is_worth_more_than_the_rate(channels):
    said = ImuConfig(seconds=SECONDS, rate=RATE * 3)
    close(loaded(named(channels), config=said), expected(channels))
    close(loaded(Motion(channels, RATE), config=said), expected(channels))  # and so is what is said of this one


@pytest.mark.parametrize(
    "names",
    [
        "acc_x acc_y acc_z gyro_x gyro_y gyro_z",
        "AccX AccY AccZ GyroX GyroY GyroZ",
        "accel_x accel_y accel_z wx wy wz",
        "accl_x accl_y accl_z gyr_x gyr_y gyr_z",
        "accelerometer_x accelerometer_y accelerometer_z gyroscope_x gyroscope_y gyroscope_z",
        "userAcceleration.x userAcceleration.y userAcceleration.z rotationRate.x rotationRate.y rotationRate.z",
        "linear_acceleration.x linear_acceleration.y linear_acceleration.z "
        "angular_velocity.x angular_velocity.y angular_velocity.z",
        "X-Accel Y-Accel Z-Accel x_axis_gyro y_axis_gyro z_axis_gyro",
        "ACCELEROMETER_X(m/s²) ACCELEROMETER_Y(m/s²) ACCELEROMETER_Z(m/s²) "
        "GYROSCOPE_X[rad/s] GYROSCOPE_Y[rad/s] GYROSCOPE_Z[rad/s]",
        "acc_x_ms2 acc_y_ms2 acc_z_ms2 omega_x omega_y omega_z",
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (3, 4, 5, 0, 1, 2), (2, 5, 1, 4, 0, 3)])
def test_names_put_the_order_right(channels, names, order):
    names = names.split()
    source = named(channels[list(order)], [names[index] for index in order])
    close(loaded(source), expected(channels))


def test_other_columns_are_passed_over(channels):
    extra = numpy.zeros((3, channels.shape[1]))
    header = ["label", *NAMES[3:], "gravity.x", "seconds_elapsed", "mag_x", *NAMES[:3]]
    rows = [extra[0], *channels[3:], extra[1], times(channels), extra[2], *channels[:3]]
    close(loaded(table(rows, header)), expected(channels))
    text = table(rows, header).replace(b"\n0.0,", b"\nwalking,")  # what is not needed need not be a number
    close(loaded(text), expected(channels))


@pytest.mark.parametrize("unit, factor", [("s", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
@pytest.mark.parametrize("origin", [0, -3, 1.7e6])
def test_time_is_read_in_its_unit(channels, unit, factor, origin):
    at = (times(channels) + origin) * factor
    for name in (f"time_{unit}", f"Timestamp ({unit})", f"t[{unit}]", f"t_{unit}", f"ts_{unit}", "timestamp", "ts"):
        close(loaded(named(channels, time=name, at=at)), expected(channels), 1e-3)


def test_the_time_column_that_names_its_unit_is_taken(channels):
    rows = [numpy.arange(channels.shape[1]), times(channels), *channels]
    close(loaded(table(rows, ["time", "seconds_elapsed", *NAMES])), expected(channels))


def test_units(channels):
    g, degrees = channels.copy(), channels.copy()
    g[:3] /= 9.80665
    degrees[3:] = numpy.degrees(channels[3:])
    both = numpy.concatenate([g[:3], degrees[3:]])
    config = ImuConfig(seconds=SECONDS, rate=RATE, acceleration="g", rotation="deg/s")
    close(loaded(both, config=config), expected(channels))
    close(loaded(Motion(both, RATE), config=config), expected(channels))
    close(loaded(named(both), config=config), expected(channels))
    close(loaded(named(g, ["acc_x (g)", "acc_y_g", "gFz", "gx", "gy", "gz"])), expected(channels))
    names = [*NAMES[:3], "gyro_x_dps", "gyro_y (°/s)", "gyro z [deg/s]"]
    close(loaded(named(degrees, names)), expected(channels))
    said = [f"acc_{axis} (m/s^2)" for axis in "xyz"] + [f"gyro_{axis} (rad/s)" for axis in "xyz"]
    close(loaded(named(channels, said), config=config), expected(channels))


# resampling


def test_samples_at_the_same_rate_stay_as_they_are(channels):
    found = loaded(Motion(channels, RATE), Windows(SECONDS, SECONDS), samples=int(SECONDS * RATE))
    close(found[0], torch.from_numpy(channels[:, :60]).float(), 1e-6)
    close(found[1], torch.from_numpy(channels[:, 60:120]).float(), 1e-6)
    close(found[2], torch.from_numpy(channels[:, 80:]).float(), 1e-6)


@pytest.mark.parametrize("samples", [13, 50, 60, 61, 300])
def test_lines_stay_lines(samples):
    """At any rate, also where the times are uneven; the ends go on level for half of what is averaged."""
    rng = numpy.random.default_rng(0)
    at = numpy.sort(rng.uniform(0, 4, 80))
    at[0] = 0
    slopes = rng.normal(size=(6, 1))
    found = loaded(named(slopes * at + 1, at=at), samples=samples)[0]
    grid = numpy.arange(samples) * SECONDS / samples
    inner = grid > SECONDS / samples
    close(found[:, inner], torch.from_numpy(slopes * grid + 1).float()[:, inner])


def test_fast_shaking_does_not_turn_into_slow():
    """A tone beyond half the new rate all but vanishes, one far below it stays."""
    at = numpy.arange(1200) / 400
    fast, slow = numpy.sin(2 * numpy.pi * 19.5 * at), numpy.sin(2 * numpy.pi * at)
    found = loaded(Motion(numpy.stack([fast, slow] * 3), 400), samples=60)[0]
    assert found[0, 1:-1].abs().max() < 0.1
    assert found[1].abs().max() > 0.97


def test_a_mean_stays_where_samples_get_fewer(channels):
    found = loaded(Motion(channels, RATE), Windows(7.0), samples=14)[0]
    wanted = torch.from_numpy(channels.mean(axis=1)).float()
    torch.testing.assert_close(found.mean(dim=1), wanted, rtol=0.05, atol=0.05)


# windows


def test_a_window_just_before_the_last_is_left_out_of_fast_recordings_too(channels):
    long = numpy.tile(channels, 10)
    windows = Windows(0.08, 0.1996)  # of 0.28 seconds: the second would begin 0.4 ms before the last
    assert list(windows.starts(0.28)) == [0.0, pytest.approx(0.2)]
    found = loaded(Motion(long, 5000), windows)
    [last] = loaded(Motion(long[:, -400:], 5000), Windows(0.08))
    assert len(found) == 2
    close(found[1, :, 1:], last[:, 1:])  # the first sample is a mean with what was before


@pytest.mark.parametrize("windows", [None, Windows(2.0), Windows(1.5, 0.4), Windows(1.0, 2.5), Windows(9.0)])
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_windows_are_those_of_the_whole_recording(channels, windows, chunk, monkeypatch):
    """However a recording comes in, each window is what would be cut out of it by hand."""
    monkeypatch.setattr(imu_table, "CHUNK", chunk)
    counted = ImuConfig(seconds=SECONDS, rate=RATE)
    found = [loaded(source, windows) for source in (Motion(channels, RATE), named(channels))]
    found += [loaded(source, windows, counted) for source in (table(channels), channels)]
    cut = windows or Windows(SECONDS)
    starts = list(cut.starts(channels.shape[1] / RATE))
    assert [len(one) for one in found] == [len(starts)] * 4
    at = numpy.concatenate([times(channels), [channels.shape[1] / RATE]])
    held = numpy.concatenate([channels, channels[:, -1:]], axis=1)
    fine = numpy.arange(SAMPLES) * cut.seconds / SAMPLES
    for start, *ones in zip(starts, *found, strict=True):
        wanted = numpy.stack([numpy.interp(start + fine, at, channel, right=0) for channel in held])
        if cut.seconds / SAMPLES <= 1 / RATE:  # else each sample is a mean
            for one in ones:
                close(one, torch.from_numpy(wanted).float())
        for one in ones[1:]:
            close(one, ones[0])


@pytest.mark.parametrize("centre", [False, True])
def test_what_is_missing_of_a_window_is_zeros(channels, centre):
    short = channels[:, :20] + 5
    found = loaded(Motion(short, RATE), config=ImuConfig(seconds=SECONDS, centre=centre))
    assert found.shape == (1, 6, SAMPLES)
    assert not found[0, :, 15:].any()
    assert (found[0, :, :15] != 0).all()
    if centre:
        close(found[0, :, :15].mean(dim=1), torch.zeros(6))


def test_centring_takes_gravity_away(channels):
    config = ImuConfig(seconds=SECONDS, centre=True)
    offsets = numpy.array([[0, 0, 9.81, 0.1, -0.2, 0]]).T
    found = loaded(Motion(channels, RATE), config=config)
    close(loaded(Motion(channels + offsets, RATE), config=config), found)
    close(found.mean(dim=2), torch.zeros(len(found), 6))
    close(found, expected(channels) - expected(channels).mean(dim=2, keepdim=True))


def test_load_imu_is_the_first_window(channels):
    assert torch.equal(load_imu(Motion(channels, RATE), CONFIG, SAMPLES), expected(channels)[0])
    assert load_imu(named(channels)).shape == (6, 2000)


def test_windows_come_while_the_file_is_read(tmp_path, monkeypatch):
    """A broken line at the end does not keep the windows before it back, and little of the file is held."""
    monkeypatch.setattr(imu_table, "CHUNK", 100)
    path = tmp_path / "long.csv"
    at = numpy.arange(60_000) / 100
    path.write_bytes(named(numpy.zeros((6, len(at))), at=at) + b"\n600.0,x,0,0,0,0,0")
    windows = imu_windows(path, Windows(2.0), CONFIG, SAMPLES)
    with path.open("rb") as opened:
        assert sum(1 for _ in islice(windows, 5)) == 5
        frame = windows.gi_frame.f_locals
        assert frame["times"].size < 400
        del opened
    with pytest.raises(MediaError, match="line 60002"):
        list(windows)


# errors


def bad_cell(cell, channels=None):
    rows = numpy.zeros((6, 30))
    return named(rows).replace(b"\n0.5,0.0,0.0", b"\n0.5,0.0," + cell)


@pytest.mark.parametrize(
    "source, words",
    [
        (b"", ["is empty"]),
        (b"\n\n", ["no rows"]),
        (b"# only remarks", ["no rows"]),
        (b"t_s,ax,ay,az,gx,gy,gz", ["names of columns but no rows"]),
        (b"t_s,ax,ay,az,gx,gy,gz\n0,1,2,3,4,5,6", ["1 samples", "longer"]),
        (named(numpy.zeros((5, 9)), NAMES[:5]), ["no column for gyroscope z", "'gy'", "name them ax"]),
        (named(numpy.zeros((3, 9)), NAMES[:3]), ["gyroscope x, gyroscope y, gyroscope z"]),
        (named(numpy.zeros((6, 9)), "abcdef"), ["no column for accelerometer x", "'a'"]),
        (named(numpy.zeros((7, 9)), [*NAMES, "acc_x"]), ["two columns for accelerometer x", "'ax'", "'acc_x'"]),
        (named(numpy.zeros((6, 9)), ["acc_x (furlong)", *NAMES[1:]]), ["'furlong'", "m/s^2 or g"]),
        (table(numpy.zeros((6, 9)), NAMES), ["no time column", "ImuConfig.rate"]),
        (table(numpy.zeros((6, 9))), ["no time column"]),
        (table(numpy.zeros((7, 9))), ["7 columns without names", "time_s,ax,ay"]),
        (table(numpy.zeros((5, 9))), ["5 columns without names"]),
        (npy(numpy.zeros((6, 9))), ["no time column"]),
        (bad_cell(b"nan"), ["'nan'", "line 12", "column 'ay'"]),
        (bad_cell(b""), ["''", "line 12", "column 'ay'"]),
        (bad_cell(b"walking"), ["'walking'", "line 12", "column 'ay'"]),
        (bad_cell(b"1e9"), ["'1e9'", "line 12"]),
        (bad_cell(b"inf"), ["'inf'", "line 12"]),
        (bad_cell(b"0.0,7"), ["8 cells in line 12", "7 in the first"]),
        (named(numpy.zeros((6, 9)), at=[0, 0.1, 0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]), ["do not increase", "0.2 s"]),
        (named(numpy.zeros((6, 9)), at=[0, 0.1, 0.2, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7]), ["do not increase", "sort"]),
        (named(numpy.zeros((6, 4)), at=[5.0, 5.1, 9.1, 9.2]), ["no samples for 4 s", "4.1 s", "cut it"]),
        (named(numpy.zeros((6, 4)), at=[0, numpy.inf, 1, 2]), ["'inf'", "column 'time_s'"]),
        (named(numpy.zeros((6, 9)), time="time", at=range(9)), ["column 'time' counts", "steps of 1", "time_ms"]),
        (named(numpy.zeros((6, 9)), time="time", at=numpy.arange(9) * 0.3), ["steps of 0.3"]),
        (b"\x89PNG\r\n\x1a\n\0\0", ["no text"]),
        (b"a,b\0,c\n", ["no table"]),
        (b"x" * 100_000, ["no table"]),
        (npy(numpy.zeros((6, 9)))[:-7], ["no time column"]),
    ],
)  # fmt: skip
def test_bad_tables(source, words):
    with pytest.raises(MediaError) as caught:
        list(imu_windows(source, None, CONFIG, SAMPLES))
    message = str(caught.value)
    assert message.startswith(f"{len(source)} bytes ")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "values, words",
    [
        (numpy.zeros((5, 9)), ["shape (5, 9)", "numbers (6, T)"]),
        (numpy.zeros((6, 9, 2)), ["shape (6, 9, 2)"]),
        (numpy.zeros((6, 0)), ["no samples"]),
        (numpy.zeros((6, 1)), ["1 samples"]),
        (numpy.full((6, 9), "a"), ["numbers"]),
        (numpy.zeros((6, 9), bool), ["bool"]),
        (numpy.zeros((6, 9)).astype(complex), ["complex"]),
        (numpy.where(numpy.arange(54).reshape(6, 9) == 31, numpy.nan, 0), ["nan", "sample 5", "gyroscope x"]),
        (numpy.where(numpy.arange(54).reshape(6, 9) == 31, 1e30, 0), ["1e+30", "sample 5"]),
        (torch.zeros(6, 9, dtype=torch.complex64), ["complex"]),
    ],
)  # fmt: skip
def test_bad_arrays(values, words):
    with pytest.raises(MediaError) as caught:
        list(imu_windows(Motion(values, 10.0), None, CONFIG, SAMPLES))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("chunk", [1, 3, 4])
@pytest.mark.parametrize("later, words", [(0.1, "increase, 0.1 s"), (0.2, "increase"), (9.0, "for 8.8 s")])
def test_time_is_checked_across_stretches(later, words, chunk, monkeypatch):
    monkeypatch.setattr(imu_table, "CHUNK", chunk)
    with pytest.raises(MediaError, match=words):
        list(imu_windows(named(numpy.zeros((6, 5)), at=[0, 0.1, 0.2, later, later + 0.1])))


def test_other_bad_sources(tmp_path, channels, monkeypatch):
    said = ImuConfig(rate=RATE)
    (tmp_path / "cut.npy").write_bytes(npy(channels)[:-7])
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "long.csv").write_bytes(named(channels))
    monkeypatch.setattr(imu_table, "MAX_BYTES", 9999)
    monkeypatch.setattr(imu_table, "DEFAULT_LIMITS", Limits(max_bytes=8999))
    (tmp_path / "long.npy").write_bytes(npy(numpy.zeros((6, 190))))
    for source, words in (
        (tmp_path / "cut.npy", "cut off"),
        (tmp_path / "empty.csv", "is empty"),
        (tmp_path / "nothing.csv", "no file"),
        (tmp_path / "long.npy", "more than 8999 bytes; save it as CSV"),
        (tmp_path, "directory"),
        (tmp_path / "long.csv", "more than the 9999"),
        (7, "no media source"),
        (Motion([[1, 2]], 4.0), "array or a tensor"),
        (npy(numpy.array([{}], dtype=object)), "no NumPy file"),
    ):
        with pytest.raises(MediaError, match=words):
            load_imu(source, said)


def test_windows_that_lie_between_samples_are_refused(channels):
    source = Motion(channels, RATE)
    with pytest.raises(MediaError, match=r"sample every 0\.05 s and a window of 0\.04 s would hold none; give"):
        next(imu_windows(source, Windows(0.04), CONFIG, SAMPLES))
    assert len(loaded(source, Windows(0.05))) == channels.shape[1]


@pytest.mark.parametrize("rate", [0, -3, float("nan"), float("inf"), True, "10"])
def test_bad_rates(rate):
    with pytest.raises(MediaError, match="positive number of samples a second"):
        Motion(numpy.zeros((6, 9)), rate)
    with pytest.raises(ConfigError, match=r"ImuConfig\.rate"):
        ImuConfig(rate=rate)


@pytest.mark.parametrize(
    "field, value", [("seconds", 0), ("acceleration", "G"), ("rotation", "rpm"), ("centre", 1), ("seconds", "5")]
)
def test_bad_configs(field, value):
    with pytest.raises(ConfigError, match=rf"ImuConfig\.{field}"):
        ImuConfig(**{field: value})


def test_a_path_may_be_a_path(tmp_path, channels):
    path = Path(tmp_path) / "http.csv"
    path.write_bytes(named(channels))
    close(loaded(path), expected(channels))
