"""Data sets through one door: sources, checksums, mirrors, splits.

`fetch` brings the canonical files, checked by the hash of their content; `read` turns them into uint8 tensors; `save` and
`load` keep those tensors as one safetensors file between DVC's stages. A file is trusted only after its hash matched:
pickles are opened after that and never before.
"""

import gzip
import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Self

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

    def to(self, device: "torch.device") -> Self:
        return self._make(t.to(device) for t in self)

    def __getitem__(self, rows):  # type: ignore[no-untyped-def, override]  # by rows, as a tensor is
        return self._make(t[rows] for t in self)


@dataclass(frozen=True)
class Remote:
    """One file of an official source, packed as published, and the content files that it holds.

    name: path below the mirror's root, in torchvision's layout. contents: path below the data folder -> "algorithm:digest"
    of the unpacked content.
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
    """1,797 digits of 8x8 pixels, embedded in scikit-learn; a fixed fifth, drawn once for all by key, is the test set."""
    import torch
    from sklearn.datasets import load_digits

    from ffrepro.randomness import generator

    pixels, labels = load_digits(return_X_y=True)  # 0 .. 16
    images = torch.from_numpy((pixels * 255 / 16).round().astype("uint8")).view(-1, 1, 8, 8)
    every = Split(images, torch.from_numpy(labels).long())
    order = torch.randperm(len(labels), generator=generator(0, "the digits' fixed split"))
    return every[order[:1437]], every[order[1437:]]


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
        (0.2023, 0.1994, 0.2010),  # mean of the per-image figures, as in the authors' code; per pixel: .2470 .2435 .2616
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
    missing = [path for path, digest in DATASETS[name].contents.items() if not _is_there(root / path, digest, say)]
    for remote in DATASETS[name].remotes:
        wanted = {path: digest for path, digest in remote.contents.items() if path in missing}
        if wanted:
            _fetch_remote(remote, wanted, root, mirror, offline, report, say)


def _is_there(path: Path, digest: str, say: Callable[[str], None]) -> bool:
    if not path.is_file():
        return False
    try:
        check(path, digest)
    except UserError as error:
        say(str(error))
        return False
    return True


def check(path: Path, digest: str) -> None:
    """Compare a file with "algorithm:digest". A file that differs is set aside as *.corrupt, and UserError raised."""
    algorithm, expected = digest.split(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found == expected:
        return
    aside = path.with_name(path.name.removesuffix(".part") + ".corrupt")
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    kind = "an HTML page instead of data" if start.startswith((b"<!doctype html", b"<html")) else "wrong or truncated"
    size = path.stat().st_size
    path.replace(aside)
    raise UserError(
        f"{aside.name.removesuffix('.corrupt')}: {kind} ({size} bytes): expected {algorithm} {expected}, "
        f"found {found}; set aside as {aside.name}"
    )


def _fetch_remote(
    remote: Remote,
    wanted: Mapping[str, str],
    root: Path,
    mirror: str | None,
    offline: bool,
    report: Report,
    say: Callable[[str], None],
) -> None:
    failures: list[str] = []
    for source in _sources(remote, wanted, mirror, offline):
        try:
            source(root, report)
            for path, digest in wanted.items():
                check(root / f"{path}.part", digest)
        except UserError as error:
            failures.append(str(error))
            say(str(error))
            continue
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"{remote.name}: cannot be written below {root}: {reason}; make room or choose another folder") from None
        for path in wanted:
            os.replace(root / f"{path}.part", root / path)
        return
    if offline:
        failures.append("official source not asked (offline)")
    remedy = "name a folder or URL that has it: --mirror or FFREPRO_MIRROR"
    raise UserError(f"{remote.name}: {' | '.join(failures)}; {remedy}")


Source = Callable[[Path, Report], None]  # leaves each wanted content as PATH.part below the root


def _sources(remote: Remote, wanted: Mapping[str, str], mirror: str | None, offline: bool) -> Iterator[Source]:
    def unpacked(base: str) -> Source:
        def bring(root: Path, report: Report) -> None:
            for path in wanted:
                _copy(f"{base}/{path}", root / f"{path}.part", report)

        return bring

    def packed(location: str) -> Source:
        def bring(root: Path, report: Report) -> None:
            archive = root / f"{remote.name}.download"
            _copy(location, archive, report)
            _unpack(archive, remote, wanted, root)

        return bring

    if mirror:
        base = mirror.rstrip("/")
        yield unpacked(base)
        if remote.name not in wanted:
            yield packed(f"{base}/{remote.name}")
    if not offline:
        yield packed(remote.url)


def _copy(location: str, target: Path, report: Report) -> None:
    """Bring a file or URL to `target`, going on where an earlier attempt over the network stopped."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if "://" not in location:
        try:
            source = open(location, "rb")  # noqa: SIM115  # told apart: missing source, full disk
        except OSError as error:
            raise UserError(f"{location}: {error.strerror}") from None
        with source, target.open("wb") as file:
            _stream(source, file, target.name, 0, os.fstat(source.fileno()).st_size, report)
        return
    have = target.stat().st_size if target.exists() else 0
    request = urllib.request.Request(location, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            resumed = response.status == 206
            length = response.headers.get("Content-Length")
            done = have if resumed else 0
            total = done + int(length) if length else None
            with target.open("ab" if resumed else "wb") as file:
                _stream(response, file, target.name, done, total, report)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is left to send
            raise UserError(f"{location}: the server answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise UserError(f"{location}: no connection ({error.reason})") from None
    except (TimeoutError, ConnectionError) as error:
        raise UserError(f"{location}: the connection broke off ({error}); run again to go on from there") from None


def _stream(source: IO[bytes], file: IO[bytes], name: str, done: int, total: int | None, report: Report) -> None:
    while chunk := source.read(CHUNK):
        file.write(chunk)
        done += len(chunk)
        report(name, done, total)
    if total is not None and done < total:
        raise UserError(f"{name}: broke off after {done} of {total} bytes; run again to go on from there")


def _unpack(archive: Path, remote: Remote, wanted: Mapping[str, str], root: Path) -> None:
    """Write each wanted content as PATH.part; the download is removed, or set aside when it is no such archive."""
    try:
        if remote.name.endswith(".tar.gz"):
            with tarfile.open(archive) as tar:
                for path in wanted:
                    member = tar.extractfile(path)
                    if member is None:
                        raise tarfile.ReadError(f"{path} is no file")
                    with _part(root, path) as file:
                        shutil.copyfileobj(member, file, CHUNK)
        elif remote.name.endswith(".gz"):
            (path,) = wanted
            with gzip.open(archive) as content, _part(root, path) as file:
                shutil.copyfileobj(content, file, CHUNK)
        else:
            (path,) = wanted
            archive.replace(root / f"{path}.part")
            return
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, KeyError) as error:
        with archive.open("rb") as file:
            page = file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))
        size = archive.stat().st_size
        aside = archive.with_name(Path(remote.name).name + ".corrupt")
        archive.replace(aside)
        kind = "an HTML page instead of data" if page else f"not the archive it should be ({error})"
        raise UserError(f"{archive.name.removesuffix('.download')}: {kind} ({size} bytes); set aside as {aside.name}") from None
    archive.unlink()


@contextmanager
def _part(root: Path, path: str) -> Iterator[IO[bytes]]:
    target = root / f"{path}.part"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        yield file


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
    return train[order[n:]], train[order[:n]]
