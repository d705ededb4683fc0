"""python -m benchmarks.gpu [--tiny] [--only CASE ...] [--out FILE]: what a GPU makes of the project's own steps.

    pip install -e . "jax[cuda12]"      # or jax[cuda13]
    python -m benchmarks.gpu            # some minutes; a table, and gpu.json
    python -m benchmarks.gpu --tiny     # small shapes, anywhere: does it run?

Models, objectives, optimisers and the compiled step are those of a run (`umbrella.loop.compile_step`, with its donated
state and its metrics); data are noise, made on the device, from which every step gathers its rows by indices. Each case
has a process of its own: one that fails says so in a line, and the others go on. One that has no room is tried again
with half the rows, twice.

MFU, the share of the card's peak in dense bf16, is of FLOPs counted by hand below: 2 for a multiplication and its sum,
and 3 times those of a forward pass for a step (the gradients by inputs and by weights cost as much as one each).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
HEAD = "| case | rows | ms a step | examples/s | tokens/s | TFLOP/s | MFU | memory | PyTorch, eager |"
NO_ROOM = "RESOURCE_EXHAUSTED"


class Case(NamedTuple):
    """A step to measure."""

    objective: Any
    tx: Any
    resident: Callable[[Any, int], dict[str, Any]]  # (key, n) -> n examples, made on the device
    rows: int  # of a batch
    macs: float  # multiplications of a forward pass of one example
    passes: float = 3.0  # forward passes that a step costs
    tokens: int = 0  # of an example
    steps: int = 1  # of a call
    rival: Callable[[int, float], str] | None = None  # (rows, seconds to spend) -> what it did


# ----------------------------------------------------------------------------------------------------- by hand: forward
def resnet_macs(depth: int, size: int, out: int, *, small: bool = False) -> int:
    """Multiplications of a ResNet's convolutions and its head, on an image of size x size x 3.

    A convolution of k x k from a to b channels has k^2 a b for each of its output's positions.

    Args:
      small: whether the stem is that of 3 x 3, as it is anyway in a network of three stages.

    >>> resnet_macs(50, 224, 1000)  # the 4.1 billion of torchvision's table
    4089184256
    """
    from umbrella.models.resnet import DEPTHS

    bottleneck, stages = DEPTHS[depth]
    large, width = not small and len(stages) == 4, 64 if len(stages) == 4 else 16
    side = size // 2 if large else size
    total = side**2 * (49 if large else 9) * 3 * width
    side = side // 2 if large else side  # the pooling
    before = width
    for i, blocks in enumerate(stages):
        inner = width * 2**i
        after = inner * (4 if bottleneck else 1)
        for j in range(blocks):
            stride = 2 if i and not j else 1
            entered, side = side, side // stride
            if bottleneck:  # 1 x 1 where it enters, 3 x 3 with the stride, 1 x 1
                total += entered**2 * before * inner + side**2 * (9 * inner**2 + inner * after)
            else:
                total += side**2 * 9 * (before * inner + inner**2)
            if before != after and len(stages) == 4:  # the projection; the small ones have none
                total += side**2 * before * after
            before = after
    return total + before * out


def transformer_macs(layers: int, width: int, length: int) -> int:
    """Of the blocks, on a row of `length` positions.

    A position costs 3 W^2 for queries, keys and values, W^2 for what follows the attention, 8 W^2 for the perceptron,
    and T W for its scores and T W for the mean by them: of all T, though a causal one could do with half (Chowdhery et
    al. 2022, appendix B). Times 6: 6 N + 12 L W T FLOPs a token of a step.

    >>> 6 * (transformer_macs(12, 768, 1024) // 1024 + 50_304 * 768)  # of GPT-2 small: 6 x 123.6 million + 0.113e9
    854654976
    """
    return length * layers * (12 * width**2 + 2 * length * width)


def vit_macs(size: int, patch: int, width: int, layers: int, out: int) -> int:
    """Patches, blocks, and the head on their mean.

    >>> vit_macs(224, 16, 384, 12, 1000)  # ViT-S/16: 4.6 billion
    4574026752
    """
    length = (size // patch) ** 2
    return length * 3 * patch**2 * width + transformer_macs(layers, width, length) + width * out


# ------------------------------------------------------------------------------------------------------------ the cases
def resnet50(tiny: bool) -> Case:
    """ResNet-50 at 224 x 224, bf16; 18 layers at 64 when tiny."""
    import umbrella as um

    depth, size, out, rows = (18, 64, 10, 4) if tiny else (50, 224, 1000, 256)
    net = um.models.ResNet(out=out, depth=depth, zero=True, precision="bf16")
    base = um.chain(um.pixels(255.0), um.label_smoothing(out, eps=0.1))(um.supervised(net, um.losses.cross_entropy))
    momentum = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    return Case(base, optimizer(momentum), images(size, out), rows, resnet_macs(depth, size, out))


def vit_s16(tiny: bool) -> Case:
    """ViT-S/16 at 224 x 224, bf16."""
    import umbrella as um

    size, patch, out, rows = (32, 8, 10, 4) if tiny else (224, 16, 1000, 512)
    width, layers, heads = (48, 2, 3) if tiny else (384, 12, 6)
    net = um.models.ViT(out=out, patch=patch, width=width, layers=layers, heads=heads, precision="bf16")
    base = um.pixels(255.0)(um.supervised(net, um.losses.cross_entropy))
    adamw = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1, "clip": 1.0}
    return Case(base, optimizer(adamw), images(size, out), rows, vit_macs(size, patch, width, layers, out))


def gpt_124m(tiny: bool) -> Case:
    """GPT-2 small: 12 layers of width 768, 1,024 positions, 50,304 words, bf16."""
    import jax

    import umbrella as um

    layers, width, heads, length, words, rows = (2, 64, 2, 64, 128, 2) if tiny else (12, 768, 12, 1024, 50_304, 32)
    net = um.models.GPT(words=words, length=length, width=width, layers=layers, heads=heads, precision="bf16")
    base = um.supervised(net, um.losses.cross_entropy)
    adamw = {"name": "adamw", "learning_rate": 6e-4, "b2": 0.95, "weight_decay": 0.1, "clip": 1.0}

    def resident(key: Any, n: int) -> dict[str, Any]:
        text = jax.random.randint(key, (n, length + 1), 0, words)
        return {"x": text[:, :-1], "y": text[:, 1:]}

    macs = transformer_macs(layers, width, length) + length * words * width  # and the words' scores at every position
    return Case(base, optimizer(adamw), resident, rows, macs, tokens=length)


def vae(tiny: bool, steps: int = 1) -> Case:
    """VAE 784-400-20, batch 128, f32: what calls cost when a step is small."""
    import umbrella as um

    hidden, latent, rows = (32, 4, 16) if tiny else (400, 20, 128)
    net = um.models.VAE(shape=(28, 28, 1), latent=latent, hidden=(hidden,), activation="relu")
    base = um.chain(um.pixels(255.0), um.binarise())(um.supervised(net, um.losses.negative_elbo))
    # 784 to hidden, hidden to the mean and log-variance; and the way back
    macs = 784 * hidden + hidden * 2 * latent + latent * hidden + hidden * 784

    def rival(rows: int, seconds: float) -> str:
        return torch_vae(hidden, latent, rows, seconds)

    tx = optimizer({"name": "adam", "learning_rate": 1e-3})
    return Case(base, tx, images(28, 10, 1), rows, macs, steps=steps, rival=rival if steps == 1 else None)


def vae_16_steps(tiny: bool) -> Case:
    """The same, 16 steps a call."""
    return vae(tiny, steps=16)


def pgd_resnet18(tiny: bool) -> Case:
    """Training of ResNet-18 at 32 x 32 against PGD of 7 steps (Madry et al. 2018), bf16."""
    import umbrella as um

    depth, rows, steps = (20, 4, 2) if tiny else (18, 512, 7)
    net = um.models.ResNet(out=10, depth=depth, stem="small", precision="bf16")
    attack = um.adversarial(um.pgd(eps=8 / 255, steps=steps, bounds=(0.0, 1.0)))
    base = um.chain(um.pixels(255.0), attack)(um.supervised(net, um.losses.cross_entropy))
    momentum = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    # a step of the attack is a forward pass and the gradient by the input, without that by the weights
    macs, passes = resnet_macs(depth, 32, 10, small=True), 3 + 2 * steps
    return Case(base, optimizer(momentum), images(32, 10), rows, macs, passes)


CASES: dict[str, tuple[str, Callable[[bool], Case]]] = {
    "resnet50": ("ResNet-50, 224 x 224, bf16", resnet50),
    "vit": ("ViT-S/16, 224 x 224, bf16", vit_s16),
    "gpt": ("GPT, 124 M parameters, 1,024 tokens, bf16", gpt_124m),
    "vae": ("VAE 784-400-20, f32", vae),
    "vae16": ("VAE 784-400-20, f32, 16 steps a call", vae_16_steps),
    "pgd": ("ResNet-18, 32 x 32, against PGD of 7 steps, bf16", pgd_resnet18),
}


def optimizer(config: dict[str, Any]) -> Any:
    """As a config's section says."""
    from umbrella import optim

    return optim.build(config, total_steps=100_000, to_steps=lambda duration: 0)


def images(size: int, classes: int, channels: int = 3) -> Callable[[Any, int], dict[str, Any]]:
    """(key, n) -> {"x": u8[n, size, size, channels], "y": i32[n]}, noise."""
    import jax
    import jax.numpy as jnp

    def resident(key: Any, n: int) -> dict[str, Any]:
        x, y = jax.random.split(key)
        return {
            "x": jax.random.bits(x, (n, size, size, channels), jnp.uint8),
            "y": jax.random.randint(y, (n,), 0, classes),
        }

    return resident


# ------------------------------------------------------------------------------------------------------------ measuring
def measured(name: str, tiny: bool, half: int, seconds: float) -> dict[str, Any]:
    """What a case took.

    Args:
      half: how often its rows are halved.
      seconds: about how long it is measured, after compiling.

    Raises:
      RuntimeError: JAX finds no accelerator, and the shapes are not small.
    """
    import jax
    import numpy as np

    import umbrella as um
    from benchmarks.utilisation import peak_of

    device = jax.devices()[0]
    if device.platform == "cpu" and not tiny:
        raise RuntimeError("JAX finds no accelerator; install jax[cuda12] or jax[cuda13], or say --tiny")
    case = CASES[name][1](tiny)
    rows, k = max(1, case.rows >> half), case.steps
    step = um.guard(um.update(um.grad_of(case.objective), case.tx), "halt")
    resident = jax.jit(case.resident, static_argnums=1)(jax.random.key(0), 4 * rows)
    rng = np.random.default_rng(0)
    shape = (rows,) if k == 1 else (k, rows)
    slots = [{"idx": rng.integers(0, 4 * rows, shape, dtype=np.int32)} for _ in range(8)]

    run = um.program(step, fetch=um.gather, steps=k)
    first = {"idx": slots[0]["idx"].reshape(-1, rows)[0]}
    ts = jax.jit(lambda data: um.create(case.objective.init, step, jax.random.key(1), um.gather(data, first)))(resident)
    params = um.parameter_count(ts.params)
    window = um.Window.of(jax.eval_shape(run, ts, {}, resident, slots[0])[1])
    call, sums = um.compile_step(run, window), jax.device_put(window.zeros())

    began = time.perf_counter()
    ts, sums = call(ts, sums, {}, resident, slots[0])
    jax.block_until_ready(sums)
    compiling = time.perf_counter() - began

    def spent(calls: int) -> float:
        nonlocal ts, sums
        began = time.perf_counter()
        for i in range(calls):
            ts, sums = call(ts, sums, {}, resident, slots[i % len(slots)])
        jax.block_until_ready((ts, sums))
        return time.perf_counter() - began

    spent(3)
    one = spent(3) / 3
    calls = min(2000, max(3, round(seconds / one)))
    took = spent(calls) / (calls * k)
    flops, peak = 2 * case.macs * case.passes * rows / took, peak_of(device.device_kind)
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    loss = window.compute(sums)["objective"]
    return {
        "device": device.device_kind,
        "parameters": params,
        "rows": rows,
        "steps": calls * k,
        "seconds_a_step": took,
        "examples_per_second": rows / took,
        "tokens_per_second": rows * case.tokens / took if case.tokens else None,
        "flops_per_second": flops,
        "peak_flops": peak,
        "mfu": None if peak is None else flops / peak,
        "peak_bytes": memory,
        "first_call_seconds": compiling,
        "mean_loss": float(loss) if np.isfinite(loss) else None,
        "pytorch": None if case.rival is None else case.rival(rows, seconds),
    }


def torch_vae(hidden: int, latent: int, rows: int, seconds: float) -> str:
    """The same training in PyTorch as one writes it, without a compiler; or that there is no PyTorch."""
    try:
        import torch
    except ImportError:
        return "not installed"
    from torch import nn

    on = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    into = nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent)).to(on)
    back = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, 784)).to(on)
    tx = torch.optim.Adam([*into.parameters(), *back.parameters()], 1e-3, fused=on == "cuda")
    data = torch.randint(0, 256, (4 * rows, 784), dtype=torch.uint8, device=on)

    def spent(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            x = torch.bernoulli(data[torch.randint(0, len(data), (rows,), device=on)].float() / 255)
            mean, log_var = into(x).chunk(2, 1)
            logits = back(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean))
            fit = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            loss = (fit + 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum()) / rows
            tx.zero_grad()
            loss.backward()
            tx.step()
        loss.item()
        return time.perf_counter() - began

    spent(20)
    steps = min(5000, max(20, round(20 * seconds / spent(20))))
    took = spent(steps) / steps
    return f"{1e3 * took:.3f} ms on {on}, torch {torch.__version__}"


# ----------------------------------------------------------------------------------------------------------- the report
def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes, to see whether it runs")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="a JSON file for the numbers")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each case, after compiling")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds that a case may take, compiling included")
    parser.add_argument("--total", type=float, default=460.0, help="seconds that all of them may take")
    args = parser.parse_args()
    seconds = min(args.seconds, 0.5) if args.tiny else args.seconds
    told: dict[str, Any] = {}
    ends = time.monotonic() + args.total
    for name in args.only:
        told[name] = guarded(name, args.tiny, seconds, min(args.limit, ends - time.monotonic()))
        print(f"{name}: {short(told[name])}", file=sys.stderr, flush=True)
        args.out.write_text(json.dumps({"tiny": args.tiny, "cases": told}, indent=2) + "\n")
    print("\n".join([*table(told, args.tiny), "", *notes(told), f"The numbers are in {args.out}."]))
    return 0 if any("error" not in t for t in told.values()) else 1


def short(told: dict[str, Any]) -> str:
    """What is said of a case as soon as it is done."""
    if "error" in told:
        return str(told["error"])
    return f"{1e3 * told['seconds_a_step']:.3f} ms a step, {told['first_call_seconds']:.0f} s to compile"


def guarded(name: str, tiny: bool, seconds: float, limit: float) -> dict[str, Any]:
    """`measured` in a process of its own, or {"error": one line}.

    Args:
      limit: seconds that it may take.
    """
    ends, env = time.monotonic() + limit, dict(os.environ)
    if tiny:
        env.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # nearly all of the time is the compiler's
    for half in range(3):
        code = f"from benchmarks.gpu import _child; _child({name!r}, {tiny}, {half}, {seconds})"
        try:
            left = max(0.1, ends - time.monotonic())
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=left
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not done in {max(0.0, limit):.0f} s"}
        try:
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, json.JSONDecodeError):  # it did not get to say anything
            said = done.stderr.strip().splitlines()
            found = {"error": f"exit status {done.returncode}" + (f": {said[-1][:200]}" if said else "")}
        if NO_ROOM not in found.get("error", ""):
            break
    return found


def _child(name: str, tiny: bool, half: int, seconds: float) -> None:
    try:
        print(json.dumps(measured(name, tiny, half, seconds)))
    except Exception as error:  # whatever it is, the other cases go on
        text = " ".join(str(error).split())
        print(json.dumps({"error": f"{type(error).__name__}: {text[:300]}"}))


def table(told: dict[str, dict[str, Any]], tiny: bool = False) -> list[str]:
    """In Markdown."""
    return [HEAD, "|---|" + "---:|" * (HEAD.count("|") - 2), *(line(name, t, tiny) for name, t in told.items())]


def line(name: str, told: dict[str, Any], tiny: bool = False) -> str:
    """A row of the table."""
    title = f"{name}, in small shapes" if tiny else CASES[name][0]
    if "error" in told:
        return f"| {title} | {told['error'].replace('|', '/')} |" + " |" * (HEAD.count("|") - 3)

    def of(key: str, form: str, unit: float = 1.0) -> str:
        return "" if told[key] is None else form.format(told[key] / unit)

    cells = (
        title,
        of("rows", "{:.0f}"),
        of("seconds_a_step", "{:.3f}", 1e-3),
        of("examples_per_second", "{:,.0f}"),
        of("tokens_per_second", "{:,.0f}"),
        of("flops_per_second", "{:.3g}", 1e12),
        of("mfu", "{:.1%}"),
        of("peak_bytes", "{:.1f} GB", 1e9),
        told["pytorch"] or "",
    )
    return f"| {' | '.join(cells)} |"


def notes(told: dict[str, dict[str, Any]]) -> list[str]:
    """Which device, and by which peak."""
    done = [t for t in told.values() if "error" not in t]
    if not done:
        return []
    peak = done[0]["peak_flops"]
    known = "no peak is known of it" if peak is None else f"MFU is of {peak / 1e12:.0f} TFLOP/s"
    return [f"{done[0]['device']}; {known}."]


if __name__ == "__main__":
    sys.exit(main())
