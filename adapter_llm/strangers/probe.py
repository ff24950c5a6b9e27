"""A look into a film or recording by a process of its own: `python probe.py PATH KIND MEMORY SECONDS < FILE`.

The library that reads films trusts what their headers claim: an MP4 of a kilobyte makes it fill gigabytes with the
places of frames that are not there. Here that costs a process that is ended. What passes is opened again by the
loaders, for whom it then costs no more than it did here. Nothing is decoded but what opening needs.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

TOO_MUCH = 3  # exit code of a process that took more memory or time than it may
STATUS = Path("/proc/self/status")
INTERVAL = 0.005  # seconds between looks at the memory


def guard(memory: int, seconds: int) -> None:
    """End this process when it takes more; where the system cannot tell, its parent's clock remains.

    A limit on the address space would not do: libav takes an allocation that fails for an empty list, and goes on.
    """
    if STATUS.exists():
        threading.Thread(target=_watch, args=(memory,), daemon=True).start()
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _watch(memory: int) -> None:
    while True:
        if _peak() > memory:
            os._exit(TOO_MUCH)
        time.sleep(INTERVAL)


def _peak() -> int:
    """Bytes that this process has had in memory at most."""
    with STATUS.open(encoding="ascii", errors="replace") as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")), 0)


def look(data: bytes, kind: str) -> dict[str, Any]:
    """What a file holds: {"error": sentence}, or its seconds and the size of a film's frames."""
    import io

    import av

    from imagebind_encoder.media.container import container_of
    from imagebind_encoder.media.source import MediaError, describe

    found = {"seconds": 0.0, "width": 0, "height": 0}
    try:
        with container_of(io.BytesIO(data), describe(data), kind) as container:
            for stream in container.streams.video:
                if kind == "video" and stream.codec_context is not None:
                    found["width"] = max(found["width"], stream.codec_context.width)
                    found["height"] = max(found["height"], stream.codec_context.height)
            start = (container.start_time or 0) / 1e6
            try:
                for packet in container.demux():
                    if packet.pts is not None and packet.size:
                        end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - start
                        found["seconds"] = max(found["seconds"], end)
            except av.FFmpegError:
                pass  # the loader says what is wrong, and where
    except MediaError as error:
        return {"error": str(error)}
    return found


def main() -> None:
    """PATH is where packages are imported from, a JSON list."""
    path, kind, memory, seconds = sys.argv[1:]
    guard(int(memory), int(seconds))
    sys.path[:] = [str(Path(__file__).parents[2]), *json.loads(path)]
    data = sys.stdin.buffer.read()
    try:
        found = look(data, kind)
    except MemoryError:
        os._exit(TOO_MUCH)
    print(json.dumps(found))
    # A peak between two looks counts, too.
    if STATUS.exists() and _peak() > int(memory):
        os._exit(TOO_MUCH)


if __name__ == "__main__":
    main()
