"""A data set comes through one door: whole, verified, from whatever source is sound, or not at all and in one line."""

import gzip
import hashlib
import io
import os
import random
import shutil
import socket
import subprocess
import tarfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from ffrepro import data
from ffrepro.errors import UserError

PAGE = b"\n<!DOCTYPE html><html><body>Please log in to this network</body></html>"
OFFICIAL = "official"  # the folder of a server that Remote.url points to; a URL mirror is at "mirror"


def noise(seed, size=5000):
    return random.Random(seed).randbytes(size)  # incompressible, so that half an archive is half the data


def digest(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def flipped(content, at=0.5):
    """With one bit flipped, at this fraction of the length."""
    content = bytearray(content)
    content[int(at * (len(content) - 1))] ^= 1
    return bytes(content)


def tar_gz(members):
    """Members are (name, bytes) or a TarInfo of something that is no file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                name, content = member
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def files(folder):
    """{path below the folder: content} of everything there, but for what was set aside or waits to be gone on with."""
    kept = (path for path in folder.rglob("*") if path.suffix not in (".corrupt", ".part", ".download"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept if path.is_file()}


def aside(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.corrupt")}


# --- a small data set, a folder, a server ----------------------------------------------------------------------------


@dataclass
class Toy:
    """A made-up data set of one remote file, registered as "toy"."""

    remote: data.Remote
    contents: dict[str, bytes]
    packed: bytes
    root: Path

    def fetch(self, **options):
        """What fetch said, after it has succeeded and every file is there and right."""
        said = []
        data.fetch("toy", self.root, say=said.append, **options)
        assert files(self.root) == self.contents
        assert not list(self.root.rglob("*.part")) + list(self.root.rglob("*.download"))
        return said

    def refused(self, **options):
        """The line that fetch ended with, after it has left nothing under a real name."""
        with pytest.raises(UserError) as error:
            data.fetch("toy", self.root, **options)
        (line,) = str(error.value).splitlines()
        assert self.remote.name in line
        assert not files(self.root)
        return line

    def mirrored(self, form, change=lambda content: content):
        """The files of a mirror in this form, each changed."""
        chosen = self.contents if form == "unpacked" else {self.remote.name: self.packed}
        return {name: change(content) for name, content in chosen.items()}


def toy_gz():
    contents = {"Toy/raw/images": noise(1)}
    return "Toy/raw/images.gz", contents, gzip.compress(contents["Toy/raw/images"])


def toy_tar():
    contents = {"toy-py/batch_1": noise(2), "toy-py/batch_2": noise(3)}
    return "toy-py.tar.gz", contents, tar_gz([("toy-py/readme", b"not wanted"), *contents.items()])


def toy_plain():
    return "toy.mat", {"toy.mat": noise(4)}, noise(4)


@pytest.fixture
def make_toy(monkeypatch, tmp_path):
    def make(name, contents, packed, url="http://127.0.0.1:9/nobody-listens-here"):
        remote = data.Remote(name, url, {path: digest(content) for path, content in contents.items()})
        monkeypatch.setitem(data.DATASETS, "toy", replace(data.DATASETS["digits"], remotes=(remote,)))
        return Toy(remote, contents, packed, tmp_path / "root")

    return make


class Server:
    """A real HTTP server on this machine. `files` are there; `ways` is how a path is answered instead of properly."""

    def __init__(self):
        self.files = {}
        self.ways = {}
        self.requests = []  # (path, Range)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                path = self.path.lstrip("/")
                outer.requests.append((path, self.headers["Range"]))
                outer.ways.get(path, whole_or_range)(self, outer.files.get(path))

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def serve(self, folder, files, way=None):
        self.files |= {f"{folder}/{name}": content for name, content in files.items()}
        self.ways |= {f"{folder}/{name}": way for name in files if way}

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(params=[toy_gz, toy_tar], ids=["gz", "tar.gz"])
def toy(request, make_toy):
    """Nobody listens at its official URL."""
    return make_toy(*request.param())


@pytest.fixture(params=[toy_gz, toy_tar, toy_plain], ids=["gz", "tar.gz", "plain"])
def online(request, make_toy, server):
    """The server's `official` folder is its official source, and empty."""
    name, contents, packed = request.param()
    return make_toy(name, contents, packed, f"{server.url}/{OFFICIAL}/{name}")


def answer(handler, status, body, length=None, **headers):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for key, value in headers.items():
        handler.send_header(key.replace("_", "-"), value)
    handler.end_headers()
    with suppress(ConnectionError):  # the client may have read enough
        handler.wfile.write(body)


def whole_or_range(handler, content):
    start = int((handler.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    if content is None:
        answer(handler, 404, PAGE)
    elif start and start >= len(content):
        answer(handler, 416, b"", Content_Range=f"bytes */{len(content)}")
    else:
        answer(handler, 206 if start else 200, content[start:])


def whole(handler, content):
    """Ignores Range."""
    answer(handler, 200, content)


def cut(handler, content):
    answer(handler, 200, content[: len(content) // 2], length=len(content))


def cut_in_chunks(handler, content):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n" % len(content) + content[: len(content) // 2])


def longer(handler, content):
    """Says a length and sends more."""
    answer(handler, 200, content, length=len(content) - 100)


def page(handler, _):
    answer(handler, 200, PAGE)


def no_http(handler, _):
    handler.wfile.write(b"220 this is no web server\r\n\r\n")


def hangs_up(handler, _):
    handler.connection.shutdown(socket.SHUT_RDWR)


def silent(_handler, _):
    time.sleep(0.3)


def round_and_round(handler, _):
    answer(handler, 302, b"", Location=handler.path)  # urllib's reason for giving up has three lines


def to_other_scheme(handler, _):
    answer(handler, 302, b"", Location="file:///etc/passwd")


def to_ftp(handler, _):
    answer(handler, 302, b"", Location="ftp://127.0.0.1:9/x")


def status(code):
    return lambda handler, _: answer(handler, code, PAGE)


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["unpacked", "packed"])
def test_a_folder_is_a_mirror(toy, tmp_path, form):
    write(tmp_path / "mirror", toy.mirrored(form))
    assert toy.fetch(mirror=str(tmp_path / "mirror"), offline=True) == []


@pytest.mark.parametrize("form", ["unpacked", "packed"])
@pytest.mark.parametrize("end", ["", "/"])
def test_a_base_url_is_a_mirror(toy, server, form, end):
    server.serve("mirror", toy.mirrored(form))
    assert toy.fetch(mirror=f"{server.url}/mirror{end}", offline=True) == []


def test_the_official_url_is_asked_without_a_mirror(online, server):
    server.serve(OFFICIAL, online.mirrored("packed"))
    assert online.fetch() == []


def test_the_mirror_is_asked_first(online, server, tmp_path):
    server.serve(OFFICIAL, online.mirrored("packed"))
    write(tmp_path / "mirror", online.mirrored("packed"))
    assert online.fetch(mirror=str(tmp_path / "mirror")) == []
    assert server.requests == []


def test_the_official_url_is_asked_when_the_mirror_has_nothing(online, server, tmp_path):
    server.serve(OFFICIAL, online.mirrored("packed"))
    assert online.fetch(mirror=str(tmp_path)) == [f"{tmp_path}/{online.remote.name}: no such file"]
    assert [path for path, _ in server.requests] == [f"{OFFICIAL}/{online.remote.name}"]


def test_files_that_are_there_and_right_ask_no_source(online, server):
    write(online.root, online.contents)
    assert online.fetch(mirror=f"{server.url}/mirror") == []
    assert server.requests == []


def test_only_the_missing_file_is_brought(make_toy, tmp_path):
    toy = make_toy(*toy_tar())
    write(toy.root, {"toy-py/batch_1": toy.contents["toy-py/batch_1"]})
    before = (toy.root / "toy-py/batch_1").stat()
    write(tmp_path / "mirror", toy.mirrored("packed"))
    toy.fetch(mirror=str(tmp_path / "mirror"))
    after = (toy.root / "toy-py/batch_1").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_offline_asks_no_official_url(online, server):
    server.serve(OFFICIAL, online.mirrored("packed"))
    assert "offline" in online.refused(offline=True)
    assert server.requests == []


def test_the_refusal_names_the_remedy_and_every_source(toy, server):
    line = toy.refused(mirror=f"{server.url}/mirror")
    for part in (
        "--mirror",
        "FFREPRO_MIRROR",
        f"{server.url}/mirror/{toy.remote.name}: ",
        "404",
        toy.remote.url,
        "refused",
    ):
        assert part in line


def test_progress_ends_at_the_whole_size(online, server):
    server.serve(OFFICIAL, online.mirrored("packed"))
    seen = []
    data.fetch("toy", online.root, report=lambda *state: seen.append(state))
    assert seen[-1][1:] == (len(online.packed), len(online.packed))


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_file_already_there_is_mended_from_a_source(toy, tmp_path):
    write(toy.root, toy.mirrored("unpacked", flipped))
    write(tmp_path / "mirror", toy.mirrored("packed"))
    said = toy.fetch(mirror=str(tmp_path / "mirror"))
    assert len(said) == len(toy.contents)  # one line for each bad file
    assert aside(toy.root) == {f"{name}.corrupt": flipped(content) for name, content in toy.contents.items()}


def test_a_flipped_bit_in_a_file_already_there_is_refused_without_a_source(toy):
    write(toy.root, toy.mirrored("unpacked", flipped))
    line = toy.refused(offline=True)
    for name, content in toy.contents.items():
        assert f"{name}: " in line
        assert digest(content) in line
        assert digest(flipped(content)) in line
        assert f"set aside as {toy.root / name}.corrupt" in line
    assert len(aside(toy.root)) == len(toy.contents)


@pytest.mark.parametrize("kind", ["folder", "url"])
@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (flipped, "wrong"),
        (lambda content: content[:-1], "truncated"),
        (lambda _: PAGE, "HTML"),
        (lambda _: b"", "0 bytes"),
    ],
    ids=["flipped", "truncated", "page", "empty"],
)
def test_a_bad_unpacked_file_is_set_aside_and_named_with_both_hashes(toy, server, tmp_path, kind, damage, word):
    write(tmp_path / "mirror", toy.mirrored("unpacked", damage))
    server.serve("mirror", toy.mirrored("unpacked", damage))
    mirror = str(tmp_path / "mirror") if kind == "folder" else f"{server.url}/mirror"
    line = toy.refused(mirror=mirror, offline=True)
    name, content = next(iter(toy.contents.items()))
    for part in (
        word,
        f"{mirror}/{name}: ",
        digest(content),
        digest(damage(content)),
        f"set aside as {toy.root / name}.corrupt",
    ):
        assert part in line
    assert aside(toy.root) == {f"{name}.corrupt": damage(content)}


@pytest.mark.parametrize("kind", ["folder", "url"])
@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (flipped, ""),  # of a tar, the contents show it before gzip's checksum does
        (lambda content: flipped(content, 0), "not the archive"),
        (lambda content: content[: len(content) // 3], "not the archive"),
        (lambda _: PAGE, "HTML"),
        (lambda _: b"", "0 bytes"),
        (lambda _: gzip.compress(PAGE), ""),
    ],
    ids=["flipped", "flipped-magic", "truncated", "page", "empty", "packed-page"],
)
def test_a_bad_packed_file_is_set_aside_and_named_with_both_hashes(toy, server, tmp_path, kind, damage, word):
    write(tmp_path / "mirror", toy.mirrored("packed", damage))
    server.serve("mirror", toy.mirrored("packed", damage))
    mirror = str(tmp_path / "mirror") if kind == "folder" else f"{server.url}/mirror"
    line = toy.refused(mirror=mirror, offline=True)
    ((name, bad),) = aside(toy.root).items()
    assert any(digest(content) in line for content in toy.contents.values())
    for part in (word, f"{mirror}/{toy.remote.name}: ", digest(bad), f"set aside as {toy.root / name}"):
        assert part in line


@pytest.mark.parametrize("end", [-20, -8, -1])
def test_a_packed_file_that_lost_its_end_is_refused(make_toy, tmp_path, end):
    """Also where the content is whole but the archive's own checksum is not."""
    toy = make_toy(*toy_gz())
    write(tmp_path / "mirror", toy.mirrored("packed", lambda content: content[:end]))
    assert "not the archive it should be" in toy.refused(mirror=str(tmp_path / "mirror"), offline=True)


def test_a_sound_archive_of_other_content_is_refused_by_its_contents_hash(toy, tmp_path):
    others = {name: flipped(content) for name, content in toy.contents.items()}
    packed = tar_gz(others.items()) if len(others) > 1 else gzip.compress(*others.values())
    write(tmp_path / "mirror", {toy.remote.name: packed})
    line = toy.refused(mirror=str(tmp_path / "mirror"), offline=True)
    name, content = next(iter(toy.contents.items()))
    assert f"expected {digest(content)}, found {digest(flipped(content))}" in line
    assert aside(toy.root) == {f"{name}.corrupt": flipped(content)}


@pytest.mark.parametrize("form", ["unpacked", "packed"])
def test_a_bad_mirror_costs_one_line_when_the_official_source_is_sound(online, server, tmp_path, form):
    write(tmp_path / "mirror", online.mirrored(form, flipped))
    server.serve(OFFICIAL, online.mirrored("packed"))
    bad, *absent = online.fetch(mirror=str(tmp_path / "mirror"))
    assert "set aside as" in bad
    assert len(bad.splitlines()) == 1
    assert all(line.endswith("no such file") for line in absent)
    assert len(aside(online.root)) == 1


def test_a_bad_unpacked_file_of_a_mirror_is_made_up_for_by_the_packed_one(toy, tmp_path):
    write(tmp_path / "mirror", toy.mirrored("unpacked", flipped) | toy.mirrored("packed"))
    (line,) = toy.fetch(mirror=str(tmp_path / "mirror"), offline=True)
    assert "wrong or truncated" in line


def test_a_mirror_is_never_changed(toy, tmp_path):
    there = toy.mirrored("unpacked", flipped) | toy.mirrored("packed", flipped)
    write(tmp_path / "mirror", there)
    toy.refused(mirror=str(tmp_path / "mirror"), offline=True)
    assert files(tmp_path / "mirror") == there
    assert not aside(tmp_path / "mirror")


def test_a_bad_official_file_is_set_aside_and_the_next_call_starts_from_scratch(online, server):
    server.serve(OFFICIAL, online.mirrored("packed", flipped))
    assert "set aside as" in online.refused()
    server.serve(OFFICIAL, online.mirrored("packed"))
    assert online.fetch() == []
    assert [start for _, start in server.requests] == [None, None]


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [403, 404, 416, 429, 500, 503])
def test_a_servers_refusal_is_named_by_its_status(online, server, code):
    server.serve(OFFICIAL, online.mirrored("packed"), status(code))
    assert f"{online.remote.url}: the server answered {code}" in online.refused()
    assert not aside(online.root)


def test_a_page_of_the_network_is_no_data(online, server):
    server.serve(OFFICIAL, online.mirrored("packed"), page)
    line = online.refused()
    assert "an HTML page instead of data" in line
    assert list(aside(online.root).values()) == [PAGE]
    server.ways.clear()
    online.fetch()


@pytest.mark.parametrize("way", [cut_in_chunks, no_http, hangs_up, silent, round_and_round, to_other_scheme, to_ftp])
def test_a_servers_misbehaviour_is_one_line(online, server, monkeypatch, way):
    monkeypatch.setattr(data, "TIMEOUT", 0.2)
    server.serve(OFFICIAL, online.mirrored("packed"), way)
    assert f"{online.remote.url}: " in online.refused()
    assert not aside(online.root)


def test_a_download_that_was_cut_is_resumed_where_it_stopped(online, server):
    server.serve(OFFICIAL, online.mirrored("packed"), cut)
    half = len(online.packed) // 2
    assert f"broke off after {half} of {len(online.packed)} bytes" in online.refused()
    server.ways.clear()
    seen = []
    assert online.fetch(report=lambda *state: seen.append(state)) == []
    assert server.requests[-1] == (f"{OFFICIAL}/{online.remote.name}", f"bytes={half}-")
    assert seen[-1][1:] == (len(online.packed), len(online.packed))


def test_an_unpacked_file_that_was_cut_is_resumed_where_it_stopped(toy, server):
    server.serve("mirror", toy.mirrored("unpacked"), cut)
    toy.refused(mirror=f"{server.url}/mirror", offline=True)
    server.ways.clear()
    toy.fetch(mirror=f"{server.url}/mirror", offline=True)
    name = next(iter(toy.contents))
    assert (f"mirror/{name}", f"bytes={len(toy.contents[name]) // 2}-") in server.requests


def test_a_server_that_ignores_range_starts_over(online, server):
    server.serve(OFFICIAL, online.mirrored("packed"), cut)
    online.refused()
    server.serve(OFFICIAL, online.mirrored("packed"), whole)
    assert online.fetch() == []
    assert server.requests[-1][1] is not None


def test_a_whole_download_that_was_not_yet_unpacked_is_not_sent_again(toy, server):
    server.serve("mirror", toy.mirrored("packed"))
    write(toy.root, {f"{toy.remote.name}.download": toy.packed})
    assert toy.fetch(mirror=f"{server.url}/mirror", offline=True) == []
    assert server.requests[-1] == (f"mirror/{toy.remote.name}", f"bytes={len(toy.packed)}-")  # answered 416


@pytest.mark.parametrize("size", [100, 20_000])
def test_a_stale_download_never_poisons_the_result(online, server, size):
    """Shorter than the file, a server goes on from it; longer, it says that nothing is left (416)."""
    server.serve(OFFICIAL, online.mirrored("packed"))
    write(online.root, {f"{online.remote.name}.download": noise(9, size)})
    assert "set aside as" in online.refused()
    assert len(aside(online.root)) == 1
    assert online.fetch() == []


@pytest.mark.parametrize("size", [100, 20_000])
def test_a_stale_part_never_poisons_the_result(toy, server, size):
    server.serve("mirror", toy.mirrored("unpacked"))
    write(toy.root, {f"{name}.part": noise(9, size) for name in toy.contents})
    mirror = f"{server.url}/mirror"
    for _ in toy.contents:
        assert "set aside as" in toy.refused(mirror=mirror, offline=True)
    assert toy.fetch(mirror=mirror, offline=True) == []


@pytest.mark.parametrize("form", ["unpacked", "packed"])
def test_stale_leftovers_do_not_matter_to_a_folder(toy, tmp_path, form):
    leftovers = (f"{toy.remote.name}.download", *(f"{name}.part" for name in toy.contents))
    write(toy.root, {name: noise(9, 20_000) for name in leftovers})
    write(tmp_path / "mirror", toy.mirrored(form))
    assert toy.fetch(mirror=str(tmp_path / "mirror"), offline=True) == []


def test_a_part_from_a_source_that_broke_off_does_not_stay_once_another_had_it(online, server, tmp_path):
    server.serve(OFFICIAL, online.mirrored("packed"), cut)
    online.refused()
    write(tmp_path / "mirror", online.mirrored("unpacked"))
    assert online.fetch(mirror=str(tmp_path / "mirror")) == []  # `fetch` looks for leftovers


def test_more_than_the_length_that_was_said_is_refused(online, server):
    server.serve(OFFICIAL, online.mirrored("packed"), longer)
    assert "set aside as" in online.refused()
    server.ways.clear()
    online.fetch()


def test_no_network_is_one_line(toy):
    assert "no connection" in toy.refused()


@pytest.mark.parametrize(
    "mirror",
    [
        "ftp://127.0.0.1/x",
        "file:///tmp",
        "s3://bucket/x",
        "://",
        "http://",
        "http://[::1",
        "http://127.0.0.1:port/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:9/with space",
        "http://127.0.0.1:9/with\nbreak",
        "http://127.0.0.1:9/straße",
        "http://" + "a" * 70 + ".invalid/",
        "http://a..b/",
        "no/such/folder",
        "with\0zero",
        "with\nbreak",
    ],
)
def test_a_mirror_that_cannot_be_is_one_line(make_toy, mirror):
    make_toy(*toy_gz()).refused(mirror=mirror, offline=True)


def test_files_are_not_read_through_a_url(make_toy, tmp_path):
    toy = make_toy(*toy_gz())
    write(tmp_path / "mirror", toy.mirrored("packed"))
    assert "neither a folder nor an http" in toy.refused(mirror=(tmp_path / "mirror").as_uri(), offline=True)


def test_tls_with_a_server_that_speaks_none_is_one_line(make_toy, server):
    toy = make_toy(*toy_gz())
    assert "SSL" in toy.refused(mirror=server.url.replace("http", "https"), offline=True)


def test_a_mirror_whose_file_is_a_folder_is_one_line(toy, tmp_path):
    (tmp_path / "mirror" / toy.remote.name).mkdir(parents=True)
    assert "directory" in toy.refused(mirror=str(tmp_path / "mirror"), offline=True).lower()


# --- the disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here (needs root on Linux)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("form", ["unpacked", "packed"])
@pytest.mark.parametrize("size", [40_000, 100_000])  # of two files or of the one and its archive; of either
def test_a_full_disk_is_one_line_and_the_next_call_goes_on(make_toy, server, small_disk, form, size):
    contents = {"toy-py/batch_1": noise(5, size), "toy-py/batch_2": noise(6, size)}
    toy = replace(make_toy("toy-py.tar.gz", contents, tar_gz(contents.items())), root=small_disk / "root")
    server.serve("mirror", toy.mirrored(form))
    mirror = f"{server.url}/mirror"
    line = toy.refused(mirror=mirror, offline=True)
    assert "No space left on device; make room" in line
    assert not aside(toy.root)
    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    assert toy.fetch(mirror=mirror, offline=True) == []


def test_a_root_that_cannot_be_is_one_line(toy, tmp_path):
    write(tmp_path, {"root": b"a file where the folder should be"})
    write(tmp_path / "mirror", toy.mirrored("packed"))
    assert "cannot be kept below" in toy.refused(mirror=str(tmp_path / "mirror"))


@pytest.mark.parametrize("ending", ["", ".part"])
@pytest.mark.parametrize("form", ["unpacked", "packed"])
def test_a_folder_in_a_files_place_is_one_line(toy, tmp_path, form, ending):
    write(tmp_path / "mirror", toy.mirrored(form))
    for name in toy.contents:
        (toy.root / f"{name}{ending}").mkdir(parents=True)
    assert "directory" in toy.refused(mirror=str(tmp_path / "mirror")).lower()


# --- hostile archives ------------------------------------------------------------------------------------------------


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("target", ["{outside}", "../outside", "toy-py/readme", "toy-py/batch_1"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symbolic", "hard"])
def test_a_link_is_not_taken_for_a_file(make_toy, tmp_path, kind, target):
    name, contents, _ = toy_tar()
    write(tmp_path, {"outside": contents["toy-py/batch_1"]})
    link = special("toy-py/batch_1", kind, target.format(outside=tmp_path / "outside"))
    members = [("toy-py/readme", contents["toy-py/batch_1"]), link, ("toy-py/batch_2", contents["toy-py/batch_2"])]
    toy = make_toy(name, contents, tar_gz(members))
    write(tmp_path / "mirror", toy.mirrored("packed"))
    assert "toy-py/batch_1 is no file" in toy.refused(mirror=str(tmp_path / "mirror"), offline=True)
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE], ids=["folder", "pipe", "device"])
def test_what_is_no_file_is_not_taken_for_one(make_toy, tmp_path, kind):
    name, contents, _ = toy_tar()
    toy = make_toy(name, contents, tar_gz([special("toy-py/batch_1", kind), special("toy-py/batch_2", kind)]))
    write(tmp_path / "mirror", toy.mirrored("packed"))
    assert "toy-py/batch_1 is no file" in toy.refused(mirror=str(tmp_path / "mirror"), offline=True)


def test_only_the_wanted_members_are_written_wherever_others_point(make_toy, tmp_path):
    name, contents, _ = toy_tar()
    outside = tmp_path / "outside"
    outside.mkdir()
    members = [
        ("../escaped", b"x"),
        ("toy-py/../../escaped", b"x"),
        (f"{outside}/escaped", b"x"),
        special("toy-py", tarfile.SYMTYPE, str(outside)),  # a later toy-py/batch_1 would be written through it
        special("toy-py/link", tarfile.SYMTYPE, "/etc/passwd"),
        *contents.items(),
    ]
    toy = make_toy(name, contents, tar_gz(members))
    write(tmp_path / "mirror", toy.mirrored("packed"))
    toy.fetch(mirror=str(tmp_path / "mirror"), offline=True)  # compares the root with the contents
    assert not list(outside.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"outside", "mirror", "root"}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_an_archive_without_the_wanted_member_is_one_line(make_toy, tmp_path):
    name, contents, _ = toy_tar()
    toy = make_toy(name, contents, tar_gz([("elsewhere/batch_1", contents["toy-py/batch_1"])]))
    write(tmp_path / "mirror", toy.mirrored("packed"))
    assert "'toy-py/batch_1' not found" in toy.refused(mirror=str(tmp_path / "mirror"), offline=True)


def test_an_archive_that_nests_without_end_is_one_line(make_toy, tmp_path):
    """A long name's name may be a long name: tarfile follows them by recursion."""
    info = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 1
    block = info.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")
    name, contents, _ = toy_tar()
    toy = make_toy(name, contents, gzip.compress(block * 5000))
    write(tmp_path / "mirror", toy.mirrored("packed"))
    assert "not the archive it should be" in toy.refused(mirror=str(tmp_path / "mirror"), offline=True)


def test_no_damage_to_an_archive_is_more_than_one_line_or_data(toy, tmp_path):
    chance = random.Random(0)
    mirror = tmp_path / "mirror"
    for _ in range(100):
        bad = bytearray(toy.packed)
        for _ in range(chance.choice([1, 2, 20])):
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        write(mirror, {toy.remote.name: bytes(bad)})
        line = attempt(toy, mirror=str(mirror), offline=True)
        if line is None:  # the damage was to a field that says nothing of the content, such as its date
            assert files(toy.root) == toy.contents
        else:
            assert len(line.splitlines()) == 1
            assert not files(toy.root)
        shutil.rmtree(toy.root)


def attempt(toy, **options):
    try:
        data.fetch("toy", toy.root, **options)
    except UserError as error:
        return str(error)
    return None


# --- reading ---------------------------------------------------------------------------------------------------------


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")])
def test_idx_files_are_read_as_images_and_labels(tmp_path, name, folder):
    pixels = np.arange(5 * 3 * 4, dtype=np.uint8).reshape(5, 3, 4)
    labels = np.array([5, 0, 4, 1, 9], dtype=np.uint8)
    for part, rows in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        write(tmp_path / folder, {f"{part}-images-idx3-ubyte": idx(pixels[rows])})
        write(tmp_path / folder, {f"{part}-labels-idx1-ubyte": idx(labels[rows])})
    train, test = data.DATASETS[name].read(tmp_path)
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(torch.cat([train.images, test.images]), torch.from_numpy(pixels).unsqueeze(1))
    assert (train.labels.tolist(), test.labels.tolist()) == ([5, 0, 4], [1, 9])


def test_svhn_is_read_with_its_label_10_as_the_digit_0(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 10), dtype=np.uint8)  # H, W, C, N, as published
    for part, labels in (("train", [*range(1, 11)]), ("test", [10, 1, 10])):
        chosen = {"X": pixels[..., : len(labels)], "y": np.array(labels, dtype=np.uint8).reshape(-1, 1)}
        savemat(tmp_path / f"{part}_32x32.mat", chosen)
    train, test = data.DATASETS["svhn"].read(tmp_path)
    assert (train.images.shape, train.images.dtype, train.labels.dtype) == ((10, 3, 32, 32), torch.uint8, torch.int64)
    assert train.images.is_contiguous()
    assert train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert test.labels.tolist() == [0, 1, 0]
    assert train.images[7, 2, 30, 5] == pixels[30, 5, 2, 7]


def test_digits_are_the_same_split_at_every_call(digits):
    train, test = digits
    again, test_again = data.read("digits", Path("/nowhere"))  # embedded: reads no folder
    assert (train.images.shape, test.images.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    assert all(torch.equal(a, b) for a, b in zip((*train, *test), (*again, *test_again), strict=True))


def rows(*splits):
    """How often each pair of image and label occurs."""
    return Counter(
        (image.numpy().tobytes(), int(label)) for split in splits for image, label in zip(*split, strict=True)
    )


def test_digits_are_each_in_one_of_the_splits(digits):
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((pixels * 255 / 16).round()).to(torch.uint8).view(-1, 1, 8, 8)
    assert rows(*digits) == rows(data.Split(images, torch.from_numpy(labels)))


def test_files_of_another_size_than_the_data_sets_are_refused(tmp_path):
    for part in ("train", "t10k"):
        write(tmp_path / "MNIST/raw", {f"{part}-images-idx3-ubyte": idx(np.zeros((2, 28, 28), np.uint8))})
        write(tmp_path / "MNIST/raw", {f"{part}-labels-idx1-ubyte": idx(np.zeros(2, np.uint8))})
    with pytest.raises(UserError, match=r"^mnist: \(2, 1, 28, 28\) images, expected \(60000, 1, 28, 28\)$"):
        data.read("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "path", "train_labels", "test_labels"),
    [
        ("mnist", "MNIST/raw", [5, 0, 4, 1, 9], [7, 2, 1, 0, 4]),
        ("cifar10", "cifar-10-batches-py", [6, 9, 9, 4, 1], [3, 8, 8, 0, 6]),
    ],
)
def test_the_canonical_files_are_fetched_and_read(tmp_path, name, path, train_labels, test_labels):
    mirror = os.environ.get("FFREPRO_MIRROR", "")
    if not mirror or not (Path(mirror) / path).is_dir():
        pytest.skip(f"FFREPRO_MIRROR names no folder with {path}")
    data.fetch(name, tmp_path, mirror=mirror, offline=True)
    train, test = data.read(name, tmp_path)  # compares the shapes with config's
    assert train.images.dtype == test.images.dtype == torch.uint8
    assert (train.labels[:5].tolist(), test.labels[:5].tolist()) == (train_labels, test_labels)
    assert (len(train.labels), len(test.labels)) == (len(train.images), len(test.images))
    assert train.labels.unique().tolist() == list(range(10))


# --- tensors between stages ------------------------------------------------------------------------------------------


@pytest.fixture
def splits():
    images = torch.arange(7 * 2 * 3, dtype=torch.uint8).view(7, 1, 2, 3)
    return data.Split(images[:4], torch.tensor([3, 1, 4, 1])), data.Split(images[4:], torch.tensor([5, 9, 2]))


def test_what_was_saved_is_loaded(splits, tmp_path):
    data.save(*splits, tmp_path / "data" / "toy.safetensors")
    for split, loaded in zip(splits, data.load(tmp_path / "data" / "toy.safetensors"), strict=True):
        assert isinstance(loaded, data.Split)
        for a, b in zip(split, loaded, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_the_same_splits_are_saved_as_the_same_bytes(splits, tmp_path):
    for name in ("a", "b"):
        data.save(*splits, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_no_flipped_byte_in_the_saved_file_goes_unnoticed(splits, tmp_path):
    path = tmp_path / "toy.safetensors"
    data.save(*splits, path)
    sound = path.read_bytes()
    for i in range(len(sound)):
        path.write_bytes(sound[:i] + bytes([sound[i] ^ 1]) + sound[i + 1 :])
        with pytest.raises(UserError) as error:
            data.load(path)
        (line,) = str(error.value).splitlines()
        assert str(path) in line


def test_rows_of_a_split_are_a_split(splits):
    train, _ = splits
    for chosen in (torch.tensor([2, 0]), slice(1, 3), torch.tensor([True, False, False, True])):
        part = train[chosen]
        assert isinstance(part, data.Split)
        assert torch.equal(part.images, train.images[chosen])
        assert torch.equal(part.labels, train.labels[chosen])


def test_a_split_is_moved_as_a_whole(splits):
    moved = splits[0].to(torch.device("meta"))
    assert {tensor.device.type for tensor in moved} == {"meta"}


def test_held_out_images_are_the_same_at_every_call_and_in_no_other_part(digits):
    train, _ = digits
    rest, kept = data.held_out(train, 100)
    again = data.held_out(train, 100)
    assert (len(rest.labels), len(kept.labels)) == (1337, 100)
    assert rows(rest, kept) == rows(train)
    assert torch.equal(again[0].images, rest.images)
    assert torch.equal(again[1].images, kept.images)


def test_more_held_out_images_contain_the_fewer(digits):
    train, _ = digits
    assert rows(data.held_out(train, 100)[1]) <= rows(data.held_out(train, 200)[1])


def test_holding_out_nothing_loses_nothing(digits):
    train, _ = digits
    rest, kept = data.held_out(train, 0)
    assert kept.images.shape == (0, 1, 8, 8)
    assert rows(rest) == rows(train)
