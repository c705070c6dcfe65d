"""Canonical files of a data set -> data/SET.safetensors: uint8 images and labels of both splits."""

import os
import sys

from ffrepro import data, errors, layout, lock, sources, switched_on
from ffrepro.progress import DownloadProgress, say


def main(name: str) -> None:
    project = layout.find()
    errors.require_known(f"no data set {name!r}", name, data.DATASETS)
    offline, mirror = switched_on("FFREPRO_OFFLINE"), os.environ.get("FFREPRO_MIRROR")
    with DownloadProgress() as progress:
        sources.fetch(name, project.downloads, mirror=mirror, offline=offline, report=progress.report, say=say)
    train, test = data.read(name, project.downloads)
    with lock.alone(project.lock(f"data-{name}"), f"preparing {name}"):  # as `verify` may, beside DVC
        data.save(train, test, project.data(name))


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
