"""Web servers whose answers are too long, never end or never begin, and redirects."""

import http.server
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import requests
import zarr
from piece_files import IMAGE, write_n5
from volume_checks import fails

from evenslice._core import errors
from evenslice.volumes import open_volume
from evenslice.volumes.read import remote

HEAD = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "too long": (
        HEAD + b"Content-Length: 1125899906842624\r\n\r\n",
        b"a",
        "announces 1,125,899,906,842,624 bytes",
    ),
    "silent": (b"", b"", "timed out"),
    "a silent body": (HEAD + b"Content-Length: 100\r\n\r\n", b"", "timed out"),
    "dripping": (HEAD + b"Content-Length: 100000\r\n\r\n", b"a", "takes more than 1 s"),
    "without end": (HEAD + b"\r\n", b"a" * 2**20, "sends more than the 8,388,608 bytes"),
}


@pytest.fixture
def answering():
    """Return a function that starts a server which begins all its answers alike and then repeats a drop without end."""
    stopped, listening, threads = threading.Event(), [], []

    def answer(connection, start, drop):
        with connection:
            try:
                connection.recv(2**16)
                connection.sendall(start)
                while not stopped.wait(0.05):
                    connection.sendall(drop)
            except OSError:
                pass

    def accept(server, start, drop):
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=answer, args=(connection, start, drop)))
            threads[-1].start()

    def serve(start, drop):
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)
        threading.Thread(target=accept, args=(server, start, drop)).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield serve
    stopped.set()
    for server in listening:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
    for thread in threads:
        thread.join()


@pytest.mark.attack
@pytest.mark.parametrize("name", ["a.zarr", "b.n5"])
@pytest.mark.parametrize(("start", "drop", "pattern"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_has_a_limited_size_and_time(answering, name, start, drop, pattern, monkeypatch):
    monkeypatch.setattr(remote, "READ_SECONDS", 0.5)
    monkeypatch.setattr(remote, "TOTAL_SECONDS", 1)
    started = time.monotonic()
    fails(f"{answering(start, drop)}/{name}", pattern)
    assert time.monotonic() - started < 20  # such a server is not asked again


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve a folder, or redirect to the same path on another server."""

    target = None

    def do_GET(self):
        if self.target is None:
            super().do_GET()
            return
        self.send_response(302)
        self.send_header("Location", f"{self.target}{self.path}?signature=s3cret")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def served(folder, target=None):
    kind = type("Here", (Handler,), {"target": target})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: kind(*arguments, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("name", ["a.zarr", "b.n5"])
def test_redirects_are_followed(tmp_path, name):
    zarr.create_array(tmp_path / "a.zarr", data=IMAGE, chunks=(4, 16, 16))
    write_n5(tmp_path / "b.n5", IMAGE)
    with served(tmp_path) as target, served(tmp_path, target) as address:
        assert np.array_equal(open_volume(f"{address}/{name}")[5], IMAGE[5])


@pytest.mark.attack
def test_no_redirect_leads_from_an_encrypted_connection_to_one_that_is_not():
    answer = requests.Response()
    answer.url, answer.status_code = "https://host/a", 200
    remote._check_answer(answer, "https://host/b")
    answer.url = "http://host/a"
    with pytest.raises(OSError, match="redirects from https:// to http://"):
        remote._check_answer(answer, "https://host/a")


def test_no_error_repeats_where_a_server_redirects_to(tmp_path, monkeypatch):
    monkeypatch.setattr(Handler, "send_head", lambda self: self.send_error(400))
    with served(tmp_path) as target, served(tmp_path, target) as address:
        with pytest.raises(errors.VolumeError, match="400") as caught:
            open_volume(f"{address}/a.zarr")
        assert "s3cret" not in f"{caught.value.__cause__} {caught.value.__cause__!r}"
