"""Errors of the pipeline and the engine, as what the caller is told. What nobody foresaw goes to the log alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from jinja2 import TemplateError

from ..engine import EngineBusy, EngineClosed
from ..results import NoNumbers
from ..words import one_line
from .errors import ApiError, broken, busy, stopping

log = logging.getLogger(__name__)


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def as_api_error(error: Exception, draining: bool) -> ApiError:
    """An error for the answer. A stranger gets a number, under which the log has its traceback.

    An engine that takes nothing is about to stop if the server is `draining`, else it broke down.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineBusy):
        return busy("too many answers are waiting already")
    if isinstance(error, EngineClosed):
        return stopping() if draining else broken()
    if isinstance(error, NoNumbers):
        log.error("%s", error)  # it is the weights' and the dtype's doing, of which a traceback says nothing
        return ApiError(str(error), status=500, code="no_numbers")
    number = uuid4().hex[:12]
    log.error("request failed, number %s", number, exc_info=error)
    return ApiError(
        f"something went wrong inside the server; its log has the reason under number {number}",
        status=500, code="internal_error",
    )  # fmt: skip


@contextmanager
def mistakes(param: str) -> Iterator[None]:
    """Inside, what the caller can mend becomes an ApiError about `param`.

    That is media that cannot be read, a prompt that is too long, a chat template's refusal.
    """
    try:
        yield
    except ApiError:
        raise
    except TemplateError as error:
        sentence = f"the language model's chat template refuses these messages: {one_line(error)}"
        raise ApiError(sentence, param) from error
    except ValueError as error:
        raise ApiError(one_line(error), param) from error
