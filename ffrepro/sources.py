"""Fetching from sources that may be broken or hostile: what one can cost in time, disk and memory is bounded.

`data.fetch` keeps no file whose hash differs, but a source could send without end, or a byte a minute, or an archive
that unpacks to terabytes. `fetch` here is that function with bounds around it. It stands beside data.py because that
source is hashed into every training's record, which a bound on a download must not make stale.
"""

import base64
import contextlib
import fcntl
import gzip
import http.client
import io
import os
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ffrepro import data
from ffrepro.errors import UserError

LARGEST = 512 << 20  # bytes of a file, packed or unpacked; the largest of ours is SVHN's train_32x32.mat, 182,040,794
SLOWEST = 1 << 10  # bytes a second, the mean over PATIENCE, that a server has to send at the least
WORTH = 1 << 18  # bytes that have to come before a connection that broke off is worth another; LARGEST bounds them all
PATIENCE = 60.0  # seconds of waiting for a server after which its rate is looked at


def fetch(
    name: str,
    root: Path,
    *,
    mirror: str | None = None,
    offline: bool = False,
    report: data.Report = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """`data.fetch`, where a source that is too slow, too large or leads astray has failed, and the next one is asked.

    Redirects are followed to http and https, never from https to http. `mirror` may be https://USER:PASSWORD@HOST/...:
    the login goes to that mirror alone and into no message. While this runs, urllib's opener is this module's, in the
    whole process. Raises UserError with one line, in which nothing that a server sent can steer a terminal.
    """
    with _alone(root, say) if data.DATASETS[name].remotes else contextlib.nullcontext():
        _fetch(name, root, *_parted(mirror), offline, report, say)


@contextlib.contextmanager
def _alone(root: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder's own lock, which leaves no file in it, once another process that fetches into it has ended.

    Where that cannot be had, as in a folder that is not to be written to, nothing is locked.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            root.mkdir(parents=True, exist_ok=True)
            folder = os.open(root, os.O_RDONLY)
            held.callback(os.close, folder)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{root}: waiting for another process that fetches into this folder")
                fcntl.flock(folder, fcntl.LOCK_EX)
        yield


def _fetch(
    name: str,
    root: Path,
    mirror: str | None,
    login: str,
    offline: bool,
    report: data.Report,
    say: Callable[[str], None],
) -> None:
    def bounded_unpack(archive: Path, wanted: Mapping[str, str], root: Path) -> None:
        try:
            if _unpacked(archive) <= LARGEST:
                unpack(archive, wanted, root)
                return
            reason = f"it unpacks to {_too_large()}"
        except (MemoryError, OverflowError):
            reason = "a size in it is none that can be"
        size = archive.stat().st_size
        archive.unlink()
        raise UserError(f"not the archive it should be ({size} bytes): {reason}; removed")

    def copy_on(location: str, target: Path, report: data.Report) -> None:
        def bounded(part: str, done: int, total: int | None) -> None:
            if max(done, total or 0) > LARGEST:
                target.unlink()  # the next source, or the next call, would go on from it
                raise UserError(f"{total or done} bytes{'' if total else ' and going on'}: {_too_large()}; removed")
            report(part, done, total)

        while True:
            before = target.stat().st_size if target.exists() else 0
            try:
                copy(location, target, bounded)
                return
            except UserError as error:
                if "broke off" not in str(error) or not target.exists() or target.stat().st_size - before < WORTH:
                    raise
                say(_printable(f"{location}: {error}: going on"))

    opener, copy, unpack = getattr(urllib.request, "_opener", None), data._copy, data._unpack
    urllib.request.install_opener(urllib.request.build_opener(_HTTP, _HTTPS, _Redirects, _Login(mirror, login)))
    data._copy, data._unpack = copy_on, bounded_unpack
    try:
        data.fetch(name, root, mirror=mirror, offline=offline, report=report, say=lambda line: say(_printable(line)))
    except UserError as error:
        ours = "; the certificates of a proxy: SSL_CERT_FILE=FILE" if "CERTIFICATE_VERIFY_FAILED" in str(error) else ""
        raise UserError(f"{_printable(str(error))}{ours}") from None
    finally:
        data._copy, data._unpack = copy, unpack
        urllib.request.install_opener(opener)


def _too_large() -> str:
    return f"more than {LARGEST >> 20} MiB, and no file of a data set is that large"


def _printable(text: str) -> str:
    """Without what could steer a terminal: a server's words stand in messages."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _unpacked(archive: Path) -> int:
    """Bytes that a gzip file unpacks to, counted up to a little above LARGEST; of damage, `data` tells.

    A tar's headers count too, since they could fill the memory, and so does what a sparse file in it makes of nothing.
    """
    size = 0
    if archive.name.endswith(".gz.download"):
        with contextlib.suppress(OSError, *data._ARCHIVE_ERRORS):
            with gzip.open(archive) as content:
                while size <= LARGEST and (piece := content.read(data.CHUNK)):
                    size += len(piece)
            if size <= LARGEST and archive.name.endswith(".tar.gz.download"):
                with tarfile.open(archive, "r:gz") as tar:
                    size = max(size, *(member.size for member in tar))
    return size


# --- the opener ------------------------------------------------------------------------------------------------------


class _Watched(io.RawIOBase):
    """A connection's bytes, headers and all, that fail once they come too slowly or become too many."""

    def __init__(self, source: io.RawIOBase) -> None:
        self.source = source
        self.waited, self.came, self.came_ever = 0.0, 0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        start = time.monotonic()
        n = self.source.readinto(buffer)  # fails after data.TIMEOUT without a byte
        self.waited += time.monotonic() - start  # not the time that writing takes here
        self.came += n or 0
        self.came_ever += n or 0
        if self.came_ever > 2 * LARGEST:  # headers or frames of chunks; of content, `bounded_report` tells before
            raise OSError(_too_large())
        if n and self.waited >= PATIENCE:
            if self.came < SLOWEST * self.waited:
                raise OSError(f"less than {SLOWEST} bytes a second came for {PATIENCE:g} s")
            self.waited, self.came = 0.0, 0
        return n

    def close(self) -> None:
        self.source.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fp = io.BufferedReader(_Watched(self.fp.detach()))

    def begin(self) -> None:
        super().begin()
        if self.length is None:  # no number that can be, or of no meaning beside chunks
            del self.headers["Content-Length"]

    def read(self, amt: int | None = None) -> bytes:
        """What has come, up to `amt` bytes, so that progress is told and a broken connection costs none of it."""
        return super().read() if amt is None else self.read1(amt)


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _SecureConnection(http.client.HTTPSConnection):
    response_class = _Response


class _HTTP(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _HTTPS(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """As urllib's, 10 at the most, but not to ftp, nor from https to http, nor to a URL with a login."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        to = urllib.parse.urlsplit(newurl)
        if to.scheme not in ("http", "https") or (req.type, to.scheme) == ("https", "http") or "@" in to.netloc:
            where = f"{to.scheme}://{to.netloc.rpartition('@')[2]}"
            raise urllib.error.HTTPError(
                req.full_url, code, f"{msg}, from {req.type} to {where}, which is not followed", headers, fp
            )
        fp.close()  # urllib would read the page that comes with it, which may have no end
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Login(urllib.request.BaseHandler):
    """Sends user and password to what lies below a mirror's URL, and not to where that redirects."""

    def __init__(self, mirror: str | None, login: str) -> None:
        self.below = f"{(mirror or '').rstrip('/')}/"
        self.header = "Basic " + base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode() if login else ""

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        if self.header and request.full_url.startswith(self.below):
            request.add_unredirected_header("Authorization", self.header)
        return request

    https_request = http_request


def _parted(mirror: str | None) -> tuple[str | None, str]:
    """(the mirror without its login, USER:PASSWORD or ""). Raises UserError where the two cannot be told apart."""
    scheme, mark, rest = (mirror or "").partition("://")
    if not mark:
        return mirror, ""
    authority, slash, path = rest.partition("/")
    login, _, host = authority.rpartition("@")
    if "@" in path and "[" not in host and ":" in host and not host.rpartition(":")[2].isdecimal():
        raise UserError("the mirror's URL (--mirror or FFREPRO_MIRROR): a / in its user or password is written %2F")
    return f"{scheme}://{host}{slash}{path}", login
