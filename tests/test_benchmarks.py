"""What the benchmarks count by hand, and that they run."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import umbrella as um
from benchmarks import gpu
from benchmarks import input as waits
from benchmarks.utilisation import peak_of
from tests.conftest import ROOT, needs_mnist, tfds_dir
from umbrella.models import GPT, ResNet, ViT


def multiplications(net: Any, x: Any) -> int:
    """Of every convolution and product in a forward pass, read off the traced program."""
    made = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), x)
    whole = jax.make_jaxpr(lambda v, x: net.apply(v, x, train=False))(made, x)

    def of(jaxpr: Any) -> int:
        total = 0
        for e in jaxpr.eqns:
            out = e.outvars[0].aval.shape
            if e.primitive.name == "conv_general_dilated":
                kernel = e.invars[1].aval.shape  # height, width, in, out
                total += jnp.size(jnp.zeros(out[:3])) * int(jnp.prod(jnp.array(kernel)))
            elif e.primitive.name == "dot_general":
                (contracted, _), _ = e.params["dimension_numbers"]
                total += int(jnp.prod(jnp.array(out))) * int(
                    jnp.prod(jnp.array([e.invars[0].aval.shape[i] for i in contracted]))
                )
            for value in e.params.values():
                inner = getattr(value, "jaxpr", value)
                total += of(inner) if hasattr(inner, "eqns") else 0
        return total

    return of(whole.jaxpr)


@pytest.mark.parametrize(
    ("depth", "size", "stem"), [(18, 64, "auto"), (18, 32, "small"), (20, 32, "auto"), (50, 64, "auto")]
)
def test_the_multiplications_of_a_resnet(depth: int, size: int, stem: str) -> None:
    net = ResNet(out=10, depth=depth, stem=stem)
    x = jnp.zeros((1, size, size, 3))
    assert gpu.resnet_macs(depth, size, 10, small=stem == "small") == multiplications(net, x)


def test_the_multiplications_of_transformers() -> None:
    """A row of 32 positions is one block of attention, which multiplies what it will hide, too."""
    vit = ViT(out=7, patch=8, width=24, layers=2, heads=2)
    assert gpu.vit_macs(32, 8, 24, 2, 7) == multiplications(vit, jnp.zeros((1, 32, 32, 3)))
    gpt = GPT(words=50, length=32, width=24, layers=2, heads=2)
    by_hand = gpu.transformer_macs(2, 24, 32) + 32 * 50 * 24
    assert by_hand == multiplications(gpt, jnp.zeros((1, 32), jnp.int32))


def test_the_multiplications_that_others_list() -> None:
    """4.09 and 1.81 billion in torchvision's tables of ResNet-50 and ResNet-18, 4.6 in that of ViT-S/16."""
    assert gpu.resnet_macs(50, 224, 1000) == 4_089_184_256
    assert round(gpu.resnet_macs(18, 224, 1000) / 1e9, 2) == 1.81
    assert round(gpu.vit_macs(224, 16, 384, 12, 1000) / 1e9, 1) == 4.6


def test_the_peak_is_of_the_card_and_not_of_one_whose_name_begins_so() -> None:
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("NVIDIA GeForce RTX 4090") == 165e12
    assert peak_of("NVIDIA L4") == 121e12
    assert peak_of("NVIDIA L40S") is None
    assert peak_of("cpu") is None


def test_a_case_that_fails_is_a_line_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"error": "ValueError: a | b"}
    asked: list[int] = []

    class Done:
        stdout, stderr, returncode = "", "Fatal: no driver\n", 1

    def fails(*args: Any, **kw: Any) -> Any:
        asked.append(1)
        return Done

    monkeypatch.setattr(gpu.subprocess, "run", fails)
    assert gpu.guarded("vae", True, 0.1, 1.0) == {"error": "exit status 1: Fatal: no driver"}
    assert len(asked) == 1
    Done.stdout = json.dumps({"error": f"XlaRuntimeError: {gpu.NO_ROOM}: out of memory"})
    gpu.guarded("vae", True, 0.1, 1.0)
    assert len(asked) == 1 + 3  # all rows, half, a quarter
    cells = gpu.line("vae", told).split(" |")
    assert cells[1].strip() == "ValueError: a / b"
    assert gpu.line("vae", told).count("|") == gpu.HEAD.count("|")


def test_whole_shapes_are_not_for_a_cpu() -> None:
    with pytest.raises(RuntimeError, match="no accelerator"):
        gpu.measured("gpt", False, 0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters"), [("resnet50", 25_557_032), ("vit", 22_049_896), ("gpt", 124_526_208)])
def test_the_whole_shapes_fit_together(name: str, parameters: int) -> None:
    """A step is traced, and nothing computed. A ViT-S/16 of timm has 22,050,664 parameters, with a position of the
    class and what stands there, 2 x 384 more. GPT-2 small has 124,439,808, with 50,257 words; ours 47 words and a bias
    of each word more: 47 x 768 + 50,304."""
    case = gpu.CASES[name][1](False)
    rows = jax.eval_shape(lambda key: case.resident(key, 8), jax.random.key(0))
    step = um.guard(um.update(um.grad_of(case.objective), case.tx), "halt")
    slot = {"idx": jnp.zeros(8, jnp.int32)}

    def make(data: Any) -> Any:
        return um.create(case.objective.init, step, jax.random.key(1), um.gather(data, slot))

    ts = jax.eval_shape(make, rows)
    assert um.parameter_count(ts.params) == parameters
    after, told = jax.eval_shape(um.program(step, fetch=um.gather), ts, {}, rows, slot)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, ts)
    assert "objective" in told


@pytest.mark.slow
def test_it_runs_on_a_cpu_in_small_shapes(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--only", "vae", "gpt", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())["cases"]
    assert list(told) == ["vae", "gpt"]
    for case in told.values():
        assert "error" not in case, case
        assert case["examples_per_second"] > 0
        assert case["mfu"] is None  # no peak is known of a CPU
        assert case["mean_loss"] is not None
    assert told["gpt"]["tokens_per_second"] == pytest.approx(64 * told["gpt"]["examples_per_second"])
    assert told["vae"]["pytorch"]  # a time, or that it is not there


@pytest.mark.parametrize(("alone", "wanted"), [(900.0, "the input"), (1100.0, "the step")])
def test_the_slower_of_input_and_step_is_the_limit(alone: float, wanted: str) -> None:
    """Steps of 100 examples in 0.2 s, half of which is waiting: 1,000 a second without it."""
    assert waits.limit({"batch": 100, "step": 0.2, "wait": 0.5, "alone": alone}) == wanted


@needs_mnist
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "mnist-lazy"])
def test_a_training_and_its_input_are_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir()))
    with contextlib.ExitStack() as stack:
        told = waits.measured(name, 1, stack, steps=3)
    assert 0 <= told["idle"] <= told["wait"] + 1e-9 <= 1
    assert min(told["alone"], told["step"], told["first"]) > 0
    assert waits.row(name, told).count("|") == waits.HEAD.count("|")
