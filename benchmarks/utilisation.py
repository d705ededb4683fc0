"""How much of an accelerator a training step of a GPT uses: tokens a second, and their FLOPs by the peak of the device.

python -m benchmarks.utilisation                      GPT-2 small, 124 million parameters, bf16, on a GPU
python -m benchmarks.utilisation --layers 2 --width 64 --length 32 --batch 2 --words 100       anywhere, as a trial
"""

import argparse
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import umbrella as um

PEAK = {  # dense bf16 FLOPs a second with sums in f32, by the maker; a name before those it contains
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.utilisation", description=__doc__)
    sizes = {"layers": 12, "width": 768, "heads": 12, "length": 1024, "words": 50_304, "batch": 32, "steps": 20}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--remat", action="store_true", help="blocks are computed again in the backward pass")
    args = parser.parse_args()
    seconds, params = step_of(args)
    tokens = args.batch * args.length / seconds
    kind = jax.devices()[0].device_kind
    peak = peak_of(kind)
    used = "" if peak is None else f", {flops_of_token(args, params) * tokens / peak:.1%} of {peak / 1e12:.0f} TFLOPs"
    print(f"{kind}: {params / 1e6:.1f} million parameters, {1e3 * seconds:.1f} ms a step, {tokens:,.0f} tokens/s{used}")
    return 0


def peak_of(kind: str) -> float | None:
    """Of a device by its name, if it is known.

    >>> peak_of("NVIDIA H200"), peak_of("NVIDIA H100 80GB HBM3"), peak_of("NVIDIA L40S")
    (989000000000000.0, 989000000000000.0, None)
    """
    return next((v for k, v in PEAK.items() if re.search(rf"\b{k}\b", kind)), None)


def flops_of_token(args: argparse.Namespace, params: int) -> float:
    """6 N for the parameters and 12 L W T for attention; what is computed twice under remat does not count.

    Source: Chowdhery et al. 2022 (PaLM), appendix B.
    """
    return 6 * params + 12 * args.layers * args.width * args.length


def step_of(args: argparse.Namespace) -> tuple[float, int]:
    """(seconds of a step with guard and AdamW, parameters): the same program as a run's, fed with noise."""
    net = um.models.GPT(
        words=args.words,
        length=args.length,
        width=args.width,
        layers=args.layers,
        heads=args.heads,
        precision="bf16",
        remat=args.remat,
    )
    base = um.supervised(net, um.losses.cross_entropy)
    step = um.guard(um.update(um.grad_of(base), optax.adamw(6e-4)), "halt")
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, args.words, (args.batch, args.length + 1)), jnp.int32)
    batch = {"x": tokens[:, :-1], "y": tokens[:, 1:]}
    ts = um.create(base.init, step, jax.random.key(0), batch)
    params = sum(p.size for p in jax.tree.leaves(ts.params))
    run = um.train_step(step)
    for _ in range(3):
        ts, _ = run(ts, {}, {}, batch)
    jax.block_until_ready(ts)
    began = time.perf_counter()
    for _ in range(args.steps):
        ts, _ = run(ts, {}, {}, batch)
    jax.block_until_ready(ts)
    return (time.perf_counter() - began) / args.steps, params


if __name__ == "__main__":
    raise SystemExit(main())
