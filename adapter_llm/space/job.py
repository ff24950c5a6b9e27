"""Many files to one output: what is done is kept, what is bad is named, what is left is encoded."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from torch.nn import functional as F

from ..processing import KEYWORDS, InputOptions
from .arithmetic import vector_of
from .embedder import Embedder, EncoderFolder, digest, features_of
from .encode_files import Encoded, encode_files
from .files import FoundMedia, MediaFile
from .formats import Format
from .journal import Journal, only_writer, seed
from .records import OutputError, Record

FORMAT = 1  # of what the hash of a job covers


@dataclass(frozen=True)
class EmbedOptions:
    """How inputs become vectors, and how the work is done."""

    normalized: bool = True  # unit length; else as long as the encoder makes them, with the modality's logit scale
    tokens: bool = False  # every class token's feature, not their mean
    inputs: InputOptions = field(default_factory=InputOptions)
    batch_size: int = 16  # clips that are encoded together
    device: str = "auto"
    dtype: str = "float32"
    resume: bool = True  # keep what an earlier run has finished
    on_error: str = "skip"  # leave a bad input out, or "fail": stop at the first

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError("batch_size must be at least 1")
        if self.on_error not in ("skip", "fail"):
            raise ValueError(f"on_error must be skip or fail, not {self.on_error!r}")

    def config_hash(self, encoder: EncoderFolder | Embedder) -> str:
        """Of all that the vectors depend on, beside the files."""
        dtype = str(encoder.dtype).removeprefix("torch.") if isinstance(encoder, Embedder) else self.dtype
        how = (dtype, self.normalized, self.tokens, vars(self.inputs))
        return digest(FORMAT, encoder.fingerprint, encoder.config, how)

    def vectors(self, encoded: Encoded) -> Record:
        """Features (R, N, E) as they are kept: (R, E), or (R, N, E) with `tokens`."""
        found = encoded.features
        if self.tokens:
            found = F.normalize(found, dim=-1) if self.normalized else found
        else:
            found = vector_of(found) if self.normalized else found.mean(dim=1)
        return Record(encoded.file, encoded.spans, found.numpy())


@dataclass(frozen=True)
class Outcome:
    """How a job ended: inputs that were encoded now, that were there already, and that could not be."""

    encoded: int
    kept: int
    failed: int

    def __str__(self) -> str:
        kept = f", {self.kept} were there already" if self.kept else ""
        failed = f", {self.failed} could not be read" if self.failed else ""
        return f"{self.encoded + self.kept + self.failed} inputs: {self.encoded} encoded{kept}{failed}"


def run_job(
    encoder: EncoderFolder | Embedder,
    found: FoundMedia,
    output: str | Path,
    form: Format,
    options: EmbedOptions = EmbedOptions(),
) -> Outcome:
    """Write the vectors of all files that were found, each once, in their order.

    An encoder that is only found is loaded if there is work for it, and no more of its trunks than there are kinds.

    Finished inputs are in the journal beside the output, so a job that was killed goes on where it was; an output of
    the same kind is gone on from likewise. A file whose size or time has changed is done again. Inputs that cannot
    be read are named on stderr and left out, and tried again by the next run. Raises OutputError if the output is
    not ours to replace, and, with nothing written, if no input is left or `on_error` says so.
    """
    if not found.files and not found.problems:
        raise OutputError("there is nothing to encode; give files, or folders with files of the kinds that are read")
    output = Path(output).expanduser()
    kinds = {KEYWORDS[file.keyword] for file in found.files}
    form.check({features_of(encoder.config, kind) for kind in kinds} if options.tokens else {1})
    config_hash, resume = options.config_hash(encoder), options.resume and bool(encoder.fingerprint)
    with only_writer(output):
        journal_path = output.with_name(f"{output.name}.journal")
        complete = _take_up(output, journal_path, form, config_hash, found.files, resume)
        if complete and not found.problems:
            return Outcome(0, len(found.files), 0)
        with closing(Journal(journal_path, config_hash)) as journal:
            kept = sum(file in journal for file in found.files)
            failed = _encode_missing(encoder, found, journal, options)
            records = journal.records(found.files)
            if len(records):
                form.write(output, records, config_hash)
        journal_path.unlink()
    if not len(records):
        raise OutputError(f"none of the {failed} inputs can be read, so {output} is not written")
    return Outcome(len(records) - kept, kept, failed)


def _take_up(
    output: Path, journal: Path, form: Format, config_hash: str, files: list[MediaFile], resume: bool
) -> bool:
    """Have a journal begin with a finished output, if it can; True if that output is all that is wanted."""
    if not output.exists() and not output.is_symlink():
        if not resume:
            journal.unlink(missing_ok=True)
        return False
    made, records = form.read(output)  # refuses what is not ours, whatever else there is
    if not resume:
        journal.unlink(missing_ok=True)
    if not resume or made != config_hash or journal.exists():
        return False
    try:
        if [record.file for record in records] == files:
            return True
        seed(journal, config_hash, form.read(output)[1])
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{output} is damaged; remove it, or give another --output") from error
    return False


def _encode_missing(
    encoder: EncoderFolder | Embedder, found: FoundMedia, journal: Journal, options: EmbedOptions
) -> int:
    """Encode what the journal lacks; how many inputs could not be."""
    from tqdm import tqdm

    def report(problem: str) -> None:
        if options.on_error == "fail":
            raise OutputError(f"{problem}; with on-error fail nothing more is done")
        tqdm.write(f"left out: {problem}", file=sys.stderr)

    failed = len(found.problems)
    for problem in found.problems:
        report(problem)
    missing = [file for file in found.files if file not in journal]
    if missing and isinstance(encoder, EncoderFolder):
        encoder = encoder.load(options.device, options.dtype, {KEYWORDS[file.keyword] for file in missing})
    done = len(found.files) - len(missing)
    with (
        # none where nobody looks
        tqdm(total=len(found.files), initial=done, unit=" inputs", file=sys.stderr, disable=None) as bar,
        closing(encode_files(encoder, missing, options.inputs, options.batch_size)) as results,
    ):
        for encoded in results:
            if encoded.error is None:
                journal.add(options.vectors(encoded))
            else:
                failed += 1
                report(encoded.error)
            bar.update()
    return failed
