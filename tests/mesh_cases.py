"""What tests/test_mesh.py checks on eight devices, a process each: python -m tests.mesh_cases CASE FOLDER"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

import umbrella as um
from benchmarks import scaling_compiled
from umbrella import checkpoint, parallel, placement, runs

tmap = jax.tree.map


def images(**more: Any) -> dict[str, Any]:
    return {
        "pipeline": "vision",
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": (128,), "norm": "batch"},
        "optimizer": {"name": "adam", "learning_rate": 1e-2},
        "ema": 0.9,
        "batch_size": 40,
        "train_for": "6 steps",
        "evals": {"test": ()},
        "baselines": False,
        **more,
    }


def text(folder: Path, **more: Any) -> dict[str, Any]:
    path = folder / "text.txt"
    letters = np.random.default_rng(0).choice(list("abcdefg h"), 6000)
    path.write_text("".join(letters))
    return {
        "pipeline": "language",
        "data": {"name": "mine", "path": str(path), "validation": 0.1, "test": 0.1},
        "model": {"name": "gpt", "width": 32, "layers": 2, "heads": 4, "positions": "rotary"},
        "length": 16,
        "optimizer": {"name": "adamw", "learning_rate": 3e-3, "clip": 1.0},
        "ema": 0.9,
        "batch_size": 8,
        "eval_batch_size": 8,
        "train_for": "6 steps",
        "evals": {"test": ()},
        "sample": {"length": 5},
        "baselines": False,
        **more,
    }


def trained(config: Mapping[str, Any], folder: Path, **how: Any) -> um.Result:
    return um.run(config, workdir=folder, quiet=True, **how)


def on_one_device(config: Mapping[str, Any], folder: Path) -> um.Result:
    with mock.patch.object(jax, "device_count", lambda: 1):
        run = trained(config, folder)
    assert {d for x in jax.tree.leaves(run.ts.params) for d in x.devices()} == {jax.devices()[0]}
    return run


def far(a: Any, b: Any) -> float:
    """The largest difference of two states' parameters and averages."""
    pairs = zip(*(jax.tree.leaves((r.ts.params, r.ts.ema.params)) for r in (a, b)), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


def largest(ts: Any) -> int:
    """Bytes of the state on the device that has most of it."""
    spent: dict[Any, int] = {}
    for leaf in jax.tree.leaves((ts.params, ts.ema, ts.opt_state)):
        for shard in leaf.addressable_shards:
            spent[shard.device] = spent.get(shard.device, 0) + shard.data.nbytes
    return max(spent.values())


# ------------------------------------------------------------------------------------------------------------ the cases
def one_program_on_any_mesh_of_images(folder: Path) -> None:
    """Rounding alone may differ; BatchNorm is over the whole batch wherever its rows lie."""
    plain = on_one_device(images(), folder / "plain")
    for i, mesh in enumerate(
        ({}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "model": 2}, {"model": 8}, {"data": 4, "model": 2})
    ):
        other = trained(images(mesh=mesh), folder / str(i))
        assert far(plain, other) < 1e-5, (mesh, far(plain, other))
        for name in ("loss", "accuracy"):
            got, want = (r.summary["metrics"]["test"][name] for r in (other, plain))
            assert abs(got - want) < 1e-5, (mesh, name)


def one_program_on_any_mesh_of_text(folder: Path) -> None:
    plain = on_one_device(text(folder), folder / "plain")
    for i, mesh in enumerate(({"fsdp": 4, "model": 2}, {"data": 2, "fsdp": 2, "model": 2}, {"data": 2, "model": 4})):
        other = trained(text(folder, mesh=mesh), folder / str(i))
        assert far(plain, other) < 2e-5, (mesh, far(plain, other))
        assert abs(other.summary["metrics"]["test"]["loss"] - plain.summary["metrics"]["test"]["loss"]) < 1e-5
        kernel = other.ts.params["model"]["transformer"]["block_0"]["in"]["kernel"]  # 32 x 128
        assert kernel.sharding.shard_shape(kernel.shape) == (32 // mesh.get("fsdp", 1), 128 // mesh["model"])


def blocks_in_a_loop_on_any_mesh(folder: Path) -> None:
    """They train as ever, are cut within a block and never along the loop, and text is written by what they learnt."""
    net = {"name": "gpt", "width": 32, "layers": 2, "heads": 4, "positions": "rotary", "scan": True}
    plain = on_one_device(text(folder, model=net), folder / "plain")
    cut = trained(text(folder, model=net, mesh={"data": 2, "fsdp": 2, "model": 2}), folder / "cut")
    assert far(plain, cut) < 2e-5, far(plain, cut)
    kernel = cut.ts.params["model"]["transformer"]["blocks"]["block"]["in"]["kernel"]  # 2 x 32 x 128
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 16, 64)
    assert any("text" in p.name or "sample" in p.name for p in (folder / "cut" / "artifacts").iterdir())


def parameters_come_to_the_rows(folder: Path) -> None:
    """Along "fsdp" what a step sends does not grow with the rows; left to the compiler it does."""

    def sent(rows: int, name: str) -> float:
        config = text(folder, model={"name": "gpt", "width": 64, "layers": 2, "heads": 4}, mesh={"fsdp": 8})
        config |= {"batch_size": rows, "eval_batch_size": 8, "length": 32}
        with runs.Session(config, folder / f"{name}-{rows}", quiet=True) as session:
            found = scaling_compiled.sent(session.lowered()[1].compile().as_text())
        return sum(kind["sent"] for kind in found.values())

    assert sent(32, "pinned") < 1.1 * sent(8, "pinned")
    with mock.patch.object(placement.Placement, "pinning", False):
        assert sent(32, "left") > 2 * sent(8, "left")


def a_part_of_the_state_on_each_device(folder: Path) -> None:
    """Of ZeRO-3 each of eight has an eighth of all large arrays, and all of the small ones: biases, norms, counters.
    The hidden layer, 64 x 128, and the head, 128 x 10, which is below the size at which arrays are cut."""
    whole, cut = (trained(images(mesh=m), folder / str(i)) for i, m in enumerate(({}, {"fsdp": 8})))
    copies = 4  # parameters, their average, Adam's two moments
    hidden = 64 * 128 * 4 * copies
    assert largest(whole.ts) - largest(cut.ts) == hidden - hidden // 8


def seeds_and_parts_together(folder: Path) -> None:
    """Four seeds on two devices each, whose rows or parameters those two share; the first two are what they are alone
    on one device."""
    base = images(seeds=4, batch_size=40)
    plain = trained({**base, "mesh": {"seed": 4, "data": 2}}, folder / "plain")
    for i, mesh in enumerate(
        ({"seed": 4, "data": 1, "fsdp": 2}, {"seed": 1, "data": 8}, {"seed": 2, "data": 2, "model": 2})
    ):
        other = trained({**base, "mesh": mesh}, folder / str(i))
        assert far(plain, other) < 1e-5, (mesh, far(plain, other))
    for lane in (0, 1):
        alone = on_one_device(images(seed=lane), folder / f"alone-{lane}")
        one = far(alone, alone._replace(ts=tmap(lambda x, lane=lane: x[lane], plain.ts)))
        assert one < 1e-5, one


def a_checkpoint_of_any_mesh_goes_on_on_any_other(folder: Path) -> None:
    """The same rows and the same noise: three steps on one mesh and three on another are six on one."""

    def config(mesh: dict[str, int]) -> dict[str, Any]:
        return text(folder, mesh=mesh, checkpoint_every="3 steps", model={**text(folder)["model"], "dropout": 0.1})

    plain = trained(config({}), folder / "plain")
    for i, (first, then) in enumerate((({"fsdp": 8}, {}), ({}, {"fsdp": 2, "model": 2}), ({"model": 4}, {"fsdp": 4}))):
        with runs.Session(config(first), folder / str(i), quiet=True) as session:
            session.train(until=3)
        both = trained(config(then), folder / str(i))
        assert both.history[-1]["step"] == 6
        assert far(plain, both) < 2e-5, (first, then, far(plain, both))


def microbatches_on_parts(folder: Path) -> None:
    more = {"microbatches": 2, "model": {"name": "mlp", "hidden": (128,)}, "batch_size": 64}
    plain = on_one_device(images(**more), folder / "plain")
    for i, how in enumerate(({"mesh": {"fsdp": 4}}, {"compile": "pmap"})):
        other = trained(images(**more, **how), folder / str(i))
        assert far(plain, other) < 1e-5, (how, far(plain, other))


def a_rule_cuts_moments_and_averages_alike(folder: Path) -> None:
    """Also one that names a parameter from its beginning on."""
    run = trained(images(mesh={"model": 8}, shard=(("^model/hidden_0/kernel$", ("model", None)),)), folder / "run")
    state = parallel.paths_of((run.ts.params, run.ts.ema, run.ts.opt_state))
    cut = [v for k, v in state.items() if k.endswith("model/hidden_0/kernel")]
    assert len(cut) == 4  # the parameter, its average, Adam's two moments
    assert all(v.sharding.shard_shape(v.shape) == (8, 128) for v in cut)


def convolutions_of_several_seeds_on_a_mesh(folder: Path) -> None:
    """Written out seed by seed inside of the program, each on two devices that share the rest; stopped and resumed."""
    net = {"name": "cnn", "widths": (8, 8), "hidden": (128,)}
    slow = {"name": "sgd", "learning_rate": 0.05}  # Adam's first steps are as long where a gradient is mere rounding
    config = images(seeds=2, model=net, optimizer=slow, checkpoint_every="3 steps")
    plain = on_one_device(config, folder / "plain")
    mesh = {"seed": 2, "data": 2, "fsdp": 2}
    with runs.Session({**config, "mesh": mesh}, folder / "cut", quiet=True) as session:
        session.train(until=3)
    cut = trained({**config, "mesh": mesh}, folder / "cut")
    assert far(plain, cut) < 2e-5, far(plain, cut)


def one_program_by_pmap(folder: Path) -> None:
    """The same step, mapped over devices that each know their own rows: BatchNorm is over the rows of all, and a mean
    over tokens is that of all, of which some devices have more than others."""
    pairs = {
        "pipeline": "translation",
        "data": {"name": "numbers", "rows": 400},
        "vocabulary": 300,
        "model": {"name": "seq2seq", "width": 16, "hidden": 16, "dropout": 0.0},
        "optimizer": {"name": "adam", "learning_rate": 1e-2},
        "ema": 0.9,
        "batch_size": 16,
        "eval_batch_size": 16,
        "train_for": "4 steps",
        "evals": {"test": ()},
        "baselines": False,
    }
    for name, config in (("images", images(microbatches=1)), ("pairs", pairs)):
        one, other = (trained({**config, "compile": how}, folder / f"{name}-{how}") for how in ("jit", "pmap"))
        assert far(one, other) < 1e-5, (name, far(one, other))
        got, want = (r.summary["metrics"]["test"]["loss"] for r in (other, one))
        assert abs(got - want) < 1e-5, name
        rows = [[r for r in run.history if r["split"] == "train"] for run in (one, other)]
        np.testing.assert_allclose(*[[r["loss"] for r in each] for each in rows], rtol=1e-5)


def a_state_in_the_host_s_memory(folder: Path) -> None:
    """The same to the bit as on the devices, stopped and resumed, on one device and on eight that cut it; and a
    checkpoint does not know where it lay."""
    net = {"name": "mlp", "hidden": (256,), "norm": "batch"}
    for i, how in enumerate(({}, {"mesh": {"fsdp": 8}}, {"seeds": 4, "mesh": {"seed": 4, "data": 2}})):
        config = images(model=net, checkpoint_every="3 steps", **how)
        near = trained(config, folder / f"{i}-near")
        with runs.Session({**config, "offload": True}, folder / f"{i}-off", quiet=True) as session:
            session.train(until=3)
        off = trained({**config, "offload": True}, folder / f"{i}-off")
        assert checkpoint.digests(off.ts) == checkpoint.digests(near.ts), how
        large = {k: x.size >= parallel.SMALL for k, x in parallel.paths_of(off.ts).items()}
        away = {k for k, x in parallel.paths_of(off.ts).items() if x.sharding.memory_kind == "pinned_host"}
        assert away == {k for k in large if large[k] and k.startswith("opt_state/")}
        assert len(away) >= 2  # Adam's two moments of the hidden layer
        again = trained({**config, "offload": False, "train_for": "8 steps"}, folder / f"{i}-off")
        assert again.history[-1]["step"] == 8
    with mock.patch.object(jax, "device_count", lambda: 1):
        a, b = (trained(images(model=net, offload=off), folder / f"one-{off}") for off in (False, True))
    assert far(a, b) < 1e-6


def several_steps_a_call(folder: Path) -> None:
    """Calls of three steps are those of one: rows, parts of parameters, seeds of their own data; and a checkpoint in
    between, after which calls go on where they would have been cut anyway."""
    more = {"train_for": "18 steps", "checkpoint_every": "9 steps", "log_every": "9 steps", "eval_every": "9 steps"}
    for i, how in enumerate(
        ({}, {"mesh": {"fsdp": 4}}, {"seeds": 4, "mesh": {"seed": 4, "data": 2}}, {"seeds": 2, "order": "shared"})
    ):
        config = images(**more, **how)
        one = trained({**config, "steps_per_call": 1}, folder / f"{i}-1")
        with mock.patch.object(
            placement.Placement, "slot", autospec=True, side_effect=placement.Placement.slot
        ) as slot:
            three = trained({**config, "steps_per_call": 3}, folder / f"{i}-3")
        assert [c.kwargs["steps"] for c in slot.call_args_list if "steps" in c.kwargs].count(3) == 6, how
        assert far(one, three) < 1e-6, (how, far(one, three))
        assert [r["step"] for r in one.history] == [r["step"] for r in three.history]
        with runs.Session({**config, "steps_per_call": 3}, folder / f"{i}-stopped", quiet=True) as session:
            session.train(until=9)
        again = trained({**config, "steps_per_call": 3}, folder / f"{i}-stopped")
        assert checkpoint.digests(again.ts) == checkpoint.digests(three.ts), how


def fixed_sums_are_equal_on_any_devices(folder: Path) -> None:
    """To the bit: parameters, averages and moments after six steps on 1, 2, 4 and 8 devices, dropout and mixup
    included; and a run that changes its number of devices in between. What they are is what fast sums are, to
    rounding."""
    net = {"name": "mlp", "hidden": (256,), "dropout": 0.2}
    of = {"images": images(reduction="fixed", model=net, techniques=("mixup",), mixup={"alpha": 0.2})}
    of["text"] = text(folder, reduction="fixed")
    for name, config in of.items():
        found = {}
        for n in (1, 2, 4, 8) if name == "images" else (1, 8):
            with mock.patch.object(jax, "device_count", lambda n=n: n):
                run = trained(config, folder / f"{name}-{n}")
            assert run.ts.step.sharding.num_devices == n
            found[n] = checkpoint.digests(run.ts)
        assert all(of == found[1] for of in found.values()), name
        if name == "images":
            with mock.patch.object(jax, "device_count", lambda: 2), runs.Session(config, folder / "w", quiet=True) as s:
                s.train(until=3)
            assert checkpoint.digests(trained(config, folder / "w").ts) == found[1]
    plain = images(model={**net, "dropout": 0.0}, batch_size=80)
    fixed = trained({**plain, "reduction": "fixed"}, folder / "fixed")
    fast = trained(plain, folder / "plain")
    assert far(fixed, fast) < 1e-5 and checkpoint.digests(fixed.ts) != checkpoint.digests(fast.ts)


CASES: dict[str, Callable[[Path], None]] = {
    f.__name__: f
    for f in (
        one_program_on_any_mesh_of_images,
        one_program_on_any_mesh_of_text,
        blocks_in_a_loop_on_any_mesh,
        parameters_come_to_the_rows,
        a_part_of_the_state_on_each_device,
        seeds_and_parts_together,
        a_checkpoint_of_any_mesh_goes_on_on_any_other,
        microbatches_on_parts,
        a_rule_cuts_moments_and_averages_alike,
        convolutions_of_several_seeds_on_a_mesh,
        one_program_by_pmap,
        several_steps_a_call,
        a_state_in_the_host_s_memory,
        fixed_sums_are_equal_on_any_devices,
    )
}

if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    assert jax.device_count() == 8, "XLA_FLAGS=--xla_force_host_platform_device_count=8"
    CASES[sys.argv[1]](Path(sys.argv[2]))
    print("held")
