"""Another library's attack on a classifier that was trained here: python -m benchmarks.outside runs/NAME --eps=0.3

foolbox's PGD (Rauber et al. 2020) with random restarts, on the rows of the test split that the run's own attacks were
tried on. The network runs in JAX, behind a PyTorch function that has JAX's gradient: foolbox does everything else. The
worst of all restarts is printed for every row, and what the run's report says of the same radius.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from umbrella.data import sample
from umbrella.objective import Ctx
from umbrella.runs import Session

BATCH = 250  # rows at once


def main(argv: Sequence[str]) -> int:
    given = flags.FlagValues()
    flags.DEFINE_float("eps", 0.3, "radius, l-infinity", flag_values=given)
    flags.DEFINE_integer("steps", 40, "of PGD", lower_bound=1, flag_values=given)
    flags.DEFINE_integer("restarts", 20, "the worst of which counts", lower_bound=1, flag_values=given)
    flags.DEFINE_integer("rows", 1000, "of the test split", lower_bound=1, flag_values=given)
    _, workdir = given(argv)
    told = attacked(Path(workdir), given.eps, given.steps, given.restarts, given.rows)
    print(json.dumps(told, indent=2))
    return 0


def attacked(workdir: Path, eps: float, steps: int, restarts: int, rows: int) -> dict[str, Any]:
    """The accuracy of the first seed: clean, after one restart, after all, and as the run's own attacks left it."""
    import foolbox
    import torch

    config = json.loads((workdir / "config.json").read_text())
    with Session(config, workdir, quiet=True) as session:
        experiment = session.experiment
        ts, _ = session.start(session.place.replicated(experiment.train_data.resident))
        view = ts.eval_view() if session.lanes is None else ts.eval_view().lane(0)
    plain = experiment.evals["test"].objective
    split = experiment.dataset.test.__getitems__(sample(len(experiment.dataset.test), rows))
    scale = 255 if np.issubdtype(split["x"].dtype, np.integer) else 1
    ctx = Ctx(jax.random.key(0), jnp.int32(0), experiment.frozen, train=False)
    x, y = (split["x"] / scale).astype(np.float32), split["y"].astype(np.int32)

    def logits(x: jax.Array) -> jax.Array:
        batch = {"x": x * scale, "y": jnp.zeros(len(x), jnp.int32)}  # an evaluation begins at what the set holds
        outputs: jax.Array = plain.apply(view.params, view.state, batch, ctx)[1].outputs
        return outputs

    ahead = jax.jit(logits)
    back = jax.jit(lambda x, g: jax.vjp(logits, x)[1](g)[0])

    class Network(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Any) -> Any:
            context.save_for_backward(x)
            return torch.tensor(np.asarray(ahead(x.detach().numpy())))

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            return torch.tensor(np.asarray(back(context.saved_tensors[0].detach().numpy(), gradient.numpy())))

    class Module(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return Network.apply(x)

    model = foolbox.PyTorchModel(Module().eval(), bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(steps=steps, rel_stepsize=2.5 / steps)
    torch.manual_seed(0)
    stands = np.asarray(ahead(x)).argmax(-1) == y
    left = [float(stands.mean())]
    for _ in range(restarts):
        for start in range(0, len(x), BATCH):
            part = slice(start, start + BATCH)
            _, _, fooled = attack(model, torch.tensor(x[part]), torch.tensor(y[part]).long(), epsilons=[eps])
            stands[part] &= ~fooled[0].numpy()
        left.append(float(stands.mean()))
    summary = json.loads((workdir / "summary.json").read_text())
    ours = summary["metrics"].get(f"linf_{eps:g}", {}).get("accuracy")
    first = ours["values"][0] if isinstance(ours, dict) else ours
    return {
        "run": workdir.name,
        "rows": len(x),
        "eps": eps,
        "attack": f"foolbox {foolbox.__version__}, PGD of {steps} steps, {restarts} restarts",
        "clean": left[0],
        "one": left[1],
        "all": left[-1],
        "umbrella": first,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv))
