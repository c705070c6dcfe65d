"""Data sets through one door: sources, checksums, mirrors, splits.

`fetch` brings the canonical files, checked by the hash of their content; `read` turns them into uint8 tensors; `save`
and `load` keep those tensors as one safetensors file between DVC's stages. A file is trusted only after its hash
matched: pickles are opened after that and never before.
"""

import gzip
import hashlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from ffrepro.config import SHAPES
from ffrepro.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHUNK = 1 << 20  # bytes read at a time
TIMEOUT = 30  # seconds without a byte before a server counts as gone


class Split(NamedTuple):
    """images (N, C, H, W) uint8 and labels (N,) int64."""

    images: "Tensor"
    labels: "Tensor"

    def to(self, device: "torch.device") -> "Split":
        return Split(self.images.to(device), self.labels.to(device))

    def rows(self, rows: "Tensor | slice") -> "Split":
        return Split(self.images[rows], self.labels[rows])

    def __getitem__(self, rows: "Tensor | slice") -> "Split":  # type: ignore[override]  # not by field, as tuples are
        return self.rows(rows)


@dataclass(frozen=True)
class Remote:
    """One file of an official source, packed as published, and the content files that it holds.

    name: path below the mirror's root, in torchvision's layout. contents: path below the data folder ->
    "algorithm:digest" of the unpacked content.
    """

    name: str
    url: str
    contents: Mapping[str, str]


@dataclass(frozen=True)
class DataSet:
    """What a data set is made of, and the normalisation that the authors' code uses for it."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[[Path], tuple[Split, Split]]
    remotes: tuple[Remote, ...] = ()
    licence: str = ""
    contents: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        merged = {path: digest for remote in self.remotes for path, digest in remote.contents.items()}
        object.__setattr__(self, "contents", merged)


# --- reading ---------------------------------------------------------------------------------------------------------


def _read_digits(_: Path) -> tuple[Split, Split]:
    """1,797 digits of 8x8 pixels, embedded in scikit-learn; a fixed fifth, drawn once for all by key, is for tests."""
    import torch
    from sklearn.datasets import load_digits

    from ffrepro.randomness import generator

    pixels, labels = load_digits(return_X_y=True)  # 0 .. 16
    images = torch.from_numpy((pixels * 255 / 16).round().astype("uint8")).view(-1, 1, 8, 8)
    every = Split(images, torch.from_numpy(labels).long())
    order = torch.randperm(len(labels), generator=generator(0, "the digits' fixed split"))
    return every.rows(order[:1437]), every.rows(order[1437:])


def _read_idx(folder: str) -> Callable[[Path], tuple[Split, Split]]:
    def read(root: Path) -> tuple[Split, Split]:
        import torch
        from torchvision.datasets.mnist import read_image_file, read_label_file

        def split(part: str) -> Split:
            images = read_image_file(str(root / folder / f"{part}-images-idx3-ubyte"))
            labels = read_label_file(str(root / folder / f"{part}-labels-idx1-ubyte"))
            return Split(images.unsqueeze(1), labels.to(torch.int64))

        return split("train"), split("t10k")

    return read


def _read_svhn(root: Path) -> tuple[Split, Split]:
    """The cropped 32x32 digits. SVHN writes the digit 0 as label 10."""
    import torch
    from scipy.io import loadmat

    def split(part: str) -> Split:
        content = loadmat(root / f"{part}_32x32.mat")
        images = torch.from_numpy(content["X"].transpose(3, 2, 0, 1).copy())
        return Split(images, torch.from_numpy(content["y"].astype("int64")).flatten() % 10)

    return split("train"), split("test")


def _read_cifar10(root: Path) -> tuple[Split, Split]:
    import torch
    from torchvision.datasets import CIFAR10

    def split(train: bool) -> Split:
        content = CIFAR10(str(root), train=train)
        return Split(torch.from_numpy(content.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(content.targets))

    return split(True), split(False)


def _idx_remotes(folder: str, base: str, digests: Mapping[str, str]) -> tuple[Remote, ...]:
    return tuple(
        Remote(f"{folder}/{name}.gz", f"{base}{name}.gz", {f"{folder}/{name}": f"sha256:{digest}"})
        for name, digest in digests.items()
    )


# Digests: CIFAR-10 and MNIST, SHA-256 of files whose MD5 is torchvision's; Fashion-MNIST, of Debian's package
# dataset-fashion-mnist 0.0~git20200523; SVHN, torchvision's MD5 (its files were not at hand to take a SHA-256 of).
DATASETS: Mapping[str, DataSet] = {
    "digits": DataSet((0.3058,), (0.3762,), _read_digits, licence="CC BY 4.0, UCI; embedded in scikit-learn"),
    "mnist": DataSet(
        (0.1307,),
        (0.3081,),
        _read_idx("MNIST/raw"),
        _idx_remotes(
            "MNIST/raw",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            {
                "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            },
        ),
        "CC BY-SA 3.0",
    ),
    "fashion-mnist": DataSet(
        (0.2860,),
        (0.3530,),
        _read_idx("FashionMNIST/raw"),
        _idx_remotes(
            "FashionMNIST/raw",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            {
                "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            },
        ),
        "MIT",
    ),
    "svhn": DataSet(
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        _read_svhn,
        tuple(
            Remote(name, f"http://ufldl.stanford.edu/housenumbers/{name}", {name: f"md5:{digest}"})
            for name, digest in {
                "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
                "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
            }.items()
        ),
        "non-commercial use only",
    ),
    "cifar10": DataSet(
        (0.4914, 0.4822, 0.4465),
        # mean of the per-image figures, as in the authors' code; over all pixels it would be .2470 .2435 .2616
        (0.2023, 0.1994, 0.2010),
        _read_cifar10,
        (
            Remote(
                "cifar-10-python.tar.gz",
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                {
                    f"cifar-10-batches-py/{name}": f"sha256:{digest}"
                    for name, digest in {
                        "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
                        "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
                        "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
                        "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
                        "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
                        "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
                        "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
                    }.items()
                },
            ),
        ),
        "no licence stated; cite Krizhevsky 2009",
    ),
}


# --- fetching --------------------------------------------------------------------------------------------------------

Report = Callable[[str, int, int | None], None]  # (file, bytes so far, bytes in all if known)


def fetch(
    name: str,
    root: Path,
    *,
    mirror: str | None = None,
    offline: bool = False,
    report: Report = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Make sure that every file of a data set lies below `root`, verified.

    Sources in order: already there; `mirror` (a folder or a base URL in torchvision's layout, files packed or
    unpacked); the official URLs, unless `offline`. Raises UserError with one line that says what went wrong with each.
    """
    for remote in DATASETS[name].remotes:
        try:
            _fetch_remote(remote, root, mirror, offline, report, say)
        except OSError as error:  # of this disk: a source's errors are UserErrors by now
            reason = error.strerror or error
            remedy = "make room there or name another folder: FFREPRO_DATA"
            raise UserError(_line(f"{remote.name}: cannot be kept below {root}: {reason}; {remedy}")) from None


class _AbsentError(UserError):
    """A source is sound but has no such file."""


def _fetch_remote(
    remote: Remote, root: Path, mirror: str | None, offline: bool, report: Report, say: Callable[[str], None]
) -> None:
    failures: list[str] = []
    wanted = dict(remote.contents)
    for path, digest in remote.contents.items():
        if (root / path).is_file():
            try:
                check(root / path, digest)
                del wanted[path]
            except UserError as error:
                failures.append(_line(f"{root / path}: {error}"))
                say(failures[-1])
    if not wanted:
        return

    archive = root / f"{remote.name}.download"
    for location, packed in _sources(remote, mirror, offline):
        source = location
        try:
            if packed:
                _copy(source, archive, report)
                _unpack(archive, wanted, root)
            for path, digest in wanted.items():
                part = root / f"{path}.part"
                if not packed:
                    source = f"{location}/{path}"
                    _copy(source, part, report)
                check(part, digest)
        except UserError as error:
            failures.append(_line(f"{source}: {error}"))
            if packed or not isinstance(error, _AbsentError):  # a mirror need not have both forms
                say(failures[-1])
        else:
            for path in wanted:
                (root / f"{path}.part").replace(root / path)
            archive.unlink(missing_ok=True)  # a part of it, from a source that broke off
            return

    if offline:
        failures.append("official source not asked (offline)")
    remedy = "name a folder or URL that has it: --mirror or FFREPRO_MIRROR"
    raise UserError(_line(f"{remote.name}: {' | '.join(failures)}; {remedy}"))


def _sources(remote: Remote, mirror: str | None, offline: bool) -> list[tuple[str, bool]]:
    """(location, whether the packed file is there; else its contents lie below) in the order of asking."""
    sources = []
    if mirror:
        base = mirror.rstrip("/")
        if remote.name not in remote.contents:  # not packed at all, like SVHN's: one form
            sources.append((base, False))
        sources.append((f"{base}/{remote.name}", True))
    if not offline:
        sources.append((remote.url, True))
    return sources


def _line(text: str) -> str:
    """One line: libraries and servers put line breaks into their reasons."""
    return " ".join(text.split())


def check(path: Path, digest: str) -> None:
    """Compare a file with "algorithm:digest". A file that differs is set aside as *.corrupt, and UserError raised."""
    found = _digest(path, digest.split(":")[0])
    if found != digest:
        raise _set_aside(path, "wrong or truncated", f"expected {digest}, found {found}")


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _set_aside(path: Path, trouble: str, facts: str) -> UserError:
    """Keep a bad file as *.corrupt, where nothing takes it for data; returns the error that says so."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            trouble = "an HTML page instead of data"
    aside = path.with_name(path.name.removesuffix(".part").removesuffix(".download") + ".corrupt")
    path.replace(aside)
    return UserError(f"{trouble} ({size} bytes): {facts}; set aside as {aside}")


# What reading from a source may raise. Files on this disk raise OSError too, so the two are never in one `try`.
_SOURCE_ERRORS = (OSError, http.client.HTTPException, ValueError)
_ARCHIVE_ERRORS = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, LookupError, ValueError, RecursionError)


def _copy(location: str, target: Path, report: Report) -> None:
    """Bring a file or URL to `target`, going on where an earlier attempt over the network stopped."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if "://" not in location:
        try:
            source = Path(location).open("rb")  # noqa: SIM115
            size = Path(location).stat().st_size
        except FileNotFoundError:
            raise _AbsentError("no such file") from None
        except _SOURCE_ERRORS as error:
            raise UserError(f"cannot be read ({getattr(error, 'strerror', error)})") from None
        with source, target.open("wb") as file:
            _stream(source, file, target.name, 0, size, report)
        return

    if not location.lower().startswith(("http://", "https://")):
        raise UserError("neither a folder nor an http or https URL")
    have = target.stat().st_size if target.exists() else 0
    try:
        request = urllib.request.Request(location, headers={"Range": f"bytes={have}-"} if have else {})
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing is left to send
            return
        kind = _AbsentError if error.code in (403, 404, 410) else UserError  # 403: S3 for what is not there
        raise kind(f"the server answered {error.code} {error.reason}") from None
    except _SOURCE_ERRORS as error:
        raise UserError(f"no connection ({getattr(error, 'reason', error)})") from None
    with response:
        resumed = response.status == 206  # a server may ignore Range and send the whole
        done = have if resumed else 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        with target.open("ab" if resumed else "wb") as file:
            _stream(response, file, target.name, done, total, report)


def _stream(source: IO[bytes], file: IO[bytes], name: str, done: int, total: int | None, report: Report) -> None:
    def broke_off(why: object) -> UserError:
        return UserError(f"broke off after {done} of {total or 'unknown'} bytes ({why}); run again to go on")

    while True:
        try:
            chunk = source.read(CHUNK)
        except _SOURCE_ERRORS as error:
            raise broke_off(error) from None
        if not chunk:
            break
        file.write(chunk)
        done += len(chunk)
        report(name, done, total)
    if total is not None and done < total:
        raise broke_off("no more came")


def _unpack(archive: Path, wanted: Mapping[str, str], root: Path) -> None:
    """Write each wanted content as PATH.part; the download is removed, or set aside when it is no such archive."""
    path = next(iter(wanted))
    packed = archive.name.removesuffix(".download")
    if not packed.endswith(".gz"):
        archive.replace(root / f"{path}.part")
        return
    try:
        if packed.endswith(".tar.gz"):
            with tarfile.open(archive, "r:gz") as tar:
                for path in wanted:
                    member = tar.getmember(path)
                    content = tar.extractfile(member) if member.isreg() else None  # a link could lead anywhere
                    if content is None:
                        raise tarfile.ReadError(f"{path} is no file")
                    _write(content, root / f"{path}.part")
        else:
            with gzip.open(archive) as unpacked:
                _write(unpacked, root / f"{path}.part")
    except _ARCHIVE_ERRORS as error:
        facts = f"expected {path} of {wanted[path]} in it, found {_digest(archive, 'sha256')}"
        raise _set_aside(archive, f"not the archive it should be ({error})", facts) from None
    archive.unlink()


def _write(content: IO[bytes] | gzip.GzipFile, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file, CHUNK)


# --- tensors between stages ------------------------------------------------------------------------------------------


def read(name: str, root: Path) -> tuple[Split, Split]:
    """Training and test split from files that `fetch` has verified, their shapes checked."""
    train, test = DATASETS[name].read(root)
    shape, n_train, n_test, _ = SHAPES[name]
    for split, n in ((train, n_train), (test, n_test)):
        if split.images.shape != (n, *shape):
            raise UserError(f"{name}: {tuple(split.images.shape)} images, expected {(n, *shape)}")
    return train, test


def save(train: Split, test: Split, path: Path) -> None:
    """Both splits as one safetensors file, written under a temporary name first."""
    from ffrepro.record import write_tensors

    tensors = {f"{part}.{key}": t for part, s in (("train", train), ("test", test)) for key, t in s._asdict().items()}
    write_tensors(tensors, path)


def load(path: Path) -> tuple[Split, Split]:
    """Both splits as `save` wrote them, compared with the hash that was written with them."""
    from ffrepro.record import read_tensors

    tensors = read_tensors(path)
    return (
        Split(tensors["train.images"], tensors["train.labels"]),
        Split(tensors["test.images"], tensors["test.labels"]),
    )


def held_out(train: Split, n: int) -> tuple[Split, Split]:
    """Part `n` training images off, the same ones for every seed: (the rest, the held-out ones)."""
    import torch

    from ffrepro.randomness import generator

    order = torch.randperm(len(train.labels), generator=generator(0, "held-out split"))
    return train.rows(order[n:]), train.rows(order[:n])
