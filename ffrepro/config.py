"""params.yaml as frozen Pydantic models: checked once, here, and trusted everywhere else.

A row of `experiments` states only what differs from `defaults`; `load` merges the two and validates the whole file, so
every error is found before anything runs. There are no default values in this module: a parameter's value stands in
params.yaml, its meaning and its limits stand here.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from ffrepro.errors import UserError

Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=40)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Seeds = Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)]

# (channels, height, width), training images, test images, classes: what the cross-field checks need to know of a data set.
SHAPES: Mapping[str, tuple[tuple[int, int, int], int, int, int]] = {
    "digits": ((1, 8, 8), 1437, 360, 10),
    "mnist": ((1, 28, 28), 60_000, 10_000, 10),
    "fashion-mnist": ((1, 28, 28), 60_000, 10_000, 10),
    "svhn": ((3, 32, 32), 73_257, 26_032, 10),
    "cifar10": ((3, 32, 32), 50_000, 10_000, 10),
}


class Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    name: Literal["digits", "mnist", "fashion-mnist", "svhn", "cifar10"] = Field(description="The data set.")
    held_out: int = Field(
        ge=0, description="Training images kept aside, to choose by; their accuracy is a column of the history."
    )


class Augmentation(Section):
    crop: int = Field(ge=0, le=16, description="Zero padding in pixels, before a random crop to the image's size.")
    rotation: float = Field(ge=0, le=180, description="Largest angle of the random rotation, in degrees.")
    flip: bool = Field(description="Mirror left and right with probability 1/2.")


class NetworkParams(Section):
    blocks: str = Field(
        pattern=r"^[1-9]\d{0,3}P?( [1-9]\d{0,3}P?)*$",
        description="Channels out of each block, first to last; P where the block ends with 2x2 max pooling.",
    )
    norm: Literal["batch", "layer"] = Field(description="What stands before each convolution.")
    label_patch: int = Field(
        ge=1,
        le=64,
        description="Side in pixels of the square patches in which a label's plane starts out constant; 1: as the authors' does.",
    )

    def parsed(self) -> list[tuple[int, bool]]:
        """[(channels out, whether it pools), ...]."""
        return [(int(block.rstrip("P")), block.endswith("P")) for block in self.blocks.split()]


class Training(Section):
    update: Literal["overlapping", "layer-wise"] = Field(
        description="Windows of two blocks that alternate from step to step, or every block by itself."
    )
    loss: Literal["symba", "threshold"] = Field(description="SymBa's loss or the original one.")
    alpha: float = Field(gt=0, le=1000, description="SymBa's slope; read by `loss: symba`.")
    threshold: float = Field(gt=0, le=1000, description="The original loss's threshold; read by `loss: threshold`.")
    hardness: float = Field(
        ge=0, le=100, description="How strongly wrong labels are drawn by their goodness; 0: uniformly, as the authors do."
    )
    epochs: int = Field(ge=1, le=100_000, description="Passes over the training images; the last one counts.")
    batch: int = Field(ge=2, le=65_536, description="Images a step; each appears with its label and with a wrong one.")
    lr: float = Field(gt=0, le=10, description="Adam's learning rate at the start.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        description="How the learning rate goes on: stays, or falls to 0 in a straight line or half a cosine, step by step."
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        description="Type of the convolutions' arithmetic (autocast, without loss scaling)."
    )


class Evaluation(Section):
    vote: str = Field(
        pattern=r"^(last|last-[2-9]|all)$",
        description="The blocks whose goodness is averaged to predict: the last, the last 2 to 9, or all.",
    )


class VerdictRule(Section):
    reference_seeds: Seeds = Field(
        description="The seeds that `ffrepro reference` trains for the committed reference: others than the row's own."
    )
    margin: float = Field(gt=0, le=100, description="Largest difference from the target that counts as equal, in points.")
    alpha: float = Field(
        gt=0, lt=0.5, description="Error rate of each of the two one-sided tests; their interval has level 1 - 2 alpha."
    )


class Experiment(Section):
    """One row: everything that decides its numbers, and what it must be compared with."""

    title: str = Field(min_length=1, max_length=120, description="What it is, in a few words, for tables.")
    requires: Literal["cuda", "cpu"] = Field(description="What it takes to finish within a day.")
    seeds: Seeds = Field(description="One training each; all of them count.")
    data: Data
    augmentation: Augmentation
    network: NetworkParams
    training: Training
    evaluation: Evaluation
    verdict: VerdictRule

    @model_validator(mode="after")
    def _combinations(self) -> "Experiment":
        for field, given, allowed in self._impossible():
            raise PydanticCustomError(
                "combination", "{allowed}", {"field": field, "given": given, "allowed": allowed}
            )
        return self

    def _impossible(self) -> Iterator[tuple[str, object, str]]:
        (_, height, width), images, _, _ = SHAPES[self.data.name]
        blocks = self.network.parsed()
        pools = sum(pool for _, pool in blocks)
        if len(set(self.seeds)) < len(self.seeds):
            yield "seeds", list(self.seeds), "each seed once"
        if shared := set(self.seeds) & set(self.verdict.reference_seeds):
            yield "verdict.reference_seeds", sorted(shared), "seeds that are not the row's own, to be independent of them"
        if min(height, width) >> pools < 1:
            most = min(height, width).bit_length() - 1
            yield (
                "network.blocks",
                self.network.blocks,
                f"at most {most} poolings (P), or the {height}x{width} images of {self.data.name} shrink to nothing",
            )
        if self.training.update == "overlapping" and len(blocks) < 2:
            yield "training.update", self.training.update, "at least 2 blocks for overlapping updates, or layer-wise"
        if self.data.held_out >= images:
            yield "data.held_out", self.data.held_out, f"fewer than the {images} training images of {self.data.name}"
        elif self.training.batch > images - self.data.held_out:
            yield (
                "training.batch",
                self.training.batch,
                f"at most the {images - self.data.held_out} images left to train on (a partial batch is dropped)",
            )
        if self.augmentation.crop >= min(height, width):
            yield "augmentation.crop", self.augmentation.crop, f"less than the image's {min(height, width)} pixels"
        if height % self.network.label_patch or width % self.network.label_patch:
            yield "network.label_patch", self.network.label_patch, f"a divisor of the image's {height}x{width} pixels"
        vote = self.evaluation.vote
        if vote.startswith("last-") and int(vote.removeprefix("last-")) > len(blocks):
            yield "evaluation.vote", vote, f"at most as many blocks as the network has, {len(blocks)}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return SHAPES[self.data.name][0]

    @property
    def classes(self) -> int:
        return SHAPES[self.data.name][3]

    @property
    def steps(self) -> int:
        """Steps an epoch; the last partial batch is dropped."""
        return (SHAPES[self.data.name][1] - self.data.held_out) // self.training.batch


class Params(Section):
    """The whole of params.yaml, every row with its defaults filled in."""

    seeds: Seeds = Field(description="The seeds of every row that does not name its own.")
    experiments: dict[Name, Experiment] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """Rows as differences: lay each over `defaults`, section by section, and keep what is unknown for validation."""
        if not isinstance(given, dict) or not isinstance(given.get("experiments"), dict):
            return given
        defaults = given.get("defaults")
        if not isinstance(defaults, dict):
            return given
        base = {"seeds": given["seeds"], **defaults} if "seeds" in given else defaults
        rows = {name: _laid_over(base, {} if row is None else row) for name, row in given["experiments"].items()}
        return {**{k: v for k, v in given.items() if k != "defaults"}, "experiments": rows}


def _laid_over(base: Any, row: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(row, dict)):
        return row
    return {key: _laid_over(base.get(key), row[key]) if key in row else base[key] for key in {**base, **row}}


def load(path: Path) -> Params:
    """Read and check the whole file. Raises UserError with one line per mistake."""
    document = read_yaml(path)
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        lines = dict.fromkeys(f"{path.name}: {_line(e, document)}" for e in error.errors(include_url=False))
        raise UserError("\n".join(lines)) from None


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 file, as DVC reads it. Raises UserError in one line when it is missing, not UTF-8 or not YAML."""
    from ruamel.yaml import YAML, YAMLError  # YAML 1.2, as DVC reads it: 1e-3 is a number, yes is a word

    try:
        return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.name}: no such file; expected in the project's folder, {path.parent}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "somewhere"
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"{path.name}: {where}: not valid YAML 1.2: {problem}") from None


def _line(error: ErrorDetails, document: Any) -> str:
    """`experiments.digits.training.lr: given 'fast', allowed: a valid number`, for one of Pydantic's errors."""
    location = [part for part in error["loc"] if part != "[key]"]
    context = error.get("ctx", {})
    if error["type"] == "combination":
        location += context["field"].split(".")
        return f"{_written_at(location, document)}: given {context['given']!r}; allowed: {context['allowed']}"
    field = _written_at(location, document)
    if error["type"] == "missing":
        return f"{field}: missing; give it there or in defaults"
    if error["type"] == "extra_forbidden":
        return f"{field}: unknown key; {_nearest(location)}"
    allowed = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if "pattern" in context:
        allowed = f"text like {_pattern_examples(location)} (pattern {context['pattern']})"
    return f"{field}: given {_shortened(error['input'])}; allowed: {allowed}"


def _written_at(location: list[Any], document: Any) -> str:
    """Where a person must look: in the row when the row states the field, else in `defaults`."""
    if len(location) > 2 and location[0] == "experiments":
        place = document["experiments"][location[1]]
        for part in location[2:]:
            if not isinstance(place, dict) or part not in place:
                return ".".join(map(str, ["defaults", *location[2:]])) if location[2] != "seeds" else "seeds"
            place = place[part]
    return ".".join(map(str, location))


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(location: list[Any]) -> str:
    model: Any = Params
    for part in location[:-1]:
        if model is Params and part == "experiments":
            model = Experiment
        elif part in getattr(model, "model_fields", {}):
            model = model.model_fields[part].annotation
    known = [*model.model_fields, *(["defaults"] if model is Params else [])]
    near = difflib.get_close_matches(str(location[-1]), known, 1)
    return (f"did you mean {near[0]}? " if near else "") + f"allowed: {', '.join(known)}"


def _pattern_examples(location: list[Any]) -> str:
    examples = {"blocks": "'64 128P 128'", "vote": "'last', 'last-3' or 'all'"}
    return examples.get(str(location[-1]), "'cifar10-quick'")


def experiment(params: Params, name: str) -> Experiment:
    """The row of that name. Raises UserError that lists the rows there are."""
    if name not in params.experiments:
        near = difflib.get_close_matches(name, params.experiments, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"no experiment {name!r} in params.yaml; {hint}there are: {', '.join(params.experiments)}")
    return params.experiments[name]


def canonical(model: BaseModel) -> str:
    """The model as JSON text that is the same for equal models: the form that is written, tracked and hashed."""
    return json.dumps(model.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"


def training_parameters(row: Experiment) -> str:
    """The part of a row that a training depends on, as text: what checkpoints and records are compared by."""
    sections = row.model_dump(mode="json", include={"data", "augmentation", "network", "training"})
    return json.dumps(sections, sort_keys=True)


def read_experiment(path: Path) -> Experiment:
    """A row as `canonical` wrote it. Raises UserError when the file is missing or is not one."""
    try:
        return Experiment.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` writes it in its check stage") from None
    except ValidationError as error:
        raise UserError(f"{path}: not a checked row ({error.error_count()} errors); delete it and run again") from None


def graph(params: Params) -> dict[str, dict[str, dict[str, Any]]]:
    """graph.yaml: every (row, seed) as `row-seed`, the names of DVC's train and evaluate stages."""
    return {
        "runs": {
            f"{name}-{seed}": {"experiment": name, "seed": seed, "data": row.data.name}
            for name, row in params.experiments.items()
            for seed in row.seeds
        }
    }


def json_schema() -> str:
    """JSON Schema of params.yaml for editors: in `defaults` and in a row every field may be left out."""
    schema = Params.model_json_schema()
    for definition in schema["$defs"].values():
        definition.pop("required", None)
    schema["properties"]["defaults"] = {"$ref": "#/$defs/Experiment"}
    rows = schema["properties"]["experiments"]["patternProperties"]
    for pattern, row in rows.items():
        rows[pattern] = {"anyOf": [row, {"type": "null"}]}
    schema["required"] = ["seeds", "defaults", "experiments"]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "ffrepro params.yaml"
    return json.dumps(schema, indent=2) + "\n"
