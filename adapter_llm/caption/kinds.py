"""Of what kind an input is: by its suffix, by the name of its column, or because it was said."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..space.files import KEYWORD_OF, SUFFIXES, FoundMedia
from ..words import listed

TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# what is taken from folders and tars, where captions and tables may lie beside the media, unless another is asked for
LOOKED_FOR = ("image", "video", "audio", "point")


@dataclass(frozen=True)
class SourceOptions:
    """How inputs are understood."""

    keywords: Sequence[str] = ("image",)  # what the weights take
    forced: str | None = None  # every input is of this kind
    path_column: str | None = None  # of tables; None: a usual name
    id_column: str | None = None  # None: the path is the id
    prompt_column: str | None = None  # None: the run's prompt
    prompt_suffix: str | None = None  # of a file beside each input that holds its prompt: ".prompt", ".json"
    one_each: bool = False  # there is room for one caption of each: nothing is asked about twice


@dataclass(frozen=True)
class Kinds:
    """Sorts inputs, and counts what it leaves out."""

    options: SourceOptions
    left_out: FoundMedia = field(default_factory=FoundMedia)

    def of_found(self, path: str) -> str | None:
        """Of a file in a folder; None, and counted, if it is of no kind that is wanted."""
        keyword, wanted = self._of_searched(path)
        if keyword is None:
            self.left_out.unknown += 1
        elif not wanted:
            self.left_out.unseen[keyword] += 1
        return keyword if wanted else None

    def of_member(self, name: str) -> str | None:
        """Of a file in a shard, where much beside the media is usual."""
        keyword, wanted = self._of_searched(name)
        return keyword if wanted else None

    def _of_searched(self, path: str) -> tuple[str | None, bool]:
        suffix, forced = suffix_of(path), self.options.forced
        keyword = KEYWORD_OF.get(suffix) if forced is None else forced if suffix in SUFFIXES[forced] else None
        return keyword, keyword in self.options.keywords and (forced is not None or keyword in LOOKED_FOR)

    def of_named(self, path: str, column: str = "", address: bool = False) -> str:
        """Of a file that was asked for by name, perhaps in a table's column. Raises ValueError for a wrong one.

        An `address` whose end tells nothing is taken for a picture's.
        """
        suffix, hint = suffix_of(path), hinted(column)
        keyword = self.options.forced or KEYWORD_OF.get(suffix)
        if self.options.forced is None and hint and (keyword is None or suffix in SUFFIXES[hint]):
            keyword = hint
        if keyword is None and address:
            keyword = "image"
        if keyword is None:
            kinds = "|".join(SUFFIXES)
            raise ValueError(f"the suffix of {path!r} does not tell what it is; say it with --as {kinds}")
        if keyword not in self.options.keywords:
            raise ValueError(
                f"{path!r} is of the kind {keyword}, and these weights take {listed(self.options.keywords)}"
            )
        return keyword

    def tells(self, path: str) -> bool:
        """Whether it is known of what kind a file of that name would be."""
        return self.options.forced is not None or suffix_of(path) in KEYWORD_OF

    def collection(self, path: str) -> str | None:
        """ "table" or "tar" if a file stands for many inputs."""
        name = path.lower()
        if name.endswith(TARS):
            return "tar"
        suffix = suffix_of(path)
        forced = self.options.forced
        return "table" if suffix in TABLES and not (forced and suffix in SUFFIXES[forced]) else None


def hinted(column: str) -> str | None:
    """The kind that a column's name tells, as image_path and Video do."""
    words = column.lower().replace("-", "_").split("_")
    return next((keyword for keyword in SUFFIXES if keyword in words), None)


def suffix_of(path: str) -> str:
    """In small letters, with the dot; of a URL without what follows the question mark."""
    place = urlsplit(path).path if path[:4].lower() == "http" and "://" in path else path
    return os.path.splitext(place)[1].lower()
