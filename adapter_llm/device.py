"""Where the model runs and in what number format. A GPU that cannot be used is one sentence, never a crash."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is CUDA if it works, else Apple's GPU, else the CPU.

    CUDA or mps that is there but does not work (its driver is too old or broken, this torch is not made for
    it), or was asked for and is not there, is one sentence on stderr, and the CPU. A machine without a GPU is
    no problem to speak of. Raises ValueError for a name that is not a device.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        raise ValueError(f"the device is {name!r}; it must be one of auto, cpu, cuda, mps, or one GPU as cuda:1")
    kind = name.partition(":")[0]
    if kind in ("auto", "cuda"):
        device = torch.device("cuda" if name == "auto" else name)
        problem = _cuda_problem(device)
        if problem is None:
            return device
        if problem:
            _say(f"{problem}; going on with the CPU")
            return torch.device("cpu")
        if kind == "cuda":
            _say(f"no NVIDIA GPU was found by torch {torch.__version__}, and cuda needs one; going on with the CPU")
            return torch.device("cpu")
    if kind in ("auto", "mps"):
        if torch.backends.mps.is_available() and _allocation_problem(torch.device("mps")) is None:
            return torch.device("mps")
        if kind == "mps":
            _say("no usable Apple GPU was found, and mps needs one with macOS 14 or later; going on with the CPU")
    return torch.device("cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The floating point type called `name`; "auto" is the fastest one that `device` computes well in.

    Raises ValueError for float16 on the CPU: it has no fast float16 arithmetic and overflows where bfloat16
    does not.
    """
    if name not in ("auto", *DTYPES):
        raise ValueError(f"the dtype is {name!r}; it must be one of auto, {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise ValueError("float16 is slower than float32 on the CPU, many times; choose bfloat16, float32 or auto")
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32


def _cuda_problem(device: torch.device) -> str | None:
    """None if CUDA works, "" if there is no GPU to speak of, else what was found and what is needed."""
    if torch.version.cuda is None and torch.version.hip is None:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch gives its reason as a warning, but only to the first who asks
        try:
            if not torch.cuda.is_available():
                torch.cuda.init()  # raises the same reason every time
        except Exception as error:
            reason = str(error)
            return "" if any(absent in reason for absent in NO_GPU) else _explain(reason)
        # a device that torch lists may still have no kernel in this build, or no memory left
        reason = _allocation_problem(device)
    return None if reason is None else _explain(reason)


NO_GPU = ("Found no NVIDIA driver", "No CUDA GPUs are available", "No HIP GPUs are available")


def _allocation_problem(device: torch.device) -> str | None:
    try:
        float(torch.ones(8, device=device).mul(2).sum())
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def _explain(reason: str) -> str:
    """What torch says about CUDA in paragraphs, as what was found and what is needed."""
    wanted = f"torch {torch.__version__} needs one for CUDA {torch.version.cuda or torch.version.hip} or newer"
    reason = " ".join(reason.split())
    if old := re.search(r"found version (\d+)", reason):
        number = int(old[1])  # 12040 is 12.4
        return f"the NVIDIA driver is too old: it is for CUDA {number // 1000}.{number % 1000 // 10} and {wanted}"
    if "no kernel image" in reason:
        return f"torch {torch.__version__} holds no code for this GPU, which is too old or too new for it"
    if "out of memory" in reason:
        return "the GPU has no memory left, and needs some to be freed by other programs"
    # advice about debugging, and how it was called, help nobody here
    advice = r"^.*?(?=Error \d+: )|^CUDA error: |( - this may be| Setting the avail| CUDA kernel err).*"
    reason = re.sub(advice, "", reason)
    return f"the GPU or its driver does not work ({reason[:160]}): reinstall the driver and restart; {wanted}"


def _cpu_has_bfloat16() -> bool:
    # the names are private and have moved before; without them float32 is right everywhere
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        try:
            if getattr(torch.cpu, check)():
                return True
        except (AttributeError, RuntimeError):
            continue
    return False


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw from this seed inside, and leave the program's own random numbers as they were."""
    if seed is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
