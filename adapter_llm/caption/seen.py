"""Each input once: which were there before, and what a file is called that is asked about more than once."""

from __future__ import annotations

import hashlib

from .rows import KEY_BYTES


class Seen:
    """Digests of inputs. A file with the same prompt is the same input; with other prompts it is "x", "x#2", "x#3"."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self._repeated: dict[bytes, int] = {}

    def id_for(self, path: str, same: str, prompt: str | None) -> str | None:
        """The id of an input; None if it was there before. `same` is what all names of a file have in common."""
        plain = digest(same)
        if prompt is None:
            if plain in self._known:
                return None
            before = digest(same, "") in self._known
            self._known.add(plain)
        else:
            asked, prompted = digest(same, "prompt", prompt), digest(same, "")
            if asked in self._known:
                return None
            before = plain in self._known or prompted in self._known
            self._known |= {asked, prompted}
        if not before:
            return path
        number = self._repeated[plain] = self._repeated.get(plain, 1) + 1
        return f"{path}#{number}"

    def first(self, id: str, *rest: str | None) -> bool | None:
        """Whether an id that a table gives is a new one; None if it was there with another `rest`."""
        named, whole = digest("id", id), digest("id", id, repr(rest))
        if whole in self._known:
            return False
        if named in self._known:
            return None
        self._known |= {named, whole}
        return True


def digest(*words: str) -> bytes:
    """Names that are no UTF-8 keep their bytes."""
    text = "\0".join(words).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=KEY_BYTES).digest()
