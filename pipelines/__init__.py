"""One stage a file: read, call one function of the package, write. `dvc.yaml` says when each runs."""
