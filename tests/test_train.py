"""train.py as a user runs it: what it reaches, writes and says, also when it is told wrongly."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.launch import REPO, mpirun, run_group

RANKS = re.compile(r"^│\s+(\d+) │", re.MULTILINE)


def alone(*args: str) -> subprocess.CompletedProcess[str]:
    """Run train.py in one process without mpirun."""
    return run_group([sys.executable, "train.py", *args], timeout=120)


def trained(*runs: str, ranks: int = 0) -> list[str]:
    """Run train.py with each of these options, one after the other in one job; return its output.

    Args:
        ranks: how many; one process without mpirun if 0.
    """
    program = f"""
import pycomm, train
for options in {runs}:
    train.main(options.split(), standalone_mode=False)
    if pycomm.init().rank == 0:
        print("# end", flush=True)
"""
    if ranks:
        result = mpirun(ranks, "-c", program, timeout=120)
    else:
        result = run_group([sys.executable, "-c", program], timeout=120)
    assert result.returncode == 0, result.stderr
    *outputs, _ = result.stdout.split("# end\n")
    assert len(outputs) == len(runs)
    return outputs


def losses(file: Path) -> dict[int, float]:
    """Return the loss by step of a metrics file."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records}


def assert_usage_error(result: subprocess.CompletedProcess[str], message: str) -> None:
    """Check that the message came once, without a traceback, with a code that is not 0."""
    # Every rank exits with 2; MPICH's launcher may kill the last ones first, and return 9 then.
    assert result.returncode == 2 or (result.returncode == 9 and "mpirun" in result.args[0])
    assert result.stderr.count("Error: ") == 1
    assert re.search(message, result.stderr)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("ranks", "parallel"), [pytest.param(2, "data", marks=pytest.mark.mpirun), (3, "model")]
)
def test_the_defaults_read_the_digits(ranks, parallel):
    result = mpirun(ranks, "train.py", "--parallel", parallel, timeout=120)
    assert result.returncode == 0, result.stderr
    reached = re.search(r"test accuracy ([\d.]+)% of 359 samples", result.stdout)
    assert float(reached[1]) >= 97
    assert RANKS.findall(result.stdout) == [str(rank) for rank in range(ranks)]
    assert "276/276" in result.stderr


@pytest.mark.mpirun
def test_a_schedule_by_name_says_how_long_it_idled():
    common = "train.py --parallel model --model mlp --steps 3 --microbatches 3".split()
    options = "--schedule interleaved --stages-per-rank 2 --recompute".split()
    result = mpirun(2, *common, *options)
    assert result.returncode == 0, result.stderr
    ideal = "interleaved of 3 microbatches idles 22% with equal stages"
    assert re.search(rf"the pipeline idled \d+% of the time; {ideal}", result.stdout)


NORMS = """
import sys
from torch import nn
from pycomm.trainers.model_parallel import ModelParallelTrainer
from pycomm.workloads import models
layers = nn.Linear(64, 10), nn.BatchNorm1d(10)
models.MODELS["norms"] = lambda task: nn.Sequential(nn.Flatten(), *layers)
import train
ModelParallelTrainer.print_report = lambda trainer: print("NORMS", trainer.module)
train.main("--parallel model --model norms --steps 2".split() + sys.argv[1:], standalone_mode=False)
"""


def test_running_statistics_over_whole_batches():
    for options in ([], ["--deferred-batch-norm"]):
        result = run_group([sys.executable, "-c", NORMS, *options], timeout=120)
        assert result.returncode == 0, result.stderr
        printed = result.stdout.partition("NORMS")[2]
        assert ("DeferredBatchNorm(10" in printed) == bool(options)
        assert ("BatchNorm1d(10" in printed) == (not options)


def test_compression_sends_fewer_bytes():
    common = "--batch-size 300 --steps 2"
    outputs = trained(common, f"{common} --compression int8", ranks=2)
    row = r"│\s+0 │.*│\s+([\d.]+) │\s+[\d.]+ │"
    whole, compressed = (float(re.search(row, output)[1]) for output in outputs)
    assert compressed < 0.27 * whole


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    def run(name, steps):
        files = f"--checkpoint {tmp_path / name} --metrics {tmp_path / name}.jsonl"
        return f"--model mlp --batch-size 500 --steps {steps} {files}"

    whole, _ = trained(run("whole", steps=8), run("halves", steps=4), ranks=2)
    (resumed,) = trained(run("halves", steps=8), ranks=2)
    assert resumed.splitlines()[-1] == whole.splitlines()[-1]
    assert list(losses(tmp_path / "whole.jsonl")) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert losses(tmp_path / "halves.jsonl") == losses(tmp_path / "whole.jsonl")


def test_metrics_tell_step_loss_and_speed(tmp_path):
    file = tmp_path / "metrics.jsonl"
    result = alone("--model", "mlp", "--epochs", "2", "--accumulate", "4", "--metrics", str(file))
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 13))  # 23 batches an epoch
    assert all(record["samples_per_s"] > 0 for record in records)
    assert records[0]["loss"] == pytest.approx(2.3, abs=0.1)  # ln 10: it knows nothing
    assert records[-1]["loss"] < 2.2


def test_a_folder_of_text_is_judged_by_its_bigram_entropy(tmp_path):
    (tmp_path / "song.txt").write_text("row, row, row your boat\n" * 400)
    result = alone("--data", str(tmp_path), "--steps", "5", "--batch-size", "8")
    assert result.returncode == 0, result.stderr
    assert re.search(
        r"held-out loss \d\.\d{4} nats .* bigram entropy of the text 0\.", result.stdout
    )


@pytest.mark.mpirun
def test_unknown_files_end_all_ranks():
    result = mpirun(2, "train.py", "--data", "nowhere.npz")
    assert_usage_error(result, r"'nowhere\.npz' is neither digits or text nor an existing file")


def test_bfloat16_where_autocast_finds_that_it_does(tmp_path):
    def run(precision):
        file = tmp_path / f"{precision}.jsonl"
        return f"--device cpu --model mlp --steps 3 --precision {precision} --metrics {file}"

    trained(run("bf16"), run("fp32"))
    narrow, wide = (list(losses(tmp_path / f"{p}.jsonl").values()) for p in ("bf16", "fp32"))
    assert narrow != wide
    assert narrow == pytest.approx(wide, rel=0.01)


MISTAKES = {
    "--model gpt": r"'gpt' takes text, not digits \(samples of shape \(1, 8, 8\), 10 class",
    "--epochs 1 --steps 1": r"pass --epochs or --steps, not both",
    "--microbatches 2": r"--microbatches: for --pp or --tp above 1, or --parallel model",
    "--deferred-batch-norm": r"--deferred-batch-norm: for --pp or --tp above 1, or --par",
    "--schedule 1f1b --recompute": r"--schedule, --recompute: for --pp or --tp above 1",
    "--parallel model --stages-per-rank 2": r"schedule='1f1b' has one stage a rank, not",
    "--steps 5 --warmup 6": r"warmup=6 must be between 0 and the 5 steps of the run",
    "--checkpoint-every 5": r"checkpoint_every=5 needs checkpoint=, a folder",
    "--check-finite --precision fp16": r"check_finite=True with precision='fp16'",
    "--device tpu": r"'tpu' is not one of 'cpu', 'cuda'",
    "--compression zip": r"compression='zip' does not exist: choose from 'bf16'",
    "--parallel model --dp 1": r"pass --parallel, or --dp, --pp and --tp",
    "--memory-limit 100KiB": r"MiB",
    "--lr nan": r"rank 0: .*Invalid learning rate: nan",
    "--share --no-shard": r"share=True needs shards: leave out shard=False",
}
if not torch.cuda.is_available():
    no_gpu = r"rank 0: torch \S+ (cannot use CUDA: install|finds no GPU: see)"
    MISTAKES["--device cuda"] = no_gpu


@pytest.fixture(scope="module")
def refusals():
    """What train.py says to each of MISTAKES, one after the other in one process."""
    program = f"""
import contextlib, io, json, train

def refusal(options):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            train.main(options.split(), standalone_mode=False)
        except train.REFUSALS as error:
            train.tell(error)
    return said.getvalue()

print(json.dumps([refusal(options) for options in {list(MISTAKES)}]))
"""
    result = run_group([sys.executable, "-c", program], timeout=120)
    assert result.returncode == 0, result.stderr
    return dict(zip(MISTAKES, json.loads(result.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize(("options", "message"), MISTAKES.items())
def test_mistakes_are_told_in_one_message(options, message, refusals):
    assert refusals[options].count("Error: ") == 1
    assert re.search(message, refusals[options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--batch-size 0", r"'--batch-size': 0 is not in the range x>=1"),
        ("--pp 2", r"dp=None × pp=2 × tp=1 is not 1, the number of ranks"),
    ],
)
def test_a_mistake_ends_train_py_without_a_traceback(options, message):
    assert_usage_error(alone(*options.split()), message)


def test_the_example_of_the_readme_runs():
    code = re.search(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)[1]
    check = """
weights = comm.all_gather_object([p.detach() for p in model.parameters()])
assert x.eq(0.5).all() and all(map(torch.equal, *weights)), (x, weights)
"""
    result = mpirun(2, "-c", code + check)
    assert result.returncode == 0, result.stderr
