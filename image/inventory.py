"""While the image is built: write down what it holds, image/identity.json and a CycloneDX SBOM beside it.

python inventory.py VENV REVISION BASE
"""

import hashlib
import json
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packageurl import PackageURL

HERE = Path(__file__).parent


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def content(package: Distribution) -> str:
    """SHA-256 of a package's RECORD, which has the SHA-256 of each of its files: what is installed, not what was
    downloaded."""
    return hashlib.sha256((package.read_text("RECORD") or "").encode()).hexdigest()


def main(venv: str, revision: str, base: str) -> None:
    python = f"{venv}/bin/python"
    site = output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    packages = {
        package.name: {"version": package.version, "record": content(package)} for package in distributions(path=[site])
    }
    sbom = json.loads(output(f"{sys.prefix}/bin/cyclonedx-py", "environment", "--output-reproducible", python))
    for component in sbom["components"]:
        if component["name"] in packages:
            found = {"name": "ffrepro:record-sha256", "value": packages[component["name"]]["record"]}
            component["properties"] = [*component.get("properties", []), found]
    for line in output("dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n").splitlines():
        name, version, architecture = line.split()
        purl = PackageURL("deb", "debian", name, version, {"arch": architecture}).to_string()
        sbom["components"].append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    text = json.dumps(sbom, indent=1) + "\n"
    (HERE / "sbom.cdx.json").write_text(text)
    identity = {
        "revision": revision,
        "base": base.rpartition("/")[2],  # without the host of a registry
        "sbom": hashlib.sha256(text.encode()).hexdigest(),
        "packages": dict(sorted(packages.items())),
    }
    (HERE / "identity.json").write_text(json.dumps(identity, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
