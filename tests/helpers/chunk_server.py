"""A Zarr volume of any size at an address on this machine, whose chunks are made when they are asked for."""

import http.server
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

DELAY = 0.02  # seconds that an answer takes


@dataclass
class ChunkServer:
    """A volume (z, y, x) of 8-bit noise whose chunks all differ, and a log of what was asked for.

    Attributes:
        shape: of the volume.
        chunk: shape of its chunks.
        delay: seconds until the answer to a request for a chunk.
        asked: the index of each chunk that was asked for.
        at_once: the most requests that were being answered at a time.
    """

    shape: tuple[int, int, int]
    chunk: tuple[int, int, int]
    delay: float = DELAY
    address: str = ""
    asked: list[tuple[int, ...]] = field(default_factory=list)
    at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def metadata(self):
        """Return the content of ``zarr.json``."""
        regular = {"name": "regular", "configuration": {"chunk_shape": self.chunk}}
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": self.shape,
            "data_type": "uint8",
            "chunk_grid": regular,
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "bytes"}],
            "attributes": {},
        }

    def voxels(self, index):
        """Return the voxels of a chunk."""
        return np.random.default_rng(list(index)).integers(0, 256, self.chunk, dtype=np.uint8)

    def content(self, path):
        """Return the bytes at an address; None if there are none."""
        name = path.partition(".zarr/")[2]
        if name == "zarr.json":
            return json.dumps(self.metadata()).encode()
        if not name.startswith("c/"):
            return None
        index = tuple(map(int, name.split("/")[1:]))
        with self._lock:
            self.asked.append(index)
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        time.sleep(self.delay)
        with self._lock:
            self._now -= 1
        return self.voxels(index).tobytes()


@contextmanager
def serving(*, shape, chunk, delay=DELAY):
    """Serve a volume for the length of a block; yield its server."""
    server = ChunkServer(shape, chunk, delay)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            content = server.content(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_):  # a client that was interrupted
            pass

    listening = Server(("127.0.0.1", 0), Handler)
    server.address = f"http://127.0.0.1:{listening.server_port}/noise.zarr"
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
