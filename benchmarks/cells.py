"""Our recurrent layers beside PyTorch's, with the same weights: python -m benchmarks.cells

Two layers, both ways, random sequences and weights; for each of RNN, LSTM and GRU the largest difference of any state
at any step and of any gradient of a weight (docs/torch_cells.json). With --timed also how long a gradient takes in
each, in turn, on two threads: nothing else may run meanwhile.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from umbrella.models.recurrent import KINDS, Recurrent

ROUNDS = 7


def main(argv: Sequence[str]) -> int:
    given = flags.FlagValues()
    flags.DEFINE_string("out", None, "a JSON file for what is printed", flag_values=given)
    flags.DEFINE_boolean("timed", False, "measure times, too", flag_values=given)
    flags.DEFINE_integer("rows", 32, "sequences", lower_bound=1, flag_values=given)
    flags.DEFINE_integer("length", 50, "their steps", lower_bound=1, flag_values=given)
    flags.DEFINE_integer("width", 64, "of a state and of the inputs", lower_bound=1, flag_values=given)
    given(argv)
    told = json.dumps(compared(given.rows, given.length, given.width, given.timed), indent=2)
    print(told)
    if given.out:
        Path(given.out).write_text(told + "\n")
    return 0


def compared(rows: int, length: int, width: int, timed: bool) -> dict[str, Any]:
    """What the docstring of this file says."""
    import torch

    torch.set_num_threads(2 if timed else 1)
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(rows, length, width)).astype(np.float32)
    told = {"torch": torch.__version__, "jax": jax.__version__, "rows": rows, "length": length, "width": width}
    for cell, theirs in (("rnn", torch.nn.RNN), ("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)):
        told[cell] = _compare(cell, theirs(width, width, 2, batch_first=True, bidirectional=True), x, width, timed)
    return told


def _compare(cell: str, theirs: Any, x: np.ndarray, width: int, timed: bool) -> dict[str, float]:
    import torch

    ours = Recurrent(width, cell, layers=2, bidirectional=True)  # type: ignore[arg-type]
    weights = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
    params = taken_over(cell, weights)

    def states_of(params: Any) -> jax.Array:
        h: Any = ours.apply({"params": params}, x)
        return h

    @jax.jit
    def gradient(params: Any) -> Any:
        return jax.grad(lambda p: jnp.mean(jnp.square(states_of(p))))(params)

    def their_gradient() -> None:
        theirs.zero_grad()
        theirs(torch.from_numpy(x))[0].square().mean().backward()

    h = np.asarray(jax.jit(states_of)(params))
    g = gradient(params)
    their_gradient()
    with torch.no_grad():
        states = float(np.abs(h - theirs(torch.from_numpy(x))[0].numpy()).max())
    wanted = taken_over(cell, {k: v.grad.numpy() for k, v in theirs.named_parameters()}, gradients=True)
    largest = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / np.abs(b).max()), g, wanted)
    told = {
        "largest_difference_of_a_state": states,
        "largest_relative_difference_of_a_gradient": max(jax.tree.leaves(largest)),
    }
    if timed:
        spent = _in_turn(lambda: jax.block_until_ready(gradient(params)), their_gradient)
        told |= {"milliseconds": 1e3 * spent[0], "torch_milliseconds": 1e3 * spent[1]}
    return told


def taken_over(
    cell: str, weights: dict[str, np.ndarray], *, gradients: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """torch's weights (or gradients of them) of a stacked layer as our parameters.

    Two biases of torch act as their sum, but for the GRU's candidate, whose second one is inside of the reset gate.
    """
    out = {}
    for name in [k for k in weights if k.startswith("weight_ih")]:
        end = name.removeprefix("weight_ih_l")
        one, two = weights[f"bias_ih_l{end}"], weights[f"bias_hh_l{end}"]
        both = one if gradients else one + two  # the sum's gradient is that of either
        own = {"input": weights[name].T, "state": weights[f"weight_hh_l{end}"].T, "bias": both}
        if cell == "gru":
            w = len(one) // 3
            own["bias"] = np.concatenate([both[: 2 * w], one[2 * w :]])
            own["candidate_bias"] = two[2 * w :]
        out[f"layer_{end.replace('_reverse', '_back')}"] = own
    assert len(next(iter(out.values()))) == 3 + len(KINDS[cell].weights)
    return out


def _in_turn(*calls: Callable[[], Any]) -> list[float]:
    """The shortest of several turns of each, in seconds."""
    spent: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, times in zip(calls, spent, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [min(times) for times in spent]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
