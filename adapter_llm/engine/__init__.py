"""One model, many callers: see engine.Engine."""

from .answer import Answer, Event, Piece
from .engine import Engine, EngineBusy, EngineClosed, EngineCounts

__all__ = ["Answer", "Engine", "EngineBusy", "EngineClosed", "EngineCounts", "Event", "Piece"]
