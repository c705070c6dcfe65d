"""Files that jobs have made -> dvc.lock: what `dvc commit --force STAGE...` does, reading and writing that file once.

DVC's command does so for every stage, which takes a second each, and longer the more there are.
"""

import sys

from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo

from ffrepro import errors


def main(*names: str) -> None:
    errors.end_undisturbed()  # DVC writes in place; it takes seconds
    try:
        _note(names)
    except DvcException as error:
        raise errors.UserError(str(error)) from None


def _note(names: tuple[str, ...]) -> None:
    with Repo() as repo, lock_repo(repo):
        stages = [stage for stage in repo.index.stages if stage.addressing in names]
        unknown = sorted(set(names) - {stage.addressing for stage in stages})
        if unknown or not stages:
            given = repr(unknown[0]) if unknown else "nothing"
            raise errors.UserError(f"given {given}; allowed: stages; `dvc stage list` names them")
        for stage in stages:
            stage.save(run_cache=False)  # a second store of the same, for half the time
            stage.commit(relink=False)
        stages[0].dvcfile.dump_stages(stages, update_pipeline=False)


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
