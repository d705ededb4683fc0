"""The formulas of docs/scale.md, and what they say of programs that are compiled."""

import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import scaling_compiled, scaling_plan
from benchmarks.scaling_plan import SIZES, How, Machine, Mesh, Shape
from tests.conftest import ROOT
from umbrella import losses, models

KEPT = json.loads((ROOT / "docs" / "scale_compiled.json").read_text())
SMALL = Shape("small", *(scaling_compiled.SHAPE[k] for k in ("layers", "width", "heads", "length", "words")))
GPT2 = SIZES[0]


def test_parameters_of_gpt_2() -> None:
    # Blocks: 12 (12 768^2 + 13 768) = 85,054,464; 50,304 words of 768: 38,633,472; 1,024 positions of 768: 786,432;
    # the last norm: 2 768 = 1,536; a bias of every word: 50,304. Together 124,526,208.
    assert GPT2.params == 85_054_464 + 38_633_472 + 786_432 + 1_536 + 50_304 == 124_526_208


def test_parameters_are_those_of_the_model() -> None:
    assert {case["params"] for case in KEPT.values()} == {SMALL.params}
    net = models.GPT(words=512, length=128, width=256, layers=4, heads=8)
    made = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 128), jnp.int32), train=False))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(made)) == SMALL.params


def test_the_state_with_adam() -> None:
    # 124,526,208 parameters of 4 bytes, and two moments of each: 1,494,314,496 bytes; with an average 4 more of each.
    assert scaling_plan.state(GPT2, Mesh(8, 1, 1)) == 1_494_314_496
    assert scaling_plan.state(GPT2, Mesh(8, 1, 1), ema=True) == 1_992_419_328
    # fsdp=4 and model=2 leave an eighth.
    assert scaling_plan.state(GPT2, Mesh(1, 4, 2)) == 186_789_312


def test_flops_of_a_token() -> None:
    # 6 124,526,208 = 747,157,248; attention: 12 blocks, 12 768 1,024 each: 113,246,208.
    assert GPT2.flops == 747_157_248 + 113_246_208


def test_a_ring() -> None:
    # Eight devices, 800 bytes: seven eighths go out in the reduce-scatter and as many in the gather.
    assert scaling_plan.all_reduce(8, 800) == 1400
    assert scaling_plan.gather(8, 800) == 700
    assert scaling_plan.all_reduce(1, 800) == 0


def test_what_data_sends() -> None:
    # 3,323,904 parameters and the embedding's 512 256 once more: 3,454,976 numbers, 13,819,904 bytes; 7/4 of it.
    assert SMALL.params + 512 * 256 == 3_454_976
    assert scaling_plan.sent(SMALL, Mesh(8, 1, 1), How(32))["data"] == 13_819_904 * 7 / 4
    assert scaling_plan.sent(SMALL, Mesh(8, 1, 1), How(32, microbatches=4))["data"] == 13_819_904 * 7


def test_what_model_sends() -> None:
    # 32 rows of 128 tokens, 256 numbers of 4 bytes: 4,194,304 bytes; four sums for each of four blocks and two more,
    # of which a device of eight sends 7/4.
    sent = scaling_plan.sent(SMALL, Mesh(1, 1, 8), How(32, precision="f32"))
    assert sent == {"data": 0, "fsdp": 0, "model": 18 * 4_194_304 * 7 / 4}


def test_what_fsdp_sends() -> None:
    # ZeRO: 13,295,616 bytes are gathered, twice with remat, and 13,819,904 of gradients scattered; 7/8 of each.
    how = How(32, precision="f32")
    assert scaling_plan.sent(SMALL, Mesh(1, 8, 1), how)["fsdp"] == 7 / 8 * (13_295_616 + 13_819_904)
    again = scaling_plan.sent(SMALL, Mesh(1, 8, 1), how._replace(remat=True))["fsdp"]
    assert again == 7 / 8 * (2 * 13_295_616 + 13_819_904)
    # As it is: 17 gathers and 17 sums of 4,194,304 bytes, a sum being two gathers.
    now = scaling_plan.sent(SMALL, Mesh(1, 8, 1), how._replace(cutting="left"))["fsdp"]
    assert now == 7 / 8 * 51 * 4_194_304


def test_what_fsdp_sends_is_waited_for_as_it_is() -> None:
    machine, how = Machine(), How(32, precision="f32")
    for cutting, waits in (("left", True), ("zero", False)):
        told = scaling_plan.step(SMALL, Mesh(1, 8, 1), how._replace(cutting=cutting), machine)
        assert (told.waited > 0, told.other > 0) == (waits, not waits)


def test_rates_of_axes() -> None:
    machine = Machine(within=450.0, between=50.0, host=8, links=1.0)
    # Within a host all are NVLink's.
    assert scaling_plan.rates(Mesh(2, 2, 2), machine) == {"model": 450, "fsdp": 450, "data": 450}
    # "model" fills the host, so that each device along "data" has its own port and no more.
    assert scaling_plan.rates(Mesh(64, 1, 8), machine) == {"model": 450, "fsdp": 450, "data": 50}
    # All eight of every host are along "data": eight ports, less than NVLink's 450.
    assert scaling_plan.rates(Mesh(64, 1, 1), machine)["data"] == 400
    # Two along "model" leave four of a host along "fsdp".
    assert scaling_plan.rates(Mesh(1, 32, 2), machine)["fsdp"] == 200


def test_a_step_by_hand() -> None:
    # A machine of 1e12 FLOPs a second, all of which it reaches, and links of 1e9 bytes a second, none of it hidden.
    machine = Machine(peak=1e12, within=1e9, between=1e9, kernels=1.0, links=1.0, overlap=0.0)
    mesh, how = Mesh(8, 1, 1), How(32)
    # 4,096 tokens, 512 on each device: 6 3,323,904 + 12 4 256 128 FLOPs of each, and the output's 6 512 256 again.
    flops = 512 * (19_943_424 + 1_572_864 + 786_432)
    compute, sending = flops / 1e12, 24_184_832 / 1e9
    told = scaling_plan.step(SMALL, mesh, how, machine)
    assert told.compute == pytest.approx(compute)
    assert told.total == pytest.approx(compute + sending)
    assert told.mfu == pytest.approx(512 * 21_516_288 / 1e12 / (compute + sending))
    # Half of it may be hidden, but no longer than something is computed.
    half = scaling_plan.step(SMALL, mesh, how, machine._replace(overlap=0.5))
    assert half.total == pytest.approx(sending)  # compute + sending - compute: half of 24 ms is more than 11 ms
    assert compute < sending / 2


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("remat", [False, "dots", "dots_no_batch", True])
def test_what_a_block_keeps_for_the_backward_pass(remat: Any, precision: Any) -> None:
    """By what jax.vjp holds on to: differences in rows and in blocks leave what a block keeps of a token."""

    def held(layers: int, rows: int) -> int:
        net = models.GPT(words=512, length=128, width=256, layers=layers, heads=8, remat=remat, precision=precision)
        x = jax.ShapeDtypeStruct((rows, 128), jnp.int32)
        params = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 128), jnp.int32), train=False))

        def pull(params: Any, x: Any) -> Any:
            return jax.vjp(lambda p: losses.cross_entropy(net.apply(p, x, train=True), x).mean(), params)[1]

        return sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(jax.eval_shape(pull, params, x)))

    each = (held(2, 2) - held(2, 1)) - (held(1, 2) - held(1, 1))
    assert each / 128 == pytest.approx(scaling_plan.kept(SMALL, remat, precision, scores=True), rel=0.03)


def test_a_plan_divides_what_it_says() -> None:
    machine = Machine()
    for shape in SIZES:
        for devices in scaling_plan.COUNTS:
            found = scaling_plan.best(shape, devices, scaling_plan.BATCHES[shape.name], machine, "left")
            if found is None:
                # 12 69,711,217,792 bytes by eight are more than any of them has.
                assert (shape.name, devices) == ("70B", 8)
                continue
            mesh, how = found
            assert mesh.devices == devices and how.batch % (mesh.rows * how.microbatches) == 0
            assert sum(scaling_plan.memory(shape, mesh, how).values()) <= 0.9 * machine.memory
            assert 0 < scaling_plan.step(shape, mesh, how, machine).mfu <= machine.kernels


TEXT = """\
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}
%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %r = f32[4,8]{1,0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add
}
%condition (p: (s32[], f32[4,8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n)
}
ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %g = f32[8,8]{1,0} all-gather(%x), replica_groups={{0,1},{2,3}}, dimensions={0}
  %w = (s32[], f32[4,8]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""


def test_collectives_are_counted_as_often_as_their_loop_goes_round() -> None:
    # The sum: 4 8 4 = 128 bytes, three times, over four devices: 2 3/4 of it each. The gather: half of 256 bytes.
    assert scaling_compiled.sent(TEXT) == {
        "all-gather": {"times": 1, "result": 256, "sent": 128},
        "all-reduce": {"times": 3, "result": 384, "sent": 576},
    }


def test_a_loop_that_does_not_say_how_often_it_goes_round_is_refused() -> None:
    text = TEXT.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
    with pytest.raises(ValueError, match="does not say how often"):
        scaling_compiled.sent(text)


TOLERANCE = {"data": 0.001, "model": 0.005, "all three": 0.03, "fsdp": 0.03, "fsdp, pinned": 0.03}


def far(case: dict[str, Any]) -> float:
    """How far what is sent is from the formula."""
    mesh = Mesh(case["data"], case["fsdp"], case["model"])
    cutting: Any = "left" if mesh.fsdp > 1 and not case["pinned"] else "sums"
    how = How(case["rows"], case["microbatches"], case["remat"], "f32", cutting)
    found = sum(kind["sent"] for kind in case["collectives"].values())
    return abs(found / sum(scaling_plan.sent(SMALL, mesh, how).values()) - 1)


@pytest.mark.parametrize("name", TOLERANCE)
def test_formulas_agree_with_what_was_compiled(name: str) -> None:
    assert far(KEPT[name]) < TOLERANCE[name]
    assert KEPT[name]["state"] == pytest.approx(
        scaling_plan.state(SMALL, Mesh(*(KEPT[name][axis] for axis in Mesh._fields))), rel=0.1
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data", "fsdp"])
def test_formulas_agree_with_what_is_compiled(name: str) -> None:
    case = scaling_compiled.of(name)
    assert far(case) < TOLERANCE[name]
    assert (
        case["collectives"] == KEPT[name]["collectives"]
    )  # else docs/generate_scale.py --compile brings them up to date


def test_the_numbers_in_the_text_are_those_of_the_tables() -> None:
    text = " ".join((ROOT / "docs" / "scale.md").read_text().split())
    sent = {name: sum(kind["sent"] for kind in case["collectives"].values()) / 1e6 for name, case in KEPT.items()}
    zero = sum(scaling_plan.sent(SMALL, Mesh(1, 8, 1), How(32, precision="f32")).values()) / 1e6
    assert f"{sent['fsdp']:.0f} MB instead of {zero:.0f} MB a step" in text
    assert f"the same step sends {sent['fsdp, pinned']:.0f} MB, whatever the rows" in text
    assert sent["fsdp, pinned"] == pytest.approx(sent["fsdp, pinned, twice the rows"], rel=1e-3)
    assert sent["fsdp, twice the rows"] == pytest.approx(2 * sent["fsdp"], rel=0.01)
    shape, shares = SIZES[-1], {"left": [], "zero": []}
    for memory in (80e9, 141e9):
        for devices in scaling_plan.COUNTS[1:]:
            for cutting, found in shares.items():
                machine = Machine(memory=memory)
                plan = scaling_plan.best(shape, devices, scaling_plan.BATCHES[shape.name], machine, cutting)
                found.append(scaling_plan.step(shape, *plan, machine).mfu)
    left, zero = ((f"{100 * min(v):.0f} %", f"{100 * max(v):.0f} %") for v in shares.values())
    assert f"would use {zero[0]} to {zero[1]} of the peak; left to XLA, {left[0]} to {left[1]}." in text
