"""A run's files as an RO-Crate (Process Run Crate) for a repository, and a codecheck.yml to fill in."""

from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ffrepro import config, record
from ffrepro.errors import UserError
from ffrepro.evidence import Run, network
from ffrepro.layout import RELEASED

PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
LICENCE = "https://spdx.org/licenses/Apache-2.0"
PAPER = "https://arxiv.org/abs/2311.18130"
FILES = {  # of a run's folder: its media type, and what it is
    "record.json": ("application/json", "record of the training: parameters, hashes, chain over epochs, environment"),
    "metrics.json": ("application/json", "test accuracies, with the hashes of what they were made from"),
    "history.csv": ("text/csv", "losses, separations and throughput of each epoch"),
    "weights.safetensors": ("application/octet-stream", "trained weights"),
    RELEASED: ("application/octet-stream", "trained weights, rounded to float16 to publish them"),
    "goodness.safetensors": ("application/octet-stream", "goodness of every test image under every label, per block"),
}


def export(runs: list[Run], folder: Path) -> None:
    """Write the runs of one row as a crate into an empty or new folder, with a codecheck.yml beside its metadata.

    Raises UserError when the folder holds something, when released weights are another network's, or when the extra
    `rocrate` is not installed.
    """
    if find_spec("rocrate") is None:
        raise UserError("export needs rocrate, the extra of that name: `nox -s dev` installs it")
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise UserError(f"{config.plain(folder)}: cannot be read: {error.strerror}; give a new folder") from None
    if taken:
        raise UserError(f"{folder}: not an empty folder; give a new one")
    for run in runs:  # all else in a run's folder has been read already
        if (run.folder / RELEASED).exists():
            network(run, torch.device("cpu"), released=True)
    from rocrate.model.contextentity import ContextEntity
    from rocrate.rocrate import ROCrate

    name, row = runs[0].facts["experiment"], runs[0].row
    crate = ROCrate()
    crate.name = f"ffrepro {name}: {row.title}"
    count = f"{len(runs)} Forward-Forward training{'s' * (len(runs) > 1)}"
    crate.description = f"{count} of {name} by ffrepro, each with its record and metrics."
    crate.license = LICENCE
    crate.datePublished = max(datetime.fromisoformat(run.facts["ended"]) for run in runs)
    profile = crate.add(ContextEntity(crate, PROFILE, {"@type": "CreativeWork", "name": "Process Run Crate"}))
    crate.root_dataset["conformsTo"] = profile
    crate.root_dataset["citation"] = crate.add(
        ContextEntity(crate, PAPER, {"@type": "ScholarlyArticle", "name": "The Trifecta"})
    )
    experiment = crate.add_file(
        runs[0].folder.parent / "experiment.json",
        f"{name}/experiment.json",
        properties={"encodingFormat": "application/json", "description": "the row's parameters"},
    )
    for run in runs:
        _add_run(crate, run, experiment)
    try:
        crate.write(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None
    record.write_text(codecheck(runs), folder / "codecheck.yml")


def _add_run(crate: Any, run: Run, experiment: Any) -> None:
    from rocrate.model.contextentity import ContextEntity

    facts, name = run.facts, f"{run.facts['experiment']}/{run.facts['seed']}"
    software = crate.add(
        ContextEntity(
            crate,
            f"#ffrepro-{facts['source'][:12]}",
            {
                "@type": "SoftwareApplication",
                "name": "ffrepro",
                "softwareVersion": facts["ffrepro"],
                "identifier": f"sha256:{facts['source']}",
            },
        )
    )
    data = crate.add(
        ContextEntity(
            crate,
            f"#data-{facts['data'][:12]}",
            {
                "@type": "Dataset",
                "name": f"{run.row.data.name}, training split",
                "identifier": f"sha256:{facts['data']}",
            },
        )
    )
    results = [
        crate.add_file(
            run.folder / file,
            f"{name}/{file}",
            properties={"encodingFormat": media, "description": what, "sha256": record.file_hash(run.folder / file)},
        )
        for file, (media, what) in FILES.items()
        if (run.folder / file).exists()
    ]
    environment = ", ".join(f"{key} {value}" for key, value in facts["environment"].items())
    crate.add_action(
        software,
        identifier=f"#train-{name.replace('/', '-')}",
        object=[experiment, data],
        result=results,
        properties={
            "name": f"training and evaluation of {name}",
            "startTime": facts["started"],
            "endTime": facts["ended"],
            "description": f"seed {facts['seed']}; {environment}",
            "actionStatus": "http://schema.org/CompletedActionStatus",
        },
    )


def codecheck(runs: list[Run]) -> str:
    """A codecheck.yml with what is known: the manifest; who checks, and when, is for the checker to say."""
    name = runs[0].facts["experiment"]
    lines = [
        "---",
        "version: https://codecheck.org.uk/spec/config/1.0/",
        "paper:",
        '  title: "The Trifecta: Three simple techniques for training deeper Forward-Forward networks"',
        "  authors:",
        "    - name: T. Dooms",
        "    - name: I. J. Tsang",
        "    - name: J. Oramas",
        f"  reference: {PAPER}",
        "manifest:",
    ]
    for run in runs:
        accuracy = f"{run.metrics['accuracy']:.2f} %"
        lines += [
            f"  - file: {name}/{run.facts['seed']}/metrics.json",
            f'    comment: "test accuracy of {name}, seed {run.facts["seed"]}: {accuracy}"',
        ]
    command = f"ffrepro verify {name}, and ffrepro audit {name}/SEED"
    lines += [
        "codechecker:",
        "  - name: # yours",
        "    ORCID: # yours",
        f"summary: # what was repeated, and what came of it ({command})",
        "repository: # where this folder is published",
        "check_time: # when",
        "certificate: # its number",
        "report: # where the report is published",
        "",
    ]
    return "\n".join(lines)
