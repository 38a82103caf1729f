"""Web servers that never come to an end of their answer, or redirect to where only the user has access."""

import http.server
import socket
import threading
import time
from contextlib import contextmanager

import aiohttp
import numpy as np
import pytest
import zarr
from piece_files import IMAGE, write_n5
from volume_checks import fails

from evenslice._core import errors
from evenslice.volumes.opening import open_volume
from evenslice.volumes.read import web_answers

HEAD = b"HTTP/1.1 200 OK\r\n"
DRIPS = {
    "a head": (HEAD + b"X: ", b"a"),
    "heads that announce one": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a note on a part of the body": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;x=", b"a"),
    "a body": (HEAD + b"Content-Length: 100000\r\n\r\n", b"a"),
}


@pytest.fixture
def dripping():
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
@pytest.mark.parametrize(("start", "drop"), DRIPS.values(), ids=DRIPS)
def test_an_answer_that_drips_is_given_up(dripping, name, start, drop, monkeypatch):
    monkeypatch.setattr(web_answers, "READ_SECONDS", 0.5)
    started = time.monotonic()
    fails(
        f"{dripping(start, drop)}/{name}",
        r"\(ClientError: the server sends (nothing of its answer in 1.0 s|less than 1,024 bytes a second)",
    )
    assert time.monotonic() - started < 20  # once: such a server is not asked again


# Redirects


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
def served(host, folder, target=None):
    kind = type("Here", (Handler,), {"target": target})
    server = http.server.ThreadingHTTPServer(
        (host, 0), lambda *arguments: kind(*arguments, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


PRIVATE, PUBLIC = "127.0.0.1", "127.0.0.2"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with volumes; of this machine's addresses, one counts as public."""
    monkeypatch.setattr(web_answers, "_is_public", lambda address: address == PUBLIC)
    zarr.create_array(tmp_path / "a.zarr", data=IMAGE, chunks=(4, 16, 16))
    write_n5(tmp_path / "b.n5", IMAGE)
    return tmp_path


@pytest.mark.parametrize("name", ["a.zarr", "b.n5"])
@pytest.mark.parametrize(("first", "second"), [(PRIVATE, PRIVATE), (PRIVATE, PUBLIC), (PUBLIC, PUBLIC)])
def test_redirects_are_followed(folder, name, first, second):
    with served(second, folder) as target, served(first, folder, target) as address:
        assert np.array_equal(open_volume(f"{address}/{name}")[5], IMAGE[5])


@pytest.mark.attack
@pytest.mark.parametrize("name", ["a.zarr", "b.n5"])
@pytest.mark.parametrize("host", [PRIVATE, "localhost"])
def test_no_redirect_leads_from_a_public_to_a_private_address(folder, name, host, monkeypatch):
    asked = []
    monkeypatch.setattr(Handler, "send_head", lambda self: asked.append(self.path))
    with served(PRIVATE, folder) as target:
        # By its name, the host could be anywhere: what counts is where the connection leads.
        elsewhere = target.replace(PRIVATE, host)
        with served(PUBLIC, folder, elsewhere) as middle, served(PUBLIC, folder, middle) as address:
            fails(
                f"{address}/{name}",
                "the server redirects from a public to a private address, which is not followed",
            )
    assert not asked


@pytest.mark.attack
def test_no_redirect_leads_from_an_encrypted_connection_to_one_that_is_not():
    exchange = web_answers._Exchange(0.0)
    exchange.require_no_way_in(encrypted=False, public=True)
    exchange.require_no_way_in(encrypted=True, public=True)
    with pytest.raises(
        aiohttp.ClientError, match="redirects from https:// to http://, which is not followed"
    ):
        exchange.require_no_way_in(encrypted=False, public=True)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
    ],
)
def test_which_addresses_are_public(address, expected):
    assert web_answers._is_public(address) is expected


def test_no_error_repeats_where_a_server_redirects_to(folder, monkeypatch):
    monkeypatch.setattr(Handler, "send_head", lambda self: self.send_error(400))
    with served(PRIVATE, folder) as target, served(PRIVATE, folder, target) as address:
        with pytest.raises(errors.VolumeError, match="400") as caught:
            open_volume(f"{address}/a.zarr")
        assert "s3cret" not in f"{caught.value.__cause__} {caught.value.__cause__!r}"
