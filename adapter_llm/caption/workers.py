"""Several processes, one output: who does which inputs, and how processes that were launched together meet.

An input belongs to a share by the hash of its id, so shares stay what they are when inputs are added or removed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

LONGEST = timedelta(days=20)  # that the first process to finish waits for the last; gloo counts milliseconds in 32 bits
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # what torchrun, and accelerate launch through it, say to a process


@dataclass(frozen=True)
class Share:
    """Number `index`, from 0, of `count` shares of all inputs."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Share:
        """I/N, counted from 1. Raises ValueError."""
        found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
        index, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= index <= count:
            raise ValueError(f"{text!r} is no share; write I/N, counted from 1: 1/4, 2/4, 3/4 and 4/4 are all of four")
        return cls(index - 1, count)

    def __contains__(self, id: str) -> bool:
        if self.count == 1:
            return True
        # names that are no UTF-8 have a hash, too
        digest = hashlib.blake2b(id.encode("utf-8", "backslashreplace"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index

    @property
    def number(self) -> int | None:
        """Of the output's shard that it is written to; None: it is all there is."""
        return None if self.count == 1 else self.index + 1

    def split(self, index: int, count: int) -> Share:
        """A share of this share."""
        return Share(self.index + self.count * index, self.count * count)


WHOLE = Share()


@dataclass(frozen=True)
class Group:
    """Processes that were launched together; this one is number `rank`, and number `local_rank` of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> Group:
        """What the launcher says; one process alone without a launcher. Raises ValueError for nonsense."""
        said = [os.environ.get(name) for name in LAUNCHED]
        if None in said:
            return cls()
        try:
            rank, size, local_rank = map(int, said)
        except ValueError:
            rank, size, local_rank = 0, 0, 0
        if not (0 <= rank < size and local_rank >= 0):
            raise ValueError(f"{', '.join(LAUNCHED)} are {', '.join(said)}, which no launcher says; unset them")
        return cls(rank, size, local_rank)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process where `name` was asked for. Raises ValueError for one GPU for all."""
        if name == "auto" and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
            return "cpu"  # accelerate launch --cpu
        if self.size == 1 or name in ("cpu", "mps"):
            return name
        if name.startswith("cuda:"):
            raise ValueError(f"--device {name} would put {self.size} processes on one GPU; write --device cuda")
        import torch

        count = torch.cuda.device_count()
        if not count:
            return name
        if self.local_rank >= count:
            raise ValueError(f"process {self.local_rank + 1} of this machine finds {count} GPUs; launch so many")
        return f"cuda:{self.local_rank}"

    def __enter__(self) -> Group:
        if self.size > 1:
            import torch.distributed

            # over gloo, wherever the model runs: nothing but a few numbers goes from one process to another
            torch.distributed.init_process_group("gloo", timeout=LONGEST)
        return self

    def __exit__(self, *error: object) -> None:
        if self.size > 1:
            import torch.distributed

            torch.distributed.destroy_process_group()

    def meet(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.barrier()

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The sum over all processes of each number."""
        if self.size == 1:
            return list(numbers)
        import torch

        sums = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(sums)
        return sums.tolist()
