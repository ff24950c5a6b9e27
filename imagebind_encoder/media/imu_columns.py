"""The columns of a table of motion, told by their names: the time, the accelerometer's x and so on, and their units."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..inputs import ImuConfig
from .source import MediaError

CHANNELS = ("accelerometer x", "accelerometer y", "accelerometer z", "gyroscope x", "gyroscope y", "gyroscope z")

STANDARD_GRAVITY = 9.80665
FACTORS = {"m/s^2": 1.0, "g": STANDARD_GRAVITY, "rad/s": 1.0, "deg/s": math.pi / 180}  # to m/s^2 and rad/s
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}

_UNITS = {  # spellings, without anything but letters and digits
    "m/s^2": ("ms2", "mss", "mps2", "mpers2", "msec2", "ms²"),
    "g": ("g", "gs"),
    "rad/s": ("rads", "radsec", "radps", "radpers", "rad"),
    "deg/s": ("degs", "degsec", "degps", "degpers", "dps", "deg"),
    "s": ("s", "sec", "secs", "second", "seconds"),
    "ms": ("ms", "msec", "millis", "millisecond", "milliseconds"),
    "us": ("us", "µs", "μs", "usec", "micros", "microsecond", "microseconds"),
    "ns": ("ns", "nsec", "nanos", "nanosecond", "nanoseconds"),
}
_UNIT_OF = {spelling: unit for unit, spellings in _UNITS.items() for spelling in spellings}
_SENSORS = (  # what a name says before or behind its axis, and the units it can be in
    ("accelerometer", r"a|gf|\w*acc|\w*accl|\w*accel|\w*acceleration|\w*accelerometer", ("m/s^2", "g")),
    ("gyroscope", r"g|w|\w*gyro?|\w*gyroscope|\w*omega|\w*angularvel|\w*angularvelocity|\w*rotation|\w*rotationrate",
     ("rad/s", "deg/s")),
)


def _spellings(*units: str) -> str:
    return "|".join(re.escape(spelling) for unit in units for spelling in _UNITS[unit])


_TIME = re.compile(
    rf"({_spellings(*_SECONDS)})(?:elapsed)?|(?:\w*(?:time|timestamp|elapsed|epoch)|ts??)({_spellings(*_SECONDS)})?"
)


@dataclass(frozen=True)
class Columns:
    """Where in a row of a table the time and the six channels are."""

    channels: tuple[int, ...]  # six, in the order of CHANNELS
    factors: tuple[float, ...]  # six, to m/s^2 and rad/s
    time: int | None = None
    seconds: float | None = None  # of the time's unit; None: its name does not say
    names: tuple[str, ...] = ()

    def name(self, column: int) -> str:
        """How a message calls a column: by its name, else by its number, counted from 1."""
        return f"column {self.names[column]!r}" if self.names else f"column {column + 1}"


def numbered(config: ImuConfig) -> Columns:
    """The columns of a table without names: the six channels in their order."""
    return Columns(tuple(range(6)), _factors(config, [None] * 6))


def named(header: Sequence[str], config: ImuConfig, source: str) -> Columns:
    """The columns of a table whose first row is `header`; other columns than time and the channels are passed over.

    A unit in a name ("acc_x (g)", "gyro_x_dps", "time_ms") counts, else that of the config does.
    Raises MediaError where a channel is missing or there twice.
    """
    found: dict[str, int] = {}
    units: dict[str, str | None] = {}
    times: list[tuple[int, float | None]] = []
    for column, name in enumerate(header):
        role, unit = _role(name)
        if unit is not None and unit not in FACTORS and unit not in _SECONDS:
            raise MediaError(f"{source} has {role} in {unit!r}, column {name!r}; give m/s^2 or g, and rad/s or deg/s")
        if role == "time":
            times.append((column, _SECONDS.get(unit)))
        elif role is not None:
            if role in found:
                raise MediaError(
                    f"{source} has two columns for {role}, {header[found[role]]!r} and {name!r}; leave one of them out"
                )
            found[role], units[role] = column, unit
    missing = [channel for channel in CHANNELS if channel not in found]
    if missing:
        raise MediaError(
            f"{source} has no column for {', '.join(missing)} among {', '.join(map(repr, header))}; "
            "name them ax, ay, az, gx, gy, gz"
        )
    time, seconds = min(times, key=lambda entry: entry[1] is None, default=(None, None))  # one with a unit first
    channels = tuple(found[channel] for channel in CHANNELS)
    return Columns(channels, _factors(config, [units[channel] for channel in CHANNELS]), time, seconds, tuple(header))


def _factors(config: ImuConfig, units: Sequence[str | None]) -> tuple[float, ...]:
    usual = [config.acceleration] * 3 + [config.rotation] * 3
    return tuple(FACTORS[unit or default] for unit, default in zip(units, usual, strict=True))


def _role(name: str) -> tuple[str | None, str | None]:
    """What a column is, "time" or one of CHANNELS, and its unit as far as the name says; None for what is not known."""
    text, _, bracket = re.sub(r"[\[{]", "(", name.strip().lower().replace("°", "deg")).partition("(")
    compact, behind = (re.sub(r"[\W_]", "", part) for part in (text, bracket))
    if text.strip() == "ts":  # no "t_s"
        return "time", _UNIT_OF.get(behind)
    if timed := _TIME.fullmatch(compact):
        return "time", _UNIT_OF.get(behind) or _UNIT_OF.get(timed[1] or timed[2])
    for sensor, stem, units in _SENSORS:
        ending = _spellings(*units)
        if match := re.fullmatch(rf"({stem})([xyz])({ending})?", compact):
            word, axis, spelling = match.groups()
        elif match := re.fullmatch(rf"([xyz])(?:axis)?({stem})({ending})?", compact):
            axis, word, spelling = match.groups()
        else:
            continue
        unit = _UNIT_OF.get(spelling) or _UNIT_OF.get(behind, behind or None)
        return f"{sensor} {axis}", "g" if word == "gf" else unit
    return None, None
