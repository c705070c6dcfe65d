"""The benchmark counts the work rightly and measures what it says it does. Nothing here depends on time."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch

from ffrepro import bench
from ffrepro.config import changed


def test_work_of_the_two_networks_is_what_the_convolutions_add_up_to(params):
    """Forward: 0.269 and 0.531 billion multiply-adds an image and label, by hand from the table of blocks."""
    small = changed(params.experiments["cifar10"], {"network.blocks": "128P 128 256P 256 256 512P"})
    forward = {"small": 0, "large": 0}
    for name, row in {"small": small, "large": params.experiments["cifar10"]}.items():
        one = changed(row, {"training.update": "layer-wise"})
        forward[name] = bench.work(one)[0] / 2 / 2 / 2  # both halves; forward and weights; multiply and add
    assert forward["small"] == pytest.approx(0.269e9, rel=0.005)
    assert forward["large"] == pytest.approx(0.531e9, rel=0.005)


def test_work_of_two_blocks_by_hand(row):
    chosen = row(blocks="3P 5", precision="float32")  # digits: 1 + 1 channels of 8x8
    first, second = 2 * 9 * 2 * 3 * 64, 2 * 9 * 3 * 5 * 16
    even = 2 * first + 3 * second  # window (0 1): block 1 also needs its input's gradient
    odd = 2 * first  # window (0); block 1 waits
    operations, moved = bench.work(chosen)
    assert operations == 2 * (even + odd) / 2
    assert moved == 4 * 2 * 4 * (3 * 64 * 2 + 5 * 16) / 2


def test_variants_are_sound_rows_and_end_in_the_row_itself(params):
    row = params.experiments["cifar10"]
    found = list(bench.variants(row))
    assert {axis for axis, _, _ in found} == {"batch", "width", "blocks"}
    for axis in ("batch", "width", "blocks"):
        assert [one for name, _, one in found if name == axis][-1] == row
    assert len([*bench.variants(changed(row, {"evaluation.vote": "last-9"}))]) == len(found)
    single = changed(row, {"network.blocks": "8", "training.update": "layer-wise"})
    assert [value for axis, value, _ in bench.variants(single) if axis == "blocks"] == ["1"]


@pytest.mark.parametrize("what", list(bench.CASES))
def test_every_case_runs_in_this_process(row, what):
    case = {
        "what": what,
        "device": "cpu",
        "fast": False,
        "threads": 1,
        "steps": 2,
        "row": row(blocks="4P 4", batch=4).model_dump(mode="json"),
    }
    result = bench.measure(case)
    names = {"flops_per_second", "bytes_per_second"} if what == "rates" else {"images_per_second", "peak_mib"}
    assert result.keys() == names
    assert all(value > 0 for value in result.values())
    assert torch.get_num_threads() == 1


def test_bench_writes_its_table_and_its_numbers(project):
    command = ["ffrepro", "bench", "digits", "--blocks", "4P 4", "--batch", "4", "--rounds", "2", "--steps", "2"]
    done = project.run(*command, "--no-growth", "--device", "cpu", "--machine", "a test", "--output", "results/bench/x")
    assert done.returncode == 0, done.stderr
    result = json.loads((project.root / "results" / "bench" / "x.json").read_text())
    assert (project.root / "results" / "bench" / "x.md").read_text() == done.stdout == bench.table(result)
    assert result["ratio"]["training"]["n"] == 2
    plain, engine = (result["measured"][f"{who} training"]["images_per_second"] for who in ("plain", "engine"))
    ratio = result["ratio"]["training"]
    assert engine["min"] / plain["max"] <= ratio["min"] <= ratio["max"] <= engine["max"] / plain["min"]
    assert result["command"].startswith("ffrepro bench digits --blocks '4P 4'")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_bench_that_is_ended_leaves_no_measurement_behind(project, ending):
    command = [sys.executable, "-m", "ffrepro", "bench", "digits", "--steps", "100000", "--device", "cpu"]
    env = {**os.environ, "PYTHONPATH": str(project.root)}
    process = psutil.Popen(command, cwd=project.root, env=env, stderr=subprocess.PIPE, text=True)
    while not (children := process.children()):
        assert process.poll() is None
    process.send_signal(ending)  # perhaps before the measurement is known to who started it
    assert "Traceback" not in process.communicate()[1]  # which the measurement writes to as well, as long as it lives
    assert process.returncode == (143 if ending == signal.SIGTERM else -ending)
    assert not psutil.wait_procs(children, timeout=60)[1]


def test_a_bench_that_a_terminal_ends_while_a_measurement_starts_says_so_in_one_line(project):
    (project.root / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'ffrepro.bench' in sys.orig_argv:\n"
        "    os.killpg(os.getpgid(os.getppid()), signal.SIGINT)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(project.root)}
    command = [sys.executable, "-m", "ffrepro", "bench", "digits", "--device", "cpu"]
    process = subprocess.Popen(
        command, cwd=project.root, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    _, err = process.communicate()
    line = "ffrepro: interrupted; a training goes on from its last checkpoint with the same command\n"
    assert (process.returncode, err) == (130, line)


def test_a_wrong_option_is_one_line_before_anything_is_measured(project):
    done = project.call("ffrepro", "bench", "digits", "--batch", "100000")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("ffrepro: bench: training.batch: given 100000; allowed: a whole number, at least 2")


def test_memory_that_is_not_there_is_a_line_of_the_measurement_and_one_of_the_command(project):
    project.edit("ffrepro/network.py", "return conv2d(x, weight, padding=1)", "return torch.empty(1 << 60)")
    done = project.run("ffrepro", "bench", "digits", "--rounds", "1", "--steps", "2", "--device", "cpu")
    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines() == [
        "ffrepro: bench: out of memory on cpu; free some and run again",
        "ffrepro: bench: engine training ended with exit code 5; see above",
    ]
