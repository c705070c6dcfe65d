"""A broken or hostile source costs one line, and no more time, disk or memory than is stated; the next one is asked.

What test_data.py promises of damage, links, devices and paths in archives, and of servers that cut, refuse or say a
wrong length, is not repeated here; a few of its tests run again, through the opener.
"""

import base64
import errno
import gzip
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest
import test_data
from test_data import (
    OFFICIAL,
    Server,
    answer,
    special,
    tar_gz,
    toy_gz,
    toy_plain,
    toy_tar,
    whole_or_range,
    write,
)

from ffrepro import cli, data, sources
from ffrepro.errors import UserError
from pipelines import prepare

server, make_toy, no_proxy, toy, online = (
    test_data.server,
    test_data.make_toy,
    test_data.no_proxy,
    test_data.toy,
    test_data.online,
)
test_a_cut_download_is_resumed = test_data.test_a_download_that_was_cut_is_resumed_where_it_stopped
test_a_cut_unpacked_file_is_resumed = test_data.test_an_unpacked_file_that_was_cut_is_resumed_where_it_stopped
test_a_server_that_ignores_range_starts_over = test_data.test_a_server_that_ignores_range_starts_over
test_a_whole_download_is_not_sent_again = test_data.test_a_whole_download_that_was_not_yet_unpacked_is_not_sent_again
test_a_refusal_is_named_by_its_status = test_data.test_a_servers_refusal_is_named_by_its_status
test_misbehaviour_is_one_line = test_data.test_a_servers_misbehaviour_is_one_line
test_more_than_was_said_is_refused = test_data.test_more_than_the_length_that_was_said_is_refused
test_only_wanted_members_are_written = test_data.test_only_the_wanted_members_are_written_wherever_others_point

MIB = 1 << 20


@pytest.fixture(autouse=True)
def bounded(monkeypatch):
    """The toys' `data.fetch` is `sources.fetch`, and both hooks of it are gone afterwards."""
    hooks = getattr(urllib.request, "_opener", None), data._copy, data._unpack
    monkeypatch.setattr(test_data, "data", SimpleNamespace(**{**vars(data), "fetch": sources.fetch}))
    yield
    assert (getattr(urllib.request, "_opener", None), data._copy, data._unpack) == hooks


def test_two_processes_fetch_into_one_folder_one_after_the_other(make_toy, tmp_path):
    toy = make_toy(*toy_plain())
    write(tmp_path / "mirror", toy.mirrored("unpacked"))
    toy.root.mkdir()
    holder = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(); input()"
    command = [sys.executable, "-c", holder, toy.root]
    said, first = [], subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    first.stdout.readline()  # it has the lock

    def say(line):
        said.append((line, list(toy.root.iterdir())))
        first.kill()  # the kernel gives back what it held

    try:
        sources.fetch("toy", toy.root, mirror=str(tmp_path / "mirror"), say=say)
    finally:
        first.kill()
        first.communicate()
    assert said[0] == (f"{toy.root}: waiting for another process that fetches into this folder", [])
    assert test_data.files(toy.root) == toy.contents


@pytest.fixture
def one_mib(monkeypatch):
    monkeypatch.setattr(sources, "LARGEST", MIB)
    monkeypatch.setattr(sources, "WORTH", MIB)  # one connection a call
    monkeypatch.setattr(data, "CHUNK", MIB // 16)  # small beside it, as in earnest


@pytest.fixture
def other_server():
    server = Server()
    yield server
    server.close()


def left(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def head(handler, status=200, **headers):
    handler.send_response(status)
    for key, value in headers.items():
        handler.send_header(key.replace("_", "-"), value)
    handler.end_headers()


def until_gone(handler):
    """Wait until the client hangs up, for 10 s at the most."""
    handler.connection.settimeout(10)
    with suppress(OSError):
        handler.connection.recv(1)


# --- more than there can be ------------------------------------------------------------------------------------------


def without_end(handler, _):
    head(handler)
    with suppress(ConnectionError):
        for _ in range(1000):  # 62 MiB: a test that fails ends too
            handler.wfile.write(bytes(1 << 16))


def without_end_in_chunks(handler, _):
    head(handler, Transfer_Encoding="chunked")
    with suppress(ConnectionError):
        for _ in range(1000):
            handler.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")


def a_tebibyte(handler, _):
    head(handler, Content_Length=1 << 40)
    handler.wfile.write(b"x" * 100)
    until_gone(handler)


def a_chunk_frame_without_end(handler, _):
    """The length of a chunk may have remarks, of which only each line's length is bounded by http.client."""
    head(handler, Transfer_Encoding="chunked")
    with suppress(ConnectionError):
        for _ in range(1000):
            handler.wfile.write(b"1;" + b"x" * 60_000 + b"\r\n\0\r\n")


def headers_without_end(handler, _):
    """http.client skips "100 Continue" as often as it comes."""
    with suppress(ConnectionError):
        for _ in range(1000):
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 2500)


@pytest.mark.parametrize("way", [headers_without_end, a_chunk_frame_without_end])
def test_a_server_that_sends_no_content_without_end_is_one_line(online, server, one_mib, way):
    server.serve(OFFICIAL, online.mirrored("packed"), way)
    line = online.refused()
    assert f"{online.remote.url}: " in line
    assert "more than 1 MiB" in line
    assert sum(path.stat().st_size for path in left(online.root)) < 100


@pytest.mark.parametrize("way", [without_end, without_end_in_chunks, a_tebibyte])
def test_a_server_that_sends_too_much_is_one_line_and_leaves_nothing(online, server, one_mib, way):
    server.serve(OFFICIAL, online.mirrored("packed"), way)
    line = online.refused()
    assert f"{online.remote.url}: " in line
    assert "more than 1 MiB" in line
    assert left(online.root) == []
    server.ways.clear()
    assert online.fetch() == []
    assert server.requests[-1][1] is None  # from the start


@pytest.mark.parametrize("form", ["unpacked", "packed"])
def test_a_mirror_that_sends_too_much_is_made_up_for_by_the_official_source(online, server, one_mib, form):
    server.serve("mirror", online.mirrored(form), without_end)
    server.serve(OFFICIAL, online.mirrored("packed"))
    line = online.fetch(mirror=f"{server.url}/mirror")[0]
    assert line.startswith(f"{server.url}/mirror/")
    assert "more than 1 MiB" in line
    assert server.requests[-1] == (f"{OFFICIAL}/{online.remote.name}", None)


def test_a_download_does_not_grow_beyond_the_bound_call_by_call(online, server, one_mib):
    def ever_more(handler, _):
        """Cut after 400 KiB, and at every further call another 400 KiB."""
        head(handler, 206 if handler.headers["Range"] else 200, Content_Length=500_000)
        handler.wfile.write(bytes(400 << 10))

    server.serve(OFFICIAL, online.mirrored("packed"), ever_more)
    lines = [online.refused() for _ in range(3)]
    assert ["broke off" in line for line in lines] == [True, True, False]
    assert "more than 1 MiB" in lines[2]
    assert left(online.root) == []


@pytest.mark.parametrize("length", ["9" * 5000, "-5", "many", "0x10"])
def test_a_length_that_is_none_is_ignored(online, server, length):
    def way(handler, content):
        head(handler, Content_Length=length)
        handler.wfile.write(content)

    server.serve(OFFICIAL, online.mirrored("packed"), way)
    assert online.fetch() == []


def test_a_file_of_a_folder_that_has_no_end_is_one_line(toy, tmp_path, one_mib):
    (tmp_path / "mirror" / toy.remote.name).parent.mkdir(parents=True)
    (tmp_path / "mirror" / toy.remote.name).symlink_to("/dev/zero")
    assert "more than 1 MiB" in toy.refused(mirror=str(tmp_path / "mirror"), offline=True)
    assert left(toy.root) == []


# --- archives of more than there can be ------------------------------------------------------------------------------

ZEROS = bytes(64 * MIB)


def gz_bomb():
    return toy_gz, gzip.compress(ZEROS)


def gz_bomb_in_members():
    return toy_gz, gzip.compress(bytes(MIB)) * 64


def tar_bomb():
    return toy_tar, tar_gz([("toy-py/batch_1", ZEROS)])


def tar_bomb_beside():
    _, contents, _ = toy_tar()
    return toy_tar, tar_gz([("elsewhere", ZEROS), *contents.items()])


def header_bomb():
    """A name of 64 MiB, which tarfile reads into memory."""
    info = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = len(ZEROS)
    return toy_tar, gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + ZEROS)


def sparse_bomb():
    """A file that is one hole of a tebibyte: the archive itself unpacks to a few KiB."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("toy-py/batch_1")
        info.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,0"}
        tar.addfile(info)
    return toy_tar, packed.getvalue()


BOMBS = [gz_bomb, gz_bomb_in_members, tar_bomb, tar_bomb_beside, header_bomb, sparse_bomb]


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_one_line_that_names_its_source_and_leaves_nothing(make_toy, server, one_mib, monkeypatch, bomb):
    kind, packed = bomb()
    monkeypatch.setattr(data, "_write", lambda *_: pytest.fail("unpacked to the disk"))
    toy = make_toy(*kind())
    server.serve("mirror", {toy.remote.name: packed})
    line = toy.refused(mirror=f"{server.url}/mirror", offline=True)
    reason = f"({len(packed)} bytes): it unpacks to more than 1 MiB, and no file of a data set is that large; removed"
    assert f"{server.url}/mirror/{toy.remote.name}: not the archive it should be {reason}" in line
    assert left(toy.root) == []


@pytest.mark.parametrize("bomb", [gz_bomb, tar_bomb])
def test_a_bomb_of_a_mirror_is_made_up_for_by_the_official_source(make_toy, server, tmp_path, one_mib, bomb):
    kind, packed = bomb()
    name, contents, sound = kind()
    toy = make_toy(name, contents, sound, f"{server.url}/{OFFICIAL}/{name}")
    write(tmp_path / "mirror", {name: packed})
    server.serve(OFFICIAL, {name: sound})
    (line,) = toy.fetch(mirror=str(tmp_path / "mirror"))
    assert "it unpacks to more than 1 MiB" in line
    assert (tmp_path / "mirror" / name).read_bytes() == packed


@pytest.mark.parametrize("spare", [0, -1])
def test_the_bound_itself_is_allowed(online, server, monkeypatch, spare):
    unpacked = gzip.decompress(online.packed) if online.remote.name.endswith(".gz") else b""
    monkeypatch.setattr(sources, "LARGEST", max(len(online.packed), len(unpacked)) + spare)
    server.serve(OFFICIAL, online.mirrored("packed"))
    if spare:
        assert "more than" in online.refused()
    else:
        assert online.fetch() == []


def test_the_bounds_leave_room_for_the_largest_file_there_is():
    assert sources.LARGEST > 2 * 182_040_794  # SVHN's train_32x32.mat


@pytest.mark.parametrize("size", [1 << 50, 1 << 70])
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE], ids=["name", "pax"])
def test_a_header_of_an_impossible_size_is_one_line(make_toy, server, kind, size):
    """Memory for it cannot be had."""
    info = special("x", kind)
    info.size = size
    toy = make_toy(*toy_tar())
    server.serve("mirror", {toy.remote.name: gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))})
    assert "a size in it is none that can be; removed" in toy.refused(mirror=f"{server.url}/mirror", offline=True)
    server.serve("mirror", toy.mirrored("packed"))
    assert toy.fetch(mirror=f"{server.url}/mirror", offline=True)[1:] == []


# --- slower than there can be ----------------------------------------------------------------------------------------


def trickle(handler, content, size=1):
    """For 5 s at the most: a test that fails ends too."""
    with suppress(ConnectionError):
        for start in range(0, 250 * size, size):
            handler.wfile.write(content[start : start + size])
            time.sleep(0.02)


def trickles(handler, content):
    head(handler, Content_Length=len(content))
    trickle(handler, content)


def trickles_headers(handler, _):
    trickle(handler, b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000)


def trickles_a_chunks_size(handler, _):
    head(handler, Transfer_Encoding="chunked")
    trickle(handler, b"5; " + b"x" * 1000)


@pytest.mark.parametrize("way", [trickles, trickles_headers, trickles_a_chunks_size])
def test_a_server_that_trickles_is_one_line_and_the_next_call_goes_on(online, server, monkeypatch, way):
    """No single wait is long, so that the socket's timeout never ends it."""
    monkeypatch.setattr(sources, "PATIENCE", 0.6)
    server.serve(OFFICIAL, online.mirrored("packed"), way)
    line = online.refused()
    assert f"{online.remote.url}: " in line
    assert "less than 1024 bytes a second came for 0.6 s" in line
    kept = sum(path.stat().st_size for path in left(online.root))
    server.ways.clear()
    assert online.fetch() == []
    assert server.requests[-1][1] == (f"bytes={kept}-" if kept else None)
    assert bool(kept) == (way is trickles)  # what came is kept


def test_a_server_that_is_slow_but_not_too_slow_is_waited_for(make_toy, server, monkeypatch):
    monkeypatch.setattr(sources, "PATIENCE", 0.3)
    monkeypatch.setattr(sources, "SLOWEST", 50)
    name, contents, packed = toy_plain()
    toy = make_toy(name, contents, packed, f"{server.url}/{OFFICIAL}/{name}")

    def slow(handler, content):
        head(handler, Content_Length=len(content))
        trickle(handler, content, size=100)  # 50 pieces, a second: three times PATIENCE

    server.serve(OFFICIAL, {name: packed}, slow)
    seen = []
    assert toy.fetch(report=lambda *state: seen.append(state[1])) == []
    assert len(seen) > 10  # progress is told as bytes come, not by the MiB


def test_a_server_that_falls_silent_is_one_line_and_the_next_call_goes_on(online, server, monkeypatch):
    monkeypatch.setattr(data, "TIMEOUT", 1)
    half = len(online.packed) // 2

    def stalls(handler, content):
        head(handler, Content_Length=len(content))
        handler.wfile.write(content[:half])
        until_gone(handler)

    server.serve(OFFICIAL, online.mirrored("packed"), stalls)
    assert f"{online.remote.url}: broke off after {half} of {len(online.packed)} bytes (timed out)" in online.refused()
    server.ways.clear()
    assert online.fetch() == []
    assert server.requests[-1][1] == f"bytes={half}-"


def test_a_server_that_breaks_off_again_and_again_is_asked_again_as_long_as_enough_comes(make_toy, server, monkeypatch):
    monkeypatch.setattr(sources, "WORTH", 1000)
    toy = make_toy(*toy_plain(), f"{server.url}/{OFFICIAL}/toy.mat")
    sizes = [1500, 1200, 900, 5000]  # of each answer; the third is too little

    def breaks_off(handler, content):
        begin = int((handler.headers["Range"] or "bytes=0-")[6:-1])
        handler.send_response(206 if begin else 200)
        if begin:
            handler.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", len(content) - begin)
        handler.end_headers()
        handler.wfile.write(content[begin : begin + sizes.pop(0)])

    server.serve(OFFICIAL, {"toy.mat": toy.packed}, breaks_off)
    said = []
    with pytest.raises(UserError, match=r"toy\.mat: broke off after 3600 of 5000 bytes"):
        sources.fetch("toy", toy.root, say=said.append)
    assert [line.rpartition(": ")[2] for line in said[:2]] == ["going on", "going on"]
    assert [its for _, its in server.requests] == [None, "bytes=1500-", "bytes=2700-"]
    assert toy.fetch() == []


def test_a_connection_that_is_reset_is_one_line_and_the_next_call_goes_on(online, server):
    def resets(handler, content):
        head(handler, Content_Length=len(content))
        handler.wfile.write(content[: len(content) // 2])
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(handler.connection.detach())  # at once, without the shutdown that socketserver would do first

    server.serve(OFFICIAL, online.mirrored("packed"), resets)
    line = online.refused()
    assert f"{online.remote.url}: " in line
    assert os.strerror(errno.ECONNRESET) in line
    server.ways.clear()
    assert online.fetch() == []


@pytest.mark.parametrize("where", ["headers", "body"])
def test_ctrl_c_ends_a_stalled_download_at_once(server, tmp_path, root, where):
    stalled = threading.Event()

    def stalls(handler, _):
        if where == "body":
            head(handler, Content_Length=1000)
            handler.wfile.write(b"x" * 500)
        stalled.set()
        until_gone(handler)

    server.serve("mirror", {"MNIST/raw/train-images-idx3-ubyte.gz": b""}, stalls)
    command = [sys.executable, "-m", "ffrepro", "fetch", "mnist", "--mirror", f"{server.url}/mirror", "--offline"]
    with subprocess.Popen(
        command, cwd=root, env={**os.environ, "FFREPRO_DATA": str(tmp_path)}, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            assert stalled.wait(60)
            part = tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz.download"
            # there as soon as it is opened; asleep once what came has been read and more is waited for
            while where == "body" and not (part.exists() and psutil.Process(child.pid).status() == "sleeping"):
                time.sleep(0.01)
            child.send_signal(signal.SIGINT)
            error = child.communicate(timeout=8)[1]  # before the server gives up
        finally:
            child.kill()
    assert child.returncode == 128 + signal.SIGINT
    assert error.splitlines() == [
        "ffrepro: interrupted; a training goes on from its last checkpoint with the same command"
    ]
    assert [path.stat().st_size for path in left(tmp_path)] == ([500] if where == "body" else [])


# --- redirects -------------------------------------------------------------------------------------------------------


def to(url, body=b""):
    return lambda handler, _: answer(handler, 302, body, Location=url)


def test_a_redirect_to_another_host_is_followed_and_goes_on_where_it_stopped(online, server, other_server):
    there = f"{other_server.url.replace('127.0.0.1', 'localhost')}/there"
    server.serve(OFFICIAL, online.mirrored("packed"), to(there))
    other_server.serve("", {"there": online.packed})
    other_server.files["there"] = online.packed
    other_server.ways["there"] = test_data.cut
    assert "broke off" in online.refused()
    other_server.ways.clear()
    assert online.fetch() == []
    assert other_server.requests == [("there", None), ("there", f"bytes={len(online.packed) // 2}-")]


def test_the_page_of_a_redirect_is_not_read(online, server, other_server, monkeypatch):
    monkeypatch.setattr(data, "TIMEOUT", 3)

    def endless(handler, _):
        head(handler, 302, Location=f"{other_server.url}/there")
        until_gone(handler)

    server.serve(OFFICIAL, online.mirrored("packed"), endless)
    other_server.files["there"] = online.packed
    assert online.fetch() == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://127.0.0.1:9/x", "the server answered 302 Found, from http to ftp://127.0.0.1:9, which is not followed"),
        ("FTP://127.0.0.1:9/x", "from http to ftp://127.0.0.1:9, which is not followed"),
        ("http://user:secret@127.0.0.1:9/x", "from http to http://127.0.0.1:9, which is not followed"),
        (
            "file:///etc/passwd",
            "the server answered 302 Found - Redirection to url 'file:///etc/passwd' is not allowed",
        ),
        ("data:text/plain,x", "is not allowed"),
        ("gopher://127.0.0.1:9/x", "is not allowed"),
    ],
)
def test_a_redirect_that_leads_astray_is_one_line(online, server, url, words):
    server.serve(OFFICIAL, online.mirrored("packed"), to(url))
    line = online.refused()
    assert f"{online.remote.url}: " in line
    assert words in line
    assert "secret" not in line
    assert left(online.root) == []
    server.ways.clear()
    assert online.fetch() == []


@pytest.mark.parametrize(
    ("before", "after", "followed"),
    [("https", "http", False), ("HTTPS", "HTTP", False), ("https", "https", True), ("http", "https", True)],
)
def test_a_redirect_never_leads_out_of_https(before, after, followed):
    request, page = urllib.request.Request(f"{before}://a.example/x"), io.BytesIO(b"page")
    arguments = (request, page, 301, "Moved", {}, f"{after}://b.example/y")
    if followed:
        assert sources._Redirects().redirect_request(*arguments).full_url == f"{after}://b.example/y"
    else:
        with pytest.raises(urllib.error.HTTPError, match=r"from https to http://b\.example, which is not followed"):
            sources._Redirects().redirect_request(*arguments)


def test_redirects_to_ever_new_places_end(online, server):
    def further(handler, _):
        n = int(handler.path.rpartition("?")[2] or 0) if "?" in handler.path else 0
        path = f"{handler.path.partition('?')[0]}?{n + 1}"
        server.ways[path.lstrip("/")] = further
        answer(handler, 302, b"", Location=path)

    server.serve(OFFICIAL, online.mirrored("packed"), further)
    assert "infinite loop" in online.refused()
    assert len(server.requests) <= 12


# --- what a message shows --------------------------------------------------------------------------------------------


def test_a_servers_words_do_not_steer_the_terminal(toy, server):
    def steers(handler, _):
        handler.wfile.write("HTTP/1.1 500 \x1b[2J\x1b]0;mine\x07 \x9b31m gone\r\n\r\n".encode("latin-1"))

    server.serve("mirror", toy.mirrored("unpacked") | toy.mirrored("packed"), steers)
    said = []
    with pytest.raises(UserError) as error:
        sources.fetch("toy", toy.root, mirror=f"{server.url}/mirror", offline=True, say=said.append)
    assert said
    for line in (str(error.value), *said):
        assert line.isprintable()
        assert "gone" in line


def test_a_mirrors_login_is_used_there_alone_and_shown_nowhere(toy, server, other_server):
    seen = []

    def locked(handler, content):
        seen.append(handler.headers["Authorization"])
        if seen[-1] == f"Basic {base64.b64encode('me:s@cret/ü'.encode()).decode()}":
            whole_or_range(handler, content)
        else:
            answer(handler, 401, b"", WWW_Authenticate='Basic realm="x"')

    def elsewhere(handler, content):
        seen.append(handler.headers["Authorization"])
        whole_or_range(handler, content)

    with_login = server.url.replace("://", "://me:s%40cret%2F%C3%BC@")
    server.serve("mirror", toy.mirrored("packed"), locked)
    assert f"{toy.remote.name}: the server answered 401" in toy.refused(mirror=f"{server.url}/mirror", offline=True)
    said = toy.fetch(mirror=f"{with_login}/mirror/", offline=True)
    assert "cret" not in "".join(said)
    seen.clear()

    for path in left(toy.root):
        path.unlink()
    server.serve("mirror", toy.mirrored("packed"), to(f"{other_server.url}/there"))
    other_server.files["there"], other_server.ways["there"] = toy.packed, elsewhere
    toy.fetch(mirror=f"{with_login}/mirror", offline=True)
    assert seen == [None]


@pytest.mark.parametrize(
    "mirror",
    [
        "http://me:secret@127.0.0.1:9/mirror",
        "http://me:secret@[::1/mirror",
        "http://me:secret@a..b/mirror",
        "http://me:se:secret@127.0.0.1:port/mirror",
        "http://me:s@secret@127.0.0.1:9/mirror",
        "http://me:s?secret@127.0.0.1:9/mirror",
        "http://me:s/secret@127.0.0.1:9/mirror",
        "ftp://me:secret@127.0.0.1:9/mirror",
    ],
)
def test_no_message_shows_a_password(make_toy, mirror):
    toy, said = make_toy(*toy_gz()), []
    with pytest.raises(UserError) as error:
        sources.fetch("toy", toy.root, mirror=mirror, offline=True, say=said.append)
    (line,) = str(error.value).splitlines()
    assert "--mirror" in line
    assert "secret" not in "".join([line, *said])


@pytest.mark.parametrize("mirror", ["folder@2", "http://127.0.0.1:9/a@b", "http://[::1]/a@b", "http://127.0.0.1/a:b@c"])
def test_an_at_sign_elsewhere_is_no_login(make_toy, mirror):
    assert f"{mirror}/Toy" in make_toy(*toy_gz()).refused(mirror=mirror, offline=True)


# --- where it is used ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [lambda mirror: prepare.main("mnist"), lambda mirror: cli.fetch("mnist", mirror=mirror, offline=True)],
    ids=["prepare", "fetch"],
)
def test_the_stage_and_the_command_are_bounded(server, tmp_path, monkeypatch, one_mib, call):
    settings = {"DATA": str(tmp_path), "MIRROR": f"{server.url}/mirror", "OFFLINE": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"FFREPRO_{name}", value)
    server.serve("mirror", {"MNIST/raw/train-images-idx3-ubyte.gz": gzip.compress(ZEROS)})
    with pytest.raises(UserError, match="it unpacks to more than 1 MiB"):
        call(settings["MIRROR"])
