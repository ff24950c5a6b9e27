"""Tables of motion: CSV line by line, .npy at once -> stretches of samples, whose time and order are checked."""

import io
import math
import os
import re
from collections.abc import Iterator
from itertools import islice
from typing import IO, TYPE_CHECKING

from ..inputs import ImuConfig
from . import imu_columns
from .imu_columns import Columns
from .source import DEFAULT_LIMITS, Fetch, MediaError, Source, describe, read_source

if TYPE_CHECKING:
    import numpy

MAX_BYTES = 4 * 2**30  # of a file that is read line by line: days of motion
MAX_LINE = 2**16  # characters; a file of longer ones is no table
MAX_GAP = 1.0  # seconds between two samples; what happened in a longer one cannot be guessed
MAX_VALUE = 1e6  # m/s^2 or rad/s
CHUNK = 4096  # rows that are handed on at once

Chunk = tuple["numpy.ndarray", "numpy.ndarray"]  # seconds (n,), channels (6, n)


def read_table(source: Source, config: ImuConfig, fetch: Fetch | None = None) -> Iterator[Chunk]:
    """Stretches of the recording in a .npy or text file: seconds (n,), channels (6, n) in m/s^2 and rad/s.

    Raises MediaError on whatever cannot be read, while it is read.
    """
    name = describe(source)
    with _open(source, name, fetch) as file:
        if file.read(6) == b"\x93NUMPY":
            yield from _read_npy(file, config, name)
            return
        file.seek(0)
        yield from _checked(_read_csv(file, config, name), name)


def chunks_of(values: "numpy.ndarray", rate: float, config: ImuConfig, name: str) -> Iterator[Chunk]:
    """The same of an array (6, T) or (T, 6), read as (6, T) if it is both, of `rate` samples a second."""
    import numpy

    if values.dtype.kind not in "iuf" or values.ndim != 2 or 6 not in values.shape:
        raise MediaError(
            f"{name} holds an array of shape {tuple(values.shape)} and type {values.dtype} but motion is "
            "numbers (6, T): accelerometer x, y, z, gyroscope x, y, z"
        )
    values = values if len(values) == 6 else values.T
    factors = numpy.array(imu_columns.numbered(config).factors)[:, None]
    for start in range(0, values.shape[1], CHUNK):
        part = values[:, start : start + CHUNK].astype(numpy.float64) * factors
        bad = numpy.argwhere(~(abs(part) <= MAX_VALUE))
        if len(bad):
            channel, row = bad[0]
            where = f"sample {start + row + 1} of {imu_columns.CHANNELS[channel]}"
            raise MediaError(f"{name} has {values[channel, start + row]} at {where}; leave such samples out")
        yield (start + numpy.arange(part.shape[1])) / rate, part
    if not values.size:
        raise MediaError(f"{name} has no samples; give a longer recording")


def required_rate(config: ImuConfig, name: str) -> float:
    """The rate of a recording without time. Raises MediaError if nobody said it."""
    if config.rate is None:
        raise MediaError(
            f"{name} has no time column, and nobody said how many samples make a second; "
            "name the column time_s or time_ms, or set ImuConfig.rate (the setting imu.rate)"
        )
    return config.rate


def _open(source: Source, name: str, fetch: Fetch | None) -> IO[bytes]:
    """A file on the disk is read bit by bit, however long; anything else comes as a whole."""
    is_url = isinstance(source, (str, os.PathLike)) and re.match(r"https?:/|data:", os.fsdecode(source), re.I)
    is_file = isinstance(source, (str, os.PathLike)) and not is_url and os.path.isfile(source)
    size = os.path.getsize(source) if is_file else 0
    if size > MAX_BYTES:
        raise MediaError(f"{name} has {size} bytes, more than the {MAX_BYTES} that are read; cut it into recordings")
    if not size or not os.access(source, os.R_OK):
        return io.BytesIO(read_source(source, fetch=fetch))  # which also says what is wrong with a path
    return open(source, "rb")


def _read_npy(file: IO[bytes], config: ImuConfig, name: str) -> Iterator[Chunk]:
    import numpy

    rate = required_rate(config, name)
    if file.seek(0, os.SEEK_END) > DEFAULT_LIMITS.max_bytes:
        limit = DEFAULT_LIMITS.max_bytes
        raise MediaError(f"{name} is a NumPy file of more than {limit} bytes; save it as CSV, or cut it")
    file.seek(0)
    try:
        values = numpy.load(file, allow_pickle=False)
    except Exception as error:  # broken files fail in ways no list of types covers
        raise MediaError(f"{name} is no NumPy file of numbers, or is cut off ({error}); save it again") from error
    yield from chunks_of(values, rate, config, name)


def _read_csv(file: IO[bytes], config: ImuConfig, name: str) -> Iterator[Chunk]:
    """The rows as they are; time of a table that has none is counted."""
    import numpy

    rows = _rows(file, name)
    first = next(rows, None)
    if first is None:
        raise MediaError(f"{name} has no rows; give one row a sample")
    cells = first[1]
    columns = _headerless(cells, config, name)
    if columns is None:
        columns = imu_columns.named(cells, config, name)
    else:
        rows = _before(first, rows)
    if columns.time is None:
        period = 1 / required_rate(config, name)
    wanted = [*columns.channels, *([] if columns.time is None else [columns.time])]
    width, factors, count = len(cells), numpy.array(columns.factors)[:, None], 0
    while block := [_numbers(row, cells, wanted, width, columns, name) for row, cells in islice(rows, CHUNK)]:
        values = numpy.array(block).T
        seconds = values[6] if columns.time is not None else (count + numpy.arange(len(block))) * period
        if columns.time is not None:
            if not count:
                origin, unit = seconds[0], columns.seconds or _guess_unit(seconds, columns, name)
            seconds = (seconds - origin) * unit
        count += len(block)
        yield seconds, values[:6] * factors
    if not count:
        raise MediaError(f"{name} has names of columns but no rows; give one row a sample")


def _before(first: tuple, rest: Iterator[tuple]) -> Iterator[tuple]:
    yield first
    yield from rest


def _headerless(cells: list[str], config: ImuConfig, name: str) -> Columns | None:
    """The columns if the first row is one of numbers already; None if it has names."""
    if not all(_is_number(cell) for cell in cells):
        return None
    if len(cells) != 6:
        raise MediaError(
            f"{name} has {len(cells)} columns without names, so nothing says which is which; "
            "put the line time_s,ax,ay,az,gx,gy,gz, as it fits, on top"
        )
    return imu_columns.numbered(config)


def _rows(file: IO[bytes], name: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each line that is neither empty nor a remark (#, %)."""
    separator = None
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        try:
            text = line.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise MediaError(f"{name} is no text (line {number}); give a CSV or .npy file") from error
        if len(line) == MAX_LINE or "\0" in text:
            raise MediaError(f"{name} is no table: line {number} is no line of text; give a CSV or .npy file")
        if not text or text[0] in "#%":
            continue
        if separator is None:
            separator = next((mark for mark in ";\t," if mark in text), " ")
        cells = text.split() if separator == " " else text.split(separator)
        if separator == ";":
            cells = [cell.replace(",", ".") for cell in cells]  # where a comma is the decimal point
        yield number, [cell.strip().strip("\"'") for cell in cells]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(number: int, cells: list[str], wanted: list[int], width: int, columns: Columns, name: str) -> list[float]:
    """The numbers of one row, channels and time. Raises MediaError naming row and column."""
    if len(cells) != width:
        raise MediaError(f"{name} has {len(cells)} cells in line {number} but {width} in the first; repair that line")
    values = []
    for column in wanted:
        cell = cells[column]
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        limit = MAX_VALUE if column != columns.time else math.inf
        if not abs(value) <= limit or math.isinf(value):
            raise MediaError(
                f"{name} has {cell!r} in line {number}, {columns.name(column)}, where a number is wanted; "
                "leave such lines out"
            )
        values.append(value)
    return values


def _guess_unit(times: "numpy.ndarray", columns: Columns, name: str) -> float:
    """Seconds of one unit of a time column that does not name it: the one that makes 5 to 2000 samples a second."""
    import numpy

    step = float(numpy.median(numpy.diff(times))) if len(times) > 1 else 0.0
    fits = [unit for unit in (1.0, 1e-3, 1e-6, 1e-9) if 1 / 2000 <= step * unit <= 1 / 5]
    if len(fits) != 1 or step == 1:  # steps of 1 are more often a count than milliseconds
        raise MediaError(
            f"{name} does not say what its {columns.name(columns.time)} counts (steps of {step:g}); "
            "name it time_s, time_ms, time_us or time_ns"
        )
    return fits[0]


def _checked(chunks: Iterator[Chunk], name: str) -> Iterator[Chunk]:
    """The same, if time goes on, without long gaps."""
    import numpy

    last = []
    for seconds, channels in chunks:
        steps = numpy.diff(seconds, prepend=last)
        later = seconds[len(seconds) - len(steps) :]
        if not (steps > 0).all():
            raise MediaError(
                f"{name} has times that do not increase, {later[steps <= 0][0]:g} s after its start; "
                "sort its rows and leave repeated ones out"
            )
        if (steps > MAX_GAP).any():
            gap = int(numpy.argmax(steps > MAX_GAP))
            raise MediaError(
                f"{name} has no samples for {steps[gap]:g} s, until {later[gap]:g} s after its start; "
                "cut it into recordings there"
            )
        last = seconds[-1:]
        yield seconds, channels
