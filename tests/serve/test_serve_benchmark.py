"""The load benchmark: a server that says much is not held up by a reader that does not read."""

import sys
from importlib import util
from pathlib import Path

from serving import until

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "server_load.py"
CHATTER = """
import sys
print("loading", file=sys.stderr)
print("serving tiny at http://127.0.0.1:9/v1; Ctrl-C ends it", file=sys.stderr, flush=True)
print("a traceback " * 50_000, file=sys.stderr, flush=True)
"""


def test_a_server_that_says_much(capfd):
    spec = util.spec_from_file_location("server_load", SCRIPT)
    benchmark = util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    server, url = benchmark.start([sys.executable, "-c", CHATTER])
    try:
        assert url == "http://127.0.0.1:9" and server.wait(10) == 0
    finally:
        server.kill()
        server.wait()
    assert until(lambda: server.stderr.closed), "whoever passes it on closes it at the end"
    assert capfd.readouterr().err.startswith("loading")
