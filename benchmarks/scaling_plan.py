"""What training a GPT on many devices takes, by formulas: memory, bytes sent, seconds of a step. No device is needed.

docs/scale.md says where each formula is from, and how far what is compiled (benchmarks/scaling_compiled.py) is from it.
Bytes are of one device unless it is said otherwise; what is sent is what a device sends in a step, by rings.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

Remat = bool | Literal["dots", "dots_no_batch"]
# What "fsdp" sends: "zero" parameters and gradients; "sums" the same, but every gradient is summed whole, which is what
# XLA's CPU backend makes of it; "left" activations, which is what XLA makes of a step that does not say that
# rows stay where they are.
Cutting = Literal["zero", "sums", "left"]
STATE = 12  # bytes of a parameter: itself and Adam's two moments, all f32; 4 more with config.ema
GRADIENT = 4
MOST_TOKENS = 2**31 - 1  # that umbrella.data.sequences can count in i32


class Shape(NamedTuple):
    """A GPT as `umbrella.models.GPT` is: learned positions, perceptrons of four times the width, a tied output."""

    name: str
    layers: int
    width: int
    heads: int
    length: int
    words: int = 50_304

    @property
    def block(self) -> int:
        """Parameters of a block: 12 W^2 of six matrices, 13 W of their biases and of two norms."""
        return 12 * self.width**2 + 13 * self.width

    @property
    def params(self) -> int:
        """All: blocks, embedding, positions, the last norm, a bias of every word."""
        w = self.width
        return self.layers * self.block + self.words * w + self.length * w + 2 * w + self.words

    @property
    def flops(self) -> float:
        """Of a token, forward and backward: 6 N, and 12 L W T for attention (Chowdhery et al. 2022, appendix B)."""
        return 6 * self.params + 12 * self.layers * self.width * self.length


class Mesh(NamedTuple):
    data: int
    fsdp: int
    model: int

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.model

    @property
    def rows(self) -> int:
        return self.data * self.fsdp


class How(NamedTuple):
    """What can be chosen without another model: `batch` rows a step, in `microbatches`."""

    batch: int
    microbatches: int = 1
    remat: Remat = False
    precision: Literal["f32", "bf16"] = "bf16"
    cutting: Cutting = "zero"


class Machine(NamedTuple):
    """Assumptions. Rates are bytes a second that a device can send in one direction, by the makers' data sheets."""

    memory: float = 80e9  # of an H100; 141e9 of an H200
    peak: float = 989e12  # dense bf16 FLOPs a second of either
    within: float = 450e9  # NVLink, half of 900e9 in both directions
    between: float = 50e9  # one 400 Gb/s InfiniBand port for each device
    host: int = 8  # devices
    kernels: float = 0.6  # share of the peak that a step reaches where nothing is sent
    links: float = 0.75  # share of a link's rate that a collective reaches
    overlap: float = 0.5  # share of gradients and parameters that can be sent while something is computed
    usable: float = 0.9  # share of the memory: the rest is fragments, NCCL's buffers, CUDA itself


# -------------------------------------------------------------------------------------------------------------- memory
def state(shape: Shape, mesh: Mesh, ema: bool = False) -> float:
    """Parameters and what is kept of them; "fsdp" and "model" divide it, "data" does not (Rajbhandari et al. 2020)."""
    return (STATE + 4 * ema) * shape.params / (mesh.fsdp * mesh.model)


def kept(shape: Shape, remat: Remat, precision: str, scores: bool = False) -> float:
    """Bytes that a block keeps of one token for the backward pass, on one device.

    What automatic differentiation asks for: `tests/test_scale.py` counts it. Without remat the compiler keeps less.

    Args:
      scores: of attention are kept, as they are but by cuDNN's attention in bf16.
    """
    wide = 4 if precision == "f32" else 2
    reached = shape.heads * shape.length * reach(shape.length) if scores else 0.0
    if remat is True:
        return wide * shape.width
    if remat == "dots_no_batch":
        return wide * 9 * shape.width
    if remat == "dots":
        return wide * (10 * shape.width + reached)
    return (148 if precision == "f32" else 86) * shape.width + (12 if precision == "f32" else 10) * reached


def least(shape: Shape, precision: str, scores: bool = False) -> float:
    """The same without remat, if nothing is kept that is cheap to compute again: 16 numbers of each of the width and
    one for each score (Korthikanti et al. 2022, section 4.1, without dropout)."""
    wide = 4 if precision == "f32" else 2
    reached = shape.heads * shape.length * reach(shape.length) if scores else 0.0
    return wide * (16 * shape.width + reached)


def reach(length: int) -> float:
    """The share of all scores that `umbrella.models.attention.attend` computes when it is causal.

    >>> reach(128), reach(1024)
    (0.75, 0.5625)
    """
    blocks = min(8, length // 64)
    return (blocks + 1) / (2 * blocks) if blocks and length % blocks == 0 else 1.0


def activations(shape: Shape, mesh: Mesh, how: How) -> float:
    """What all blocks keep, what one of them keeps while it is computed again, and three arrays f32 of all words."""
    tokens = how.batch * shape.length / (mesh.rows * how.microbatches)
    inside = kept(shape, False, how.precision) if how.remat else 0.0
    # Between the blocks' products "model" leaves whole what it divides within them: the input, and half of the rest.
    cut = 1 if mesh.model == 1 else 0.5 + 0.5 / mesh.model
    blocks = shape.layers * kept(shape, how.remat, how.precision) + inside
    return tokens * (blocks * (1 if how.remat is True else cut) + 3 * 4 * shape.words / mesh.model)


def memory(shape: Shape, mesh: Mesh, how: How, tokens: int = MOST_TOKENS) -> dict[str, float]:
    """Of a device: the state, gradients (twice where microbatches add up), what "fsdp" gathers, activations, and the
    training text, which lies whole on every device, as i32."""
    part = mesh.fsdp * mesh.model
    gradient = GRADIENT * shape.params / part * (2 if how.microbatches > 1 else 1)
    wide = 4 if how.precision == "f32" else 2
    gathered = 0.0
    if mesh.fsdp > 1 and how.cutting == "left":  # what goes into a product, and what comes out, of all their rows
        gathered = 2 * how.batch * shape.length / (mesh.data * how.microbatches) * shape.width * wide
    elif mesh.fsdp > 1 and how.remat:  # two blocks and the gradient of one; the embedding and its gradient
        gathered = 4 * (3 * shape.block + 2 * shape.words * shape.width) / mesh.model
    elif mesh.fsdp > 1:  # what was gathered stays until the backward pass
        gathered = 4 * (shape.params + shape.block) / mesh.model
    return {
        "state": state(shape, mesh),
        "gradients": gradient,
        "gathered": gathered,
        "activations": activations(shape, mesh, how),
        "text": 4.0 * tokens,
    }


# ----------------------------------------------------------------------------------------------------- what is sent
def all_reduce(n: int, size: float) -> float:
    """Of `size` bytes on each of n devices, by a ring: a reduce-scatter and an all-gather.

    >>> all_reduce(8, 800.0), gather(8, 800.0)
    (1400.0, 700.0)
    """
    return 2 * (n - 1) / n * size


def gather(n: int, size: float) -> float:
    """To have `size` bytes of which each of n devices has a part; a reduce-scatter of `size` bytes sends as much."""
    return (n - 1) / n * size


def sent(shape: Shape, mesh: Mesh, how: How) -> dict[str, float]:
    """Axis of the mesh -> bytes that a device sends in a step."""
    k, wide = how.microbatches, 4 if how.precision == "f32" else 2
    params = 4.0 * shape.params / mesh.model
    twice = 4.0 * shape.words * shape.width / mesh.model  # of the tied embedding two gradients are sent
    stream = how.batch * shape.length / mesh.rows * shape.width * wide  # the tokens of a device, all microbatches
    gathers = 2 if how.remat else 1
    # Two sums forward and two backward for every block (Shoeybi et al. 2019, section 3), and one of them again when the
    # products are made again. Along "model" also one for the embedding and one for the output.
    sums = 5 if how.remat is True else 4
    if mesh.fsdp == 1:
        data = k * all_reduce(mesh.data, params + twice)
        fsdp = 0.0
    elif how.cutting == "zero":
        # Gathered for the forward pass, with remat once more for the backward pass; in every microbatch, as the sum of
        # the gradients over devices is.
        fsdp = k * (gathers * gather(mesh.fsdp, params) + gather(mesh.fsdp, params + twice))
        data = k * all_reduce(mesh.data, (params + twice) / mesh.fsdp)
    elif how.cutting == "sums":
        fsdp = k * gathers * gather(mesh.fsdp, params)
        data = k * all_reduce(mesh.rows, params + twice)
    else:
        # Of the rows of all devices along "fsdp": in every block what goes into a product is gathered four times, with
        # remat or microbatches six times, and what comes out is summed as often as along "model"; both once more for
        # the output.
        gathered = (6 if how.remat or k > 1 else 4) * shape.layers + 1
        fsdp = gather(mesh.fsdp, (gathered + 2 * (sums * shape.layers + 1)) * stream * mesh.fsdp)
        data = k * all_reduce(mesh.data, (params + twice) / mesh.fsdp)
    return {"data": data, "fsdp": fsdp, "model": all_reduce(mesh.model, (sums * shape.layers + 2) * stream)}


def rates(mesh: Mesh, machine: Machine) -> dict[str, float]:
    """Axis -> bytes a second that a device can send along it.

    Devices are numbered "model" first, then "fsdp", then "data", and hosts have `host` neighbours each. Along an axis
    that leaves the host each of its devices there has a port, and a ring through all of them crosses each port once.
    """
    out, inner = {}, 1
    for axis, n in (("model", mesh.model), ("fsdp", mesh.fsdp), ("data", mesh.data)):
        here = max(1, min(n, machine.host // inner)) if inner < machine.host else 1
        stays = inner * n <= machine.host
        out[axis] = machine.links * (machine.within if stays else min(machine.within, here * machine.between))
        inner *= n
    return out


# --------------------------------------------------------------------------------------------------------------- a step
class Step(NamedTuple):
    compute: float  # seconds
    waited: float  # seconds of activations that are sent: the next product waits for them
    other: float  # seconds of gradients and parameters that are sent
    exposed: float  # of these, seconds in which nothing is computed
    total: float
    mfu: float  # of the model's FLOPs, without what is computed twice (Chowdhery et al. 2022)


def step(shape: Shape, mesh: Mesh, how: How, machine: Machine) -> Step:
    """compute + waited + other - min(overlap other, compute). What "fsdp" sends in umbrella is waited for."""
    tokens = how.batch * shape.length
    head = 6 * shape.words * shape.width  # in f32, for which an H100 has half the rate (TF32), so it counts twice
    flops = shape.flops + head + again(shape, how.remat)
    compute = flops * tokens / (mesh.devices * machine.peak * machine.kernels)
    speed, bytes_of = rates(mesh, machine), sent(shape, mesh, how)
    spent = {axis: bytes_of[axis] / speed[axis] for axis in bytes_of}
    waited, other = spent["model"], spent["data"]
    if how.cutting == "left":
        waited += spent["fsdp"]
    else:
        other += spent["fsdp"]
    exposed = other - min(machine.overlap * other, compute)
    total = compute + waited + exposed
    return Step(
        compute,
        waited,
        other,
        exposed,
        total,
        shape.flops * tokens / (total * mesh.devices * machine.peak),
    )


def again(shape: Shape, remat: Remat) -> float:
    """FLOPs of a token that are made a second time: attention's; under True also the products of a block but its last,
    whose result the backward pass does not need."""
    attention = 4 * shape.layers * shape.width * shape.length
    products = 16 * shape.layers * shape.width**2
    return {False: 0.0, "dots": 0.0, "dots_no_batch": attention, True: attention + products}[remat]


def fits(shape: Shape, mesh: Mesh, how: How, machine: Machine, tokens: int = MOST_TOKENS) -> bool:
    return sum(memory(shape, mesh, how, tokens).values()) <= machine.usable * machine.memory


def plans(shape: Shape, devices: int, batch: int, machine: Machine, cutting: Cutting) -> Iterator[tuple[Mesh, How]]:
    """Every mesh and way that fits: "model" within a host, by whole heads; rows that the devices and the microbatches
    divide, as umbrella asks for."""
    for model in (1, 2, 4, 8):
        for fsdp in (2**i for i in range(11)):
            data, over = divmod(devices, model * fsdp)
            if over or not data or shape.heads % model or shape.words % model or batch % (data * fsdp):
                continue
            if cutting == "left" and shape.heads % (model * fsdp):  # scores would be summed, and asked room for
                continue
            mesh = Mesh(data, fsdp, model)
            ways: tuple[Remat, ...] = (False, "dots_no_batch", True)
            for remat in ways:
                for k in (2**i for i in range(11)):
                    how = How(batch, k, remat, "bf16", cutting)
                    if batch // mesh.rows % k == 0 and fits(shape, mesh, how, machine):
                        yield mesh, how


def best(shape: Shape, devices: int, batch: int, machine: Machine, cutting: Cutting) -> tuple[Mesh, How] | None:
    """The quickest of the plans; None when nothing fits."""
    found = list(plans(shape, devices, batch, machine, cutting))
    return min(
        found, key=lambda p: (step(shape, p[0], p[1], machine).total, p[1].microbatches, p[0].fsdp), default=None
    )


SIZES = (
    Shape("124M", 12, 768, 12, 1024),
    Shape("1.3B", 24, 2048, 16, 2048),
    Shape("7B", 32, 4096, 32, 2048),
    Shape("70B", 86, 8192, 64, 4096),
)
BATCHES = {"124M": 512, "1.3B": 512, "7B": 1024, "70B": 1024}  # rows: half a million tokens to four million
COUNTS = (8, 64, 512, 1024)
