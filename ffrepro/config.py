"""params.yaml as frozen Pydantic models: checked once, here, and trusted everywhere else.

A row of `experiments` states only what differs from `defaults`, or from the row that it is `like`; `load` lays them
over one another and validates the whole file, so every error is found before anything runs. There are no default values
in this module: a parameter's value stands in params.yaml, its meaning and its limits stand here, and the messages say
what is allowed by the limits.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ffrepro import errors, record
from ffrepro.errors import UserError


def _distinct(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """A list whose items are right and all different, or one error for the whole of it instead of one an item."""
    try:
        values = check(tuple(given) if isinstance(given, list) else given)
    except ValidationError:
        values = ()
    if not values or len(set(values)) < len(values):
        raise PydanticCustomError("distinct", "a list of different whole numbers")
    return values


Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=50, examples=["cifar10-quick"])]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Seeds = Annotated[
    tuple[Seed, ...], Field(min_length=1, json_schema_extra={"uniqueItems": True}), WrapValidator(_distinct)
]
PlainZero = AfterValidator(abs)
"""For numbers from 0 up: -0.0 becomes 0.0, for equal models to give equal text."""

# (channels, height, width), training images, test images, classes: what the cross-field checks need of a data set.
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
    rotation: Annotated[float, PlainZero] = Field(
        ge=0, le=180, description="Largest angle of the random rotation, in degrees."
    )
    flip: bool = Field(description="Mirror left and right with probability 1/2.")


class NetworkParams(Section):
    blocks: str = Field(
        pattern=r"^[1-9][0-9]{0,3}P?( [1-9][0-9]{0,3}P?)*$",
        examples=["64 128P 128"],
        description="Channels out of each block, first to last; P where the block ends with 2x2 max pooling. "
        "With `norm: length`, units of each layer.",
    )
    norm: Literal["batch", "layer", "length"] = Field(
        description="What stands before each convolution; length: the original network of fully connected layers, "
        "whose activations are divided by their length."
    )
    label_patch: int = Field(
        ge=1,
        le=64,
        description="Side in pixels of the square patches in which a label's plane starts out constant, the planes "
        "orthogonal and of mean 0; 1: a draw a pixel, as the authors' does.",
    )

    def parsed(self) -> list[tuple[int, bool]]:
        """[(channels out, whether it pools), ...]."""
        return [(int(block.rstrip("P")), block.endswith("P")) for block in self.blocks.split()]


class Training(Section):
    update: Literal["overlapping", "layer-wise", "backprop"] = Field(
        description="Windows of two blocks that alternate from step to step, or every block by itself; backprop: the "
        "twin, all blocks at once below a linear read-out."
    )
    loss: Literal["symba", "threshold", "cross-entropy"] = Field(
        description="SymBa's loss or the original one; cross-entropy is that of `update: backprop`."
    )
    alpha: float = Field(gt=0, le=1000, description="SymBa's slope; read by `loss: symba`.")
    threshold: float = Field(gt=0, le=1000, description="The original loss's threshold; read by `loss: threshold`.")
    slope: float = Field(
        gt=0,
        le=10_000,
        description="Factor of the original loss on (mean goodness - threshold); by the number of units: Hinton's.",
    )
    hardness: Annotated[float, PlainZero] = Field(
        ge=0,
        le=10_000,  # goodness is a mean: with a slope of 500, labels that are hard to tell differ by hundredths
        description="How strongly wrong labels are drawn by their goodness; 0: uniformly, as the authors do.",
    )
    epochs: int = Field(ge=1, le=100_000, description="Passes over the training images; the last one counts.")
    batch: int = Field(ge=2, le=65_536, description="Images a step; each appears with its label and with a wrong one.")
    lr: float = Field(gt=0, le=10, description="Adam's learning rate at the start.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        description="How the learning rate goes on: stays, or falls to 0 in a straight line or half a cosine, "
        "step by step."
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        description="Type of the convolutions' arithmetic (autocast, without loss scaling)."
    )


class Evaluation(Section):
    vote: str = Field(
        pattern=r"^(last|last-[2-9]|all)$",
        examples=["last", "last-3", "all"],
        description="The blocks whose goodness is averaged to predict: the last, the last 2 to 9, or all.",
    )


class VerdictRule(Section):
    reference_seeds: Seeds = Field(
        description="The seeds that `ffrepro reference` trains for the committed reference: others than the row's own."
    )
    margin: float = Field(
        gt=0, le=100, description="Largest difference from the target that counts as equal, in points."
    )
    alpha: float = Field(
        gt=0, lt=0.5, description="Error rate of each of the two one-sided tests; their interval has level 1 - 2 alpha."
    )


class Defaults(Section):
    """What a row may leave out, for the rows to share."""

    title: str = Field(min_length=1, max_length=120, description="What it is, in a few words, for tables.")
    requires: Literal["cuda", "cpu"] = Field(description="What it takes to finish within a day.")
    data: Data = Field(description="What is learned.")
    augmentation: Augmentation = Field(description="How training images are varied.")
    network: NetworkParams = Field(description="What learns.")
    training: Training = Field(description="How it learns.")
    evaluation: Evaluation = Field(description="How it predicts.")
    verdict: VerdictRule = Field(description="When it counts as reproduced.")


class Experiment(Defaults):
    """One row: everything that decides its numbers, and what it must be compared with."""

    seeds: Seeds = Field(description="One training each; all of them count.")

    @model_validator(mode="after")
    def _combinations(self) -> "Experiment":
        if problems := list(self._impossible()):
            raise impossible(problems)
        return self

    def _impossible(self) -> Iterator[tuple[str, object, str]]:
        (_, height, width), images, _, _ = SHAPES[self.data.name]
        side, left = min(height, width), images - self.data.held_out
        blocks = self.network.parsed()
        if set(self.seeds) & set(self.verdict.reference_seeds):
            own = ", ".join(map(str, self.seeds))
            yield "verdict.reference_seeds", list(self.verdict.reference_seeds), f"none of the row's own seeds, {own}"
        if side >> sum(pool for _, pool in blocks) < 1:
            most = f"at most {side.bit_length() - 1} poolings (P)"
            shrink = f"or the {height}x{width} images of {self.data.name} shrink to nothing"
            yield "network.blocks", self.network.blocks, f"{most}, {shrink}"
        yield from self._of_other_kinds()
        if self.training.update == "overlapping" and len(blocks) < 2:
            yield "training.update", self.training.update, "layer-wise, for a network of 1 block"
        if left < 1:
            yield "data.held_out", self.data.held_out, f"fewer than the {images} training images of {self.data.name}"
        elif self.training.batch > left:
            allowed = f"at most the {left} images left to train on (a partial batch is dropped)"
            yield "training.batch", self.training.batch, allowed
        patch, classes = self.network.label_patch, self.classes
        fits = [p for p in range(1, side) if not (height % p or width % p) and (height // p) * (width // p) > classes]
        if patch > 1 and patch not in fits:
            allowed = f"{', '.join(map(str, fits))}: what divides {height}x{width} into more than {classes} patches"
            yield "network.label_patch", patch, allowed
        if self.augmentation.crop >= side:
            yield "augmentation.crop", self.augmentation.crop, f"less than the image's {side} pixels"
        vote = self.evaluation.vote
        if vote.startswith("last-") and int(vote.removeprefix("last-")) > len(blocks):
            yield "evaluation.vote", vote, f"at most as many blocks as the network has, {len(blocks)}"

    def _of_other_kinds(self) -> Iterator[tuple[str, object, str]]:
        """What the backprop twin and the original network do not have."""
        network, training = self.network, self.training
        if (training.update == "backprop") != (training.loss == "cross-entropy"):
            allowed = "cross-entropy" if training.update == "backprop" else "symba, threshold"
            yield "training.loss", training.loss, f"{allowed}, with update: {training.update}"
        backprop, length = training.update == "backprop", network.norm == "length"
        if backprop and network.label_patch != 1:
            yield "network.label_patch", network.label_patch, "1, with update: backprop"
        if backprop and training.hardness != 0:
            yield "training.hardness", training.hardness, "0, with update: backprop"
        if backprop and self.evaluation.vote != "last":
            yield "evaluation.vote", self.evaluation.vote, "last, with update: backprop"
        if backprop and length:
            yield "network.norm", "length", "batch, layer, with update: backprop"
        if length and "P" in network.blocks:
            yield "network.blocks", network.blocks, "no pooling (P), with norm: length"
        if length and network.label_patch != 1:
            yield "network.label_patch", network.label_patch, "1, with norm: length"

    @property
    def evaluated_in(self) -> str:
        """The precision of its evaluation: the row's, or float32 for the twin, which takes one pass."""
        return "float32" if self.training.update == "backprop" else self.training.precision

    @property
    def columns(self) -> int:
        """What a prediction can be made by: the blocks, or the twin's one read-out."""
        return 1 if self.training.update == "backprop" else len(self.network.parsed())

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
    experiments: dict[Name, Experiment] = Field(min_length=1, description="The rows, by their names.")


class _Written(Section):
    """params.yaml as it is written: what must be right before rows can be laid over the defaults."""

    seeds: Seeds
    defaults: dict[Any, Any]
    experiments: dict[Name, dict[Any, Any] | None] = Field(min_length=1)


def load(path: Path) -> Params:
    """Read and check the whole file. Raises UserError with one line per mistake, however many rows inherit it.

    The same text is not checked again: a report asks ten times, and a file of 100 rows takes a second.
    """
    return _load(path.name, _text(path))


@lru_cache(maxsize=8)
def _load(file: str, text: str) -> Params:
    written = checked(_Written, _content(file, text), file)
    rows = {name: row or {} for name, row in written.experiments.items()}
    lines = list(_mistakes_in_defaults(written.defaults))
    astray: list[str] = []
    families = {name: _family(name, rows, astray) for name in rows}
    _refuse(astray, file)
    experiments: dict[str, Experiment] = {}
    inherited: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for name in rows:
        try:
            experiments[name] = Experiment.model_validate(_laid_over(written, rows, families[name]))
        except ValidationError as error:
            for kind, field, said in _mistakes(error, Experiment):
                by = next((one for one in families[name] if _states(rows[one], field)), None)
                if by == name or (by and kind == "combination"):  # else it is found in the row that states it
                    lines.append(_line(("experiments", name, *field), said))
                elif by is None and kind in ("missing", "combination"):  # the rest was found in the defaults
                    inherited.setdefault((field, said), []).append(name)
    for (field, said), names in inherited.items():
        if _states(written.defaults, field):
            lines.append(_line(("defaults", *field), f"{said} (row{'s' * (len(names) > 1)} {', '.join(names)})"))
        elif len(names) == len(rows) > 1:
            lines.append(_line(("defaults", *field), said))
        else:
            lines += [_line(("experiments", name, *field), f"{said} (here or in defaults)") for name in names]
    _refuse(lines, file)
    return Params(seeds=written.seeds, experiments=experiments)


def defaults(path: Path) -> dict[str, Any]:
    """What a row that states nothing has, seeds included, of a file that `load` has found sound."""
    written = checked(_Written, read_yaml(path), path.name)
    return {"seeds": list(written.seeds), **written.defaults}


def allowed(*place: str) -> str:
    """What a field of a row may be, in words: allowed("training", "batch")."""
    return _in_words(_schema(Experiment, place))


def original(path: Path) -> list[str]:
    """The names of the rows that are like no other, of a file that `load` has found sound."""
    rows = checked(_Written, read_yaml(path), path.name).experiments
    return [name for name, row in rows.items() if "like" not in (row or {})]


def _family(name: str, rows: Mapping[str, dict[Any, Any]], lines: list[str]) -> list[str]:
    """The row and those that it is `like`, nearest first; a line for a `like` that leads nowhere or round."""
    family, row = [name], rows[name]
    while "like" in row:
        base = row["like"]
        if not isinstance(base, str) or base not in rows or base in family:
            allowed = "the name of another row, which is not itself like this one"
            lines.append(_line(("experiments", family[-1], "like"), f"given {_shown(base)}; allowed: {allowed}"))
            break
        family.append(base)
        row = rows[base]
    return family


def _laid_over(written: _Written, rows: Mapping[str, dict[Any, Any]], family: list[str]) -> dict[Any, Any]:
    """The row with what it does not state: section by section, and keeping what is unknown, for validation to find."""
    whole: dict[Any, Any] = {"seeds": written.seeds, **written.defaults}
    for name in reversed(family):
        for key, value in rows[name].items():
            if isinstance(value, dict) and isinstance(whole.get(key), dict):
                whole[key] = {**whole[key], **value}
            elif key != "like":
                whole[key] = value
    return whole


def _mistakes_in_defaults(defaults: dict[Any, Any]) -> Iterator[str]:
    """Mistakes in what the defaults state, also where every row states something else."""
    try:
        Defaults.model_validate(defaults)
    except ValidationError as error:
        for kind, field, text in _mistakes(error, Defaults):
            if kind != "missing":
                yield _line(("defaults", *field), text)


def _states(content: Any, field: tuple[str, ...]) -> bool:
    for part in field:
        content = {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}
        if part not in content:
            return False
        content = content[part]
    return True


WRITTEN = 256 << 10  # bytes that a YAML file may have: ruamel reads 50 kB a second
MERGED = 100  # keys that `<<` may bring into a mapping: lists of merged mappings of merged ones have no end
LONG_NUMBER = re.compile(r"\b(0[xob][0-9a-fA-F_]{1000}|[0-9_]{1000})")
"""Python refuses to read or to print whole numbers of more than 4300 digits."""


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 file, as DVC reads it. Raises UserError in one line when it is missing, not UTF-8 or not YAML."""
    return _content(path.name, _text(path))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:  # no more of it than is allowed, whatever it is
            content = file.read(WRITTEN + 1)
        if len(content) > WRITTEN:
            raise UserError(
                f"{path.name}: given more than {WRITTEN >> 10} KiB; allowed: at most that; restore the file"
            )
        return content.decode()
    except FileNotFoundError:
        raise UserError(f"{path.name}: no such file; expected in the project's folder, {path.parent}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path.name}: cannot be read: {error.strerror}") from None


def _content(file: str, text: str) -> Any:
    if long := LONG_NUMBER.search(text):
        line = text.count("\n", 0, long.start()) + 1
        raise UserError(f"{file}: line {line}: given a number of 1000 digits or more; allowed: fewer")
    try:
        return deepcopy(_yaml(text))  # what is read belongs to the caller, who may change it
    except Exception as error:  # YAMLError, and whatever else ruamel meets: `!!int x` is a ValueError, [[[[... too deep
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        what = [getattr(error, "context", None), getattr(error, "problem", None) or str(error) or type(error).__name__]
        problem = ", ".join(filter(None, what)).splitlines()[0].split(" with value ")[0]
        raise UserError(f"{file}: {where}not valid YAML 1.2: {plain(problem)}") from None


@lru_cache(maxsize=8)  # one command reads the same few files a dozen times, each a tenth of a second
def _yaml(text: str) -> Any:
    from ruamel.yaml import YAML  # YAML 1.2, as DVC reads it: 1e-3 is a number, yes is a word
    from ruamel.yaml.constructor import ConstructorError, SafeConstructor

    class Constructor(SafeConstructor):
        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)
            if len(getattr(node, "merge", None) or ()) > MERGED:
                raise ConstructorError(problem=f"more than {MERGED} merged keys", problem_mark=node.start_mark)

    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = Constructor
    return yaml.load(text)


Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], content: object, file: str) -> Model:
    """The content of a file as a model. Raises UserError with one line per mistake."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        _refuse([_line(place, text) for _, place, text in _mistakes(error, model)], file)
        raise


def impossible(problems: list[tuple[str, object, str]]) -> PydanticCustomError:
    """The error for values that are each right and not together: (field, what was given, what is allowed) of each."""
    return PydanticCustomError("combination", "{problems}", {"problems": problems})


def _refuse(lines: list[str], file: str) -> None:
    if lines:
        raise UserError("\n".join(f"{file}: {line}" for line in dict.fromkeys(lines)))


def _line(place: tuple[str, ...], text: str) -> str:
    dotted = ".".join(part if part.isprintable() else repr(part) for part in (_cut(part) for part in place))
    return f"{dotted}: {text}" if dotted else text


def _cut(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def plain(text: object) -> str:
    """What is said of a file in words that are partly the file's: fit to stand on one line, whatever they hold."""
    return _cut("".join(one if one.isprintable() else repr(one)[1:-1] for one in str(text)), 300)


def _mistakes(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """(kind, place, what was given and what is allowed) of each of Pydantic's errors."""
    for details in error.errors(include_url=False):
        kind, place = details["type"], tuple(str(part) for part in details["loc"])
        if kind == "combination":
            for field, given, allowed in details["ctx"]["problems"]:
                yield kind, (*place, *field.split(".")), f"given {_shown(given)}; allowed: {allowed}"
        elif place[-1:] == ("[key]",) and kind != "invalid_key":
            allowed = _in_words(TypeAdapter(Name).json_schema())
            yield kind, place[:-1], f"given {_shown(details['input'])}; allowed: {allowed}"
        elif kind in ("extra_forbidden", "invalid_key"):
            known = list(_schema(model, place[:-1])["properties"])
            known += ["like"] if model is Experiment and len(place) == 1 else []
            near = difflib.get_close_matches(place[-1], known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            yield kind, place, f"given an unknown key{hint}; allowed: {', '.join(known)}"
        else:
            given = "nothing" if kind == "missing" else _shown(details["input"])
            yield kind, place, f"given {given}; allowed: {_in_words(_schema(model, place))}"


def _shown(value: object) -> str:
    """The beginning of what was given; a few lines of YAML can mean more than memory holds, so no more is made."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > 60:
            break
    return _cut(text)


def _pieces(value: object, within: tuple[int, ...] = ()) -> Iterator[str]:
    """The value's repr(), piece by piece. within: the collections that it stands in."""
    if isinstance(value, dict | list | tuple):
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        if id(value) in within:
            yield f"{opening}...{closing}"
            return
        yield opening
        for i, part in enumerate(value):
            yield ", " if i else ""
            yield from _pieces(part, (*within, id(value)))
            if isinstance(value, dict):
                yield ": "
                yield from _pieces(value[part], (*within, id(value)))
        yield closing
    elif isinstance(value, str | bytes):
        yield repr(value[:61])
    else:
        yield repr(value) if within else str(value)


@cache
def _whole_schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _schema(model: type[BaseModel], place: tuple[str, ...]) -> dict[str, Any]:
    """The part of the model's JSON Schema that speaks of a place."""
    whole = part = _whole_schema(model)
    for key in place:
        if "items" in part:
            part = part["items"]
        elif "properties" in part:
            part = part["properties"][key]
        else:
            part = next(iter(part["patternProperties"].values()))
        if "$ref" in part:
            part = whole["$defs"][part["$ref"].removeprefix("#/$defs/")]
    return part


def _in_words(schema: dict[str, Any]) -> str:
    """What a JSON Schema allows."""
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limited = "".join(f", {words} {schema[key]}" for key, words in limits.items() if key in schema)
    match schema:
        case {"anyOf": choices}:
            return " or ".join(map(_in_words, choices))
        case {"enum": words}:
            return ", ".join(words)
        case {"type": "integer"}:
            return f"a whole number{limited}"
        case {"type": "number"}:
            return f"a number{limited}"
        case {"type": "array", "items": {"type": "integer"} as items}:
            return f"a list of whole numbers{_in_words(items).removeprefix('a whole number')}, each once"
        case {"type": "array", "items": items}:
            return f"a list, not empty, of {_in_words(items)}"
        case {"pattern": pattern, "examples": examples}:
            most = f", at most {schema['maxLength']} characters" if "maxLength" in schema else ""
            return f"text like {' or '.join(map(repr, examples))} (pattern {pattern}{most})"
        case {"type": "string", "maxLength": most}:
            return f"text of 1 to {most} characters"
        case {"properties": properties}:
            return f"a mapping of {', '.join(properties)}"
        case {"type": "object", "minProperties": 1}:
            return "a mapping, not empty"
    return {"boolean": "true or false", "string": "text", "object": "a mapping", "null": "nothing"}[schema["type"]]


def experiment(params: Params, name: str) -> Experiment:
    """The row of that name. Raises UserError that lists the rows there are."""
    errors.require_known(f"no experiment {name!r} in params.yaml", name, params.experiments)
    return params.experiments[name]


def changed(row: Experiment, values: Mapping[str, object], where: str = "given values") -> Experiment:
    """The row with other values by their paths, such as {"training.batch": 128}; None leaves what is there.

    Checked like params.yaml; `where` stands in the messages in place of its name.
    """
    content = row.model_dump(mode="json")
    for path, value in values.items():
        if value is not None:
            *sections, key = path.split(".")
            place = content
            for section in sections:
                place = place[section]
            place[key] = value
    return checked(Experiment, content, where)


def number_of_voters(vote: str, blocks: int) -> int:
    """Of last, last-2 .. last-9 or all."""
    if vote == "all":
        return blocks
    return 1 if vote == "last" else int(vote.removeprefix("last-"))


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
        return Experiment.model_validate_json(record.regular(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{plain(path)}: no such file; `python -m pipelines.check {plain(path.parent.name)}` writes it"
        ) from None
    except OSError as error:
        raise UserError(f"{plain(path)}: cannot be read: {error.strerror}") from None
    except (ValidationError, UnicodeDecodeError):
        raise UserError(f"{plain(path)}: not a row as the check stage writes it; delete it and run again") from None


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
    definitions, fields = schema["$defs"], schema["properties"]
    definitions["Experiment"]["properties"] = {
        "like": {"type": "string", "description": "Another row, which says what this one does not."},
        **definitions["Experiment"]["properties"],
    }
    definitions["Defaults"] = {k: v for k, v in Defaults.model_json_schema().items() if k != "$defs"}
    for definition in definitions.values():
        definition.pop("required", None)
    fields["defaults"] = {"$ref": "#/$defs/Defaults"}
    rows = fields["experiments"]["patternProperties"]
    fields["experiments"] |= {
        "patternProperties": {pattern: {"anyOf": [of_row, {"type": "null"}]} for pattern, of_row in rows.items()},
        "additionalProperties": False,  # or a name that the pattern does not know would pass unseen
    }
    schema["required"] = ["seeds", "defaults", "experiments"]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "ffrepro params.yaml"
    return json.dumps(schema, indent=2) + "\n"
