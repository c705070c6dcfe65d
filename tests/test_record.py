"""Hashes of tensors and code, files that are whole or absent, and the environment that a record names."""

import hashlib
import importlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from ffrepro import PORTABLE, checkpoint, config, determinism, figure_data, record
from ffrepro.errors import UserError

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)


def tensors():
    """A tensor of each kind that data, weights and goodness tables hold, and the odd ones."""
    numbers = torch.arange(24) % 5
    return {
        **{str(dtype).removeprefix("torch."): numbers.view(2, 3, 2, 2).to(dtype) for dtype in TYPES},
        "scalar": torch.tensor(7),
        "nothing": torch.zeros(0, 3),
    }


def values_hash(**tensors):
    return record.tensors_hash(tensors)


# tensors_hash


def test_the_hash_is_the_documented_one():
    """Name, type and shape as text, then the values: computed here from bytes written by hand."""
    a = b"a\0float32\0[2]\0" + struct.pack("<2f", 1.5, -2.0)
    b = b"b\0int64\0[]\0" + struct.pack("<q", -3)
    c = b"c\0bool\0[1, 2]\0" + b"\1\0"
    d = b"d\0bfloat16\0[1]\0" + struct.pack("<f", 1.5)[2:]  # the upper half of a float32
    given = {
        "b": torch.tensor(-3),
        "d": torch.tensor([1.5], dtype=torch.bfloat16),
        "c": torch.tensor([[True, False]]),
        "a": torch.tensor([1.5, -2.0]),
    }
    assert record.tensors_hash(given) == hashlib.sha256(a + b + c + d).hexdigest()


def test_the_order_of_the_mapping_does_not_matter():
    assert record.tensors_hash(dict(reversed(tensors().items()))) == record.tensors_hash(tensors())


@pytest.mark.parametrize("name", tensors())
def test_strides_and_memory_format_do_not_matter(name):
    plain = tensors()[name]
    expected = values_hash(x=plain)
    same = [
        plain.clone(),
        plain.T.contiguous().T if plain.dim() == 2 else plain.mT.contiguous().mT if plain.dim() else plain,
    ]
    if plain.dim() == 4:
        same.append(plain.contiguous(memory_format=torch.channels_last))
        assert not same[-1].is_contiguous()
        same.append(torch.stack([plain, plain], dim=-1)[..., 1])  # every other element
    if plain.is_floating_point():
        same.append(torch.nn.Parameter(plain))
    assert {values_hash(x=other) for other in same} == {expected}


def test_the_hash_leaves_the_tensors_as_they_were():
    given = {"x": torch.arange(8.0).view(1, 2, 2, 2).contiguous(memory_format=torch.channels_last)}
    stride = given["x"].stride()
    record.tensors_hash(given)
    assert given["x"].stride() == stride


@pytest.mark.parametrize("name", tensors())
def test_name_type_and_shape_matter(name):
    plain = tensors()[name]
    other_type = plain.to(torch.int16) if plain.dtype != torch.int16 else plain.to(torch.int8)
    hashes = [values_hash(x=plain), values_hash(y=plain), values_hash(x=other_type), values_hash(x=plain[None])]
    hashes += [values_hash(x=plain.flatten()[None]), values_hash(x=plain, y=plain), values_hash()]
    assert len(set(hashes)) == len(hashes)


def test_types_of_the_same_bytes_and_shapes_of_the_same_values_differ():
    zeros = [torch.zeros(2, 2, dtype=dtype) for dtype in (torch.float32, torch.int32, torch.float16, torch.bfloat16)]
    shapes = [torch.zeros(shape) for shape in ((4,), (4, 1), (1, 4), (0, 4), (4, 0), (0,))]
    assert len({values_hash(x=x) for x in zeros + shapes}) == 10


@pytest.mark.parametrize("name", [name for name, tensor in tensors().items() if tensor.numel()])
def test_each_value_matters(name):
    plain = tensors()[name]
    hashes = {values_hash(x=plain)}
    for i in range(plain.numel()):
        changed = plain.clone()
        changed.view(-1)[i] = ~changed.view(-1)[i] if plain.dtype == torch.bool else changed.view(-1)[i] + 1
        hashes.add(values_hash(x=changed))
    assert len(hashes) == 1 + plain.numel()


def test_values_are_compared_by_their_bits():
    zero, other = torch.tensor([0.0]), torch.tensor([-0.0])
    assert torch.equal(zero, other)
    assert values_hash(x=zero) != values_hash(x=other)
    nan = torch.tensor([float("nan")])
    assert values_hash(x=nan) == values_hash(x=nan.clone())


def test_values_do_not_flow_from_one_tensor_to_the_next():
    assert values_hash(a=torch.tensor([1, 2]), b=torch.tensor([3])) != values_hash(
        a=torch.tensor([1]), b=torch.tensor([2, 3])
    )


# write_tensors and read_tensors


def test_tensors_come_back_as_they_were_written(tmp_path):
    digest = record.write_tensors(tensors(), tmp_path / "t.safetensors")
    again = record.read_tensors(tmp_path / "t.safetensors")
    assert digest == record.tensors_hash(tensors()) == record.tensors_hash(again)
    assert again.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)


def test_arrays_are_the_tensors_and_as_little_trusted(tmp_path):
    path, given = tmp_path / "t.safetensors", {n: t for n, t in tensors().items() if t.dtype != torch.bfloat16}
    record.write_tensors(given, path)
    arrays = record.read_arrays(path)
    assert arrays.keys() == given.keys()
    for name, tensor in given.items():
        assert torch.equal(torch.from_numpy(arrays[name]), tensor)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged: its tensors hash to"):
        record.read_arrays(path)
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        record.write_bytes(save({"small": torch.ones(2).to(dtype)}), path)
        with pytest.raises(UserError, match="not a whole safetensors file"):
            record.read_arrays(path)


def test_the_same_bytes_are_written_in_another_process_and_from_another_memory_format(tmp_path):
    code = (
        "import sys, pathlib, torch; sys.path.insert(0, sys.argv[2]); from test_record import tensors;"
        "from ffrepro import record; record.write_tensors(tensors(), pathlib.Path(sys.argv[1]))"
    )
    path, tests = tmp_path / "there.safetensors", Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tests)], env={**os.environ, "PYTHONHASHSEED": "1"}, check=False
    )
    assert done.returncode == 0
    shuffled = dict(reversed(tensors().items()))
    shuffled["float32"] = shuffled["float32"].contiguous(memory_format=torch.channels_last)
    record.write_tensors(shuffled, tmp_path / "here.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small file of tensors, as bytes."""
    path = tmp_path_factory.mktemp("written") / "t.safetensors"
    record.write_tensors(
        {"a.b": torch.arange(6.0).view(2, 3), "n": torch.tensor([True, False]), "e": torch.ones(0)}, path
    )
    return path.read_bytes()


def refused(content, path):
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        record.read_tensors(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    assert line.endswith("delete it and run again")
    return line


@pytest.mark.parametrize("first", [0, 3])
def test_a_flipped_bit_anywhere_is_refused(written, tmp_path, first):
    for i in range(len(written)):  # in every byte, each time another bit
        flipped = written[i] ^ (1 << (i + first) % 8)
        refused(written[:i] + bytes([flipped]) + written[i + 1 :], tmp_path / "t.safetensors")


def test_a_truncated_or_longer_file_is_refused(written, tmp_path):
    for length in (*range(0, len(written), 7), len(written) - 1):
        refused(written[:length], tmp_path / "t.safetensors")
    refused(written + b"\0", tmp_path / "t.safetensors")
    refused(written + written, tmp_path / "t.safetensors")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"F32"', b'"I32"'),
        (b"[2,3]", b"[3,2]"),
        (b'"a.b"', b'"a.c"'),
        (b'"sha256"', b'"sha255"'),
        (b'"__metadata__"', b'"__netadata__"'),
    ],
)
def test_a_header_that_lies_is_refused(written, tmp_path, old, new):
    assert old in written
    refused(written.replace(old, new, 1), tmp_path / "t.safetensors")


def test_a_damaged_value_names_both_hashes(written, tmp_path):
    line = refused(written[:-1] + b"\1", tmp_path / "t.safetensors")
    assert "damaged: its tensors hash to " in line
    digest = json.loads(written[8 : 8 + struct.unpack("<Q", written[:8])[0]])["__metadata__"]["sha256"]
    assert f"not to {digest};" in line


def test_a_file_without_a_hash_or_of_something_else_is_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    refused(save({"a": torch.ones(2)}), path)
    refused(save({"a": torch.ones(2)}, {"sha256": "0" * 64}), path)
    refused(b"<!DOCTYPE html><html><body>Not here</body></html>", path)
    path.unlink()
    with pytest.raises(UserError, match=r"^[^\n]*t\.safetensors: no such file; run the stage that writes it[^\n]*$"):
        record.read_tensors(path)
    path.mkdir()
    with pytest.raises(UserError, match=r"^[^\n]*t\.safetensors: not a whole safetensors file[^\n]*$"):
        record.read_tensors(path)


# write, write_text, write_json, read_json


def test_a_file_is_written_with_its_folders_and_nothing_else(tmp_path):
    record.write_text("ä\n", tmp_path / "a" / "b" / "file.txt")
    assert (tmp_path / "a" / "b" / "file.txt").read_bytes() == "ä\n".encode()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", ["old", None])
def test_a_writer_that_fails_leaves_what_was_there(tmp_path, error, old):
    path = tmp_path / "file.txt"
    if old:
        path.write_text(old)

    def writer(part):
        assert part.parent == path.parent  # on the same disk, to be renamed in one step
        part.write_text("half")
        raise error

    with pytest.raises(error):
        record.write(path, writer)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == ({"file.txt": old} if old else {})


def test_a_disk_that_refuses_is_one_line_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def writer(part):
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError) as caught:
        record.write(path, writer)
    assert str(caught.value) == (
        "file.txt: cannot be written: No space left on device; free some space or rights and run again"
    )
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file.txt": "old"}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^below\.txt: cannot be written: [^\n]+; free some space or rights"):
        record.write_text("x", tmp_path / "file" / "below.txt")


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    seen = []
    record.write(path, lambda part: (part.write_text("half"), seen.append(path.read_text()), part.write_text("new")))
    assert (seen, path.read_text()) == (["old"], "new")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_holds_no_nan(tmp_path, value):
    record.write_json({"a": 1}, tmp_path / "a.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.write_json({"a": [value]}, tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert record.read_json(tmp_path / "a.json") == {"a": 1}


def test_json_comes_back_bit_for_bit(tmp_path):
    content = {"b": [0.1 + 0.2, 1 / 3, 1e-320, -0.0], "a": None, "ü": {"x": True, "y": 2**70}}
    record.write_json(content, tmp_path / "a.json")
    again = record.read_json(tmp_path / "a.json")
    assert repr(again) == repr(content)
    assert (tmp_path / "a.json").read_text().endswith("}\n")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"<html>", b'{"a": 1}{'])
def test_what_is_no_json_is_one_line(tmp_path, content):
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"^[^\n]*a\.json: no such file; run the stage that writes it \(`dvc repro`\)$"):
        record.read_json(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^[^\n]*a\.json: not JSON \([^\n]+\); delete it and run the stage"):
        record.read_json(path)


def test_what_cannot_be_opened_is_neither_missing_nor_damaged(tmp_path):
    """And nobody is told to delete it."""
    folder = tmp_path / "a.json"
    folder.mkdir()
    with pytest.raises(UserError, match=r"a\.json: cannot be read: Is a directory$"):
        record.read_json(folder)
    link = tmp_path / "a.safetensors"
    link.symlink_to(tmp_path / "annexed")
    with pytest.raises(
        UserError, match=r"a\.safetensors: cannot be read: no right to, or a link to a file that is not"
    ):
        record.read_tensors(link)


@pytest.mark.parametrize(
    "read",
    [
        record.file_hash,
        record.read_json,
        record.read_sealed,
        record.read_tensors,
        record.read_arrays,
        config.read_experiment,
        figure_data.read_history,
        lambda path: checkpoint.read(path, torch.device("cpu")),
    ],
)
def test_no_reader_waits_for_a_pipe_or_reads_a_device(tmp_path, read):
    path = tmp_path / "file"
    path.symlink_to("/dev/null")
    with pytest.raises(UserError, match=r"/file: cannot be read: a pipe or a device, not a file$"):
        read(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"/file: cannot be read: a pipe or a device, not a file$"):
        read(path)


# Code and environment


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The package's sources in another folder, for `code_hash` to read there."""
    shutil.copytree(Path(record.__file__).parent, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(record, "__file__", str(tmp_path / "copy" / "record.py"))
    return tmp_path / "copy"


def test_the_code_hash_follows_each_listed_module_and_no_other(copy):
    as_is = record.code_hash()
    for path in copy.glob("*.py"):
        source = path.read_bytes()
        path.write_bytes(source + b"# more\n")
        assert (record.code_hash() != as_is) == (path.stem in record.NUMBERS), path.name
        path.write_bytes(source)
    assert record.code_hash() == as_is


def test_the_code_hash_is_the_same_for_other_line_ends_and_another_order(copy):
    as_is = record.code_hash()
    for path in copy.glob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert record.code_hash() == record.code_hash(reversed(record.NUMBERS)) == as_is
    assert record.code_hash(["data"]) != record.code_hash(["data", "network"]) != as_is


def test_code_that_moves_from_one_module_to_another_is_other_code(copy):
    as_is = record.code_hash(["augment", "data"])
    one, other = (copy / "augment.py").read_text(), (copy / "data.py").read_text()
    (copy / "augment.py").write_text(other)
    (copy / "data.py").write_text(one)
    assert record.code_hash(["augment", "data"]) != as_is


def test_the_code_hash_by_hand(copy):
    (copy / "b.py").write_bytes(b"x = 1\r\n")
    (copy / "a.py").write_text("y = 'ä'\n", encoding="utf-8")
    assert record.code_hash(["b", "a"]) == hashlib.sha256("a\0y = 'ä'\n\0b\0x = 1\n".encode()).hexdigest()


def test_the_name_of_the_processor_is_the_systems(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: One: @ 2 GHz\n\nprocessor\t: 1\nmodel name\t: Another\n")
    monkeypatch.setattr(record, "Path", {"/proc/cpuinfo": info}.__getitem__)
    assert record.cpu_model() == "One: @ 2 GHz"
    assert record.environment(torch.device("cpu"))["model"] == "One: @ 2 GHz"
    info.unlink()
    monkeypatch.setattr(record.platform, "processor", lambda: "arm")
    assert record.cpu_model() == "arm"
    monkeypatch.setattr(record.platform, "processor", lambda: "")
    monkeypatch.setattr(record.platform, "machine", lambda: "aarch64")
    assert record.cpu_model() == "aarch64"


INTEL = "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 207\nmodel name\t: X\nflags\t\t: amx_int8\n"
ARM = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("info", "able", "told"),
    [
        (
            f"processor\t: 0\n{INTEL}\nprocessor\t: 1\n{INTEL}",
            {"fma3": True, "avx_vnni": True, "amx_int8": False, "avx512_bw": True, "l2_cache_size": 2 << 20},
            "GenuineIntel 6 207 avx512_bw avx_vnni L2 2048 KiB",  # not what Linux lists, and a sandbox does not permit
        ),
        (ARM, {"sve": True, "neon": True}, "0x41 0xd40 neon sve"),
        ("processor\t: 0\n", {}, ""),
    ],
)
def test_processors_of_one_name_are_told_apart(tmp_path, monkeypatch, info, able, told):
    monkeypatch.setattr(record, "Path", {"/proc/cpuinfo": tmp_path / "cpuinfo"}.__getitem__)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    (tmp_path / "cpuinfo").write_text(info)
    assert record.processor() == told
    assert record.environment(torch.device("cpu")).get("processor", "") == told


def test_an_environment_is_the_same_another_or_not_told():
    cpu = {"device": "cpu", "model": "AMD EPYC"}
    told, another = {**cpu, "processor": "AuthenticAMD 25 1"}, {**cpu, "processor": "AuthenticAMD 23 49"}
    assert record.same_environment(cpu, dict(cpu)) is True
    assert record.same_environment(told, dict(told)) is True
    assert record.same_environment(told, another) is False
    assert record.same_environment(told, cpu) is None  # an older record
    assert record.same_environment(cpu, told) is None
    assert record.same_environment(told, {**cpu, "threads": 2}) is False
    assert record.same_environment(cpu, {**cpu, "variables": "MKL_CBWR=AVX2"}) is False


def test_the_modules_that_decide_the_numbers_are_there(root):
    assert all((root / "ffrepro" / f"{name}.py").is_file() for name in record.NUMBERS)


def test_text_is_hashed_as_utf_8():
    assert record.text_hash("ä") == hashlib.sha256(b"\xc3\xa4").hexdigest()


def test_variables_by_which_the_libraries_compute_otherwise_are_in_the_environment(monkeypatch):
    for name in record.CHOOSING["cpu"]:
        monkeypatch.delenv(name, raising=False)
    before = record.environment(torch.device("cpu"))
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # as good as none
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # a GPU's
    after = record.environment(torch.device("cpu"))
    assert after == {**before, "variables": "MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41"}


def test_the_environment_names_no_user_host_or_path(root, monkeypatch):
    for name in record.CHOOSING["cpu"]:
        monkeypatch.delenv(name, raising=False)
    facts = record.environment(torch.device("cpu"))
    assert facts.keys() == {"python", "torch", "device", "cpu", "threads", "model", "processor", "kernels", "machine"}
    assert (facts["device"], facts["threads"], facts["torch"]) == ("cpu", 1, torch.__version__)
    assert facts["kernels"] == "deterministic"
    text = json.dumps(facts)
    assert not {"/", "\\"} & set(text)
    private = {socket.gethostname(), Path.home().name, root.name, os.environ.get("USER")} - {None, ""}
    within = r"(?<![^\W_]){}(?![^\W_])"  # as a word: a clone may lie in a folder "ch", and a key is called "machine"
    assert not [name for name in private if re.search(within.format(re.escape(name)), text)]


def test_a_record_names_fast_kernels():
    determinism.switch_on(fast=True)
    try:
        assert record.environment(torch.device("cpu"))["kernels"] == "fast"
    finally:
        determinism.switch_on()
    assert record.environment(torch.device("cpu"))["kernels"] == "deterministic"


def test_files_are_indented_for_people(tmp_path):
    record.write_json({"a": [1]}, tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    1\n  ]\n}\n'


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_in_json_is_named(tmp_path, word):
    path = tmp_path / "a.json"
    path.write_text(f'{{"a": {word}}}')
    with pytest.raises(UserError) as error:
        record.read_json(path)
    why = f"{word} is no number in JSON"
    assert str(error.value) == f"{path}: not JSON ({why}); delete it and run the stage that writes it again"


@pytest.mark.parametrize("level", ['{{"a": {}}}', "[{}]"])
def test_json_has_so_many_levels_at_most(tmp_path, level):
    path, text = tmp_path / "a.json", "1"
    for _ in range(record.DEEP):
        text = level.format(text)
    path.write_text(text)
    record.read_json(path)
    path.write_text(level.format(text))
    with pytest.raises(UserError) as error:
        record.read_json(path)
    why = f"nested more than {record.DEEP} deep"
    assert str(error.value) == f"{path}: not JSON ({why}); delete it and run the stage that writes it again"


def test_the_line_about_a_damaged_file_says_what_safetensors_says_and_no_more_than_200_characters_of_it(tmp_path):
    path = tmp_path / "w.safetensors"
    header = b'{"' + b"x" * 5000 + b'":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError) as error:
        record.read_tensors(path)
    why = str(error.value).removeprefix(f"{path}: not a whole safetensors file (")
    why = why.removesuffix("); delete it and run again")
    assert 10 < len(why) <= 200
    assert "eader" in why


@pytest.mark.parametrize("said", ["not a hash", None])
def test_a_header_without_a_hash_is_not_quoted(tmp_path, said):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save({"a": torch.zeros(1)}, {"sha256": said} if said else None))
    with pytest.raises(UserError, match=r"hash to [0-9a-f]{64}, not to what its header says; delete it and run again$"):
        record.read_tensors(path)


def test_writing_leaves_its_own_error_where_the_half_written_file_is_gone(tmp_path):
    def writer(part):
        part.write_text("half")
        part.unlink()
        raise RuntimeError("the disk was pulled out")

    with pytest.raises(RuntimeError, match="pulled out"):
        record.write(tmp_path / "a", writer)


def test_a_node_of_slurms_writes_under_a_name_of_its_own(tmp_path, monkeypatch):
    names = []

    def writer(part):
        names.append(part.name)
        part.write_text("whole")

    record.write(tmp_path / "a", writer)
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    record.write(tmp_path / "a", writer)
    assert names == ["a.part", "a.n1.part"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# --- the machine -----------------------------------------------------------------------------------------------------


def test_the_lock_is_hashed_as_a_whole(tmp_path):
    assert record.lock_hash(tmp_path) is None  # only the source travelled
    folder = tmp_path / "requirements"
    folder.mkdir()
    (folder / "run.txt").write_text("a==1\n")
    first = record.lock_hash(tmp_path)
    (folder / "dev.txt").write_text("b==1\n")
    both = record.lock_hash(tmp_path)
    (folder / "dev.txt").rename(folder / "lint.txt")
    assert len({first, both, record.lock_hash(tmp_path)}) == 3
    every = "lint.txt\0b==1\n\0run.txt\0a==1\n"
    assert record.lock_hash(tmp_path) == hashlib.sha256(every.encode()).hexdigest()


def test_the_portable_environment_leaves_out_what_has_no_say_in_it(monkeypatch):
    plain = record.environment(torch.device("cpu"))
    monkeypatch.setattr(record, "portable", lambda: True)
    for name, value in PORTABLE.items():
        monkeypatch.setenv(name, value)
    assert record.environment(torch.device("cpu")) == {
        **{name: value for name, value in plain.items() if name not in ("python", "model", "processor")},
        "profile": "portable",
    }


def test_processes_that_train_together_are_an_environment_of_their_own(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert record.environment(torch.device("cpu"))["processes"] == 1
    finally:
        torch.distributed.destroy_process_group()
    assert "processes" not in record.environment(torch.device("cpu"))


def test_a_cpu_has_no_driver_and_no_counter_of_joules():
    assert record.driver(torch.device("cpu")) is None
    assert record.joules(torch.device("cpu")) is None


def test_the_driver_is_asked_for_by_nvml_where_linux_has_no_file_of_it(monkeypatch):
    """Under WSL, say. Without a driver the library is there and says so."""
    if Path("/proc/driver/nvidia").exists() or torch.cuda.is_available():
        pytest.skip("this machine has a driver")
    assert record.driver(torch.device("cuda")) is None
    nvml = importlib.import_module("pynvml")
    monkeypatch.setattr(nvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(nvml, "nvmlSystemGetDriverVersion", lambda: "580.95.05")
    assert record.driver(torch.device("cuda")) == "580.95.05"


def test_a_history_is_a_line_a_row_under_the_first_rows_names(tmp_path):
    record.write_csv([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == b"epoch,loss\n1,0.5\n2,0.25\n"
    record.write_csv([{"epoch": 1, "loss": "\u2153\r\n"}], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == b'epoch,loss\n1,"\xe2\x85\x93\r\n"\n'


# Files that are sealed


def test_what_is_sealed_is_read_once(tmp_path, monkeypatch):
    """So that a stage which replaces the file meanwhile is no broken link."""
    path, whole = tmp_path / "a.json", Path.read_bytes

    def read_and_replaced(self):
        content = whole(self)
        self.write_text(record.sealed({"a": 2}))
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_replaced)
    record.write_sealed({"a": 1}, path)
    assert record.read_sealed(path)["a"] == 1
    assert record.read_sealed(path)["a"] == 2, "it was replaced"


def test_a_seal_is_the_hash_of_the_text_without_it(tmp_path):
    content = {"b": 1, "seal": "an old one", "a": [0.1, "\u2153"]}
    record.write_sealed(content, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == record.sealed(content)
    written = json.loads(text)
    assert list(written) == ["b", "a", "seal"]
    record.write_json({"b": 1, "a": [0.1, "\u2153"]}, tmp_path / "b.json")
    assert written["seal"] == hashlib.sha256((tmp_path / "b.json").read_bytes()).hexdigest()
    assert record.sealed(written) == text


def test_a_files_hash_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"\r\n\0")
    assert record.file_hash(tmp_path / "a") == hashlib.sha256(b"\r\n\0").hexdigest()
    with pytest.raises(UserError) as caught:
        record.file_hash(tmp_path / "b")
    assert str(caught.value) == f"{tmp_path / 'b'}: cannot be read: No such file or directory"


def test_every_module_is_one():
    assert {"record", "training", "cli", "__init__"} < set(record.every_module())
    assert record.code_hash(record.every_module()) != record.code_hash()


def test_a_column_that_only_later_rows_have_is_written(tmp_path):
    """Such as joules, where a training goes on on a machine that tells them."""
    record.write_csv([{"epoch": 1}, {"epoch": 2, "joules": 3.5}], tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text() == "epoch,joules\n1,\n2,3.5\n"
