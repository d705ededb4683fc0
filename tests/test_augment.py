"""Augmentation by hand, and against SciPy and NumPy. The laws that all techniques share are in test_contract."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats

from tests.helpers import bits, context, gap
from tests.test_transforms import looking, seen
from umbrella import data, pipelines, transforms
from umbrella.objective import Transform
from umbrella.settings import SettingsError
from umbrella.step import gather
from umbrella.transforms import augment
from umbrella.transforms.augment import grey, mixed, turned
from umbrella.transforms.randaugment import OPERATIONS, operated
from umbrella.transforms.warp import affined, displaced, smoothed

pytestmark = pytest.mark.slow

R = np.random.default_rng(0)
PHOTO = R.random((9, 12, 3)).astype(np.float32)
MANY = R.random((6, 9, 12, 3)).astype(np.float32)
DRAWING: dict[str, Transform] = {
    "flip": transforms.flip(),
    "crop": transforms.crop(pad=2),
    "affine": transforms.affine(shear=10.0),
    "elastic": transforms.elastic(alpha=20.0, sigma=3.0),
    "colour": transforms.colour(saturation=0.3, hue=0.2),
    "cutout": transforms.cutout(size=4),
    "randaugment": transforms.randaugment(),
}
every = pytest.mark.parametrize("name", DRAWING)


def passed(transform: Transform, x: Any, *, seed: int = 5, **more: Any) -> np.ndarray:
    """The images after a transform."""
    return np.asarray(seen(transform, {"x": jnp.asarray(x), **more}, context(seed))["x"])


# ----------------------------------------------------------------------------------------------------------- every one
@every
def test_a_row_does_not_depend_on_the_others_nor_on_how_many(name: str) -> None:
    """Four rows of six, and six of which the first two are others: the same to the bit where they are the same."""
    whole = passed(DRAWING[name], MANY)
    assert gap(passed(DRAWING[name], MANY[:4]), whole[:4]) < 1e-6  # compiled for another size: rounded otherwise
    other = MANY.copy()
    other[:2] = np.nan  # as padding may be
    assert bits(passed(DRAWING[name], other)[2:], whole[2:])


@every
def test_rows_and_steps_draw_differently(name: str) -> None:
    """Forty copies of one image do not stay copies, and another key draws other ones."""
    copies = np.repeat(PHOTO[None], 40, 0)
    first, second = passed(DRAWING[name], copies), passed(DRAWING[name], copies, seed=6)
    assert len(np.unique(first.reshape(40, -1), axis=0)) > (1 if name == "flip" else 10)
    assert not bits(first, second)


@every
def test_stays_in_range_shape_and_dtype(name: str) -> None:
    x = np.repeat(np.concatenate([np.zeros((1, 9, 12, 3)), np.ones((1, 9, 12, 3)), MANY[:2].round()]), 20, 0)
    for dtype in (jnp.float32, jnp.bfloat16):
        out = seen(DRAWING[name], {"x": jnp.asarray(x, dtype)})["x"]
        assert (out.shape, out.dtype) == (x.shape, dtype)
        assert float(out.min()) >= 0 and float(out.max()) <= 1 + 1e-6


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [n for n in DRAWING if n != "colour"])
def test_grey_and_coloured(name: str, channels: int) -> None:
    assert passed(DRAWING[name], MANY[..., :channels]).shape == (6, 9, 12, channels)


@pytest.mark.parametrize("name", [*DRAWING, "alternating_flip", "cutmix"])
def test_only_images_of_floats(name: str) -> None:
    transform = {**DRAWING, "alternating_flip": transforms.alternating_flip(), "cutmix": transforms.cutmix(3)}[name]
    batch = {"y": jnp.zeros(6, jnp.int32), "id": jnp.arange(6), "epoch": jnp.arange(6)}
    with pytest.raises(ValueError, match=rf"{name}: needs images, x of floats \[B, H, W, C\]; it is float32\[6, 9\]"):
        seen(transform, {**batch, "x": jnp.zeros((6, 9))})
    with pytest.raises(ValueError, match=f"{name}: needs images.* it is uint8"):
        seen(transform, {**batch, "x": jnp.zeros((6, 9, 9, 1), jnp.uint8)})


def test_a_pipeline_says_it_in_one_line() -> None:
    config = dict(pipeline="vision", data=dict(name="digits"), model=dict(name="mlp"), optimizer=dict(name="adam"))
    config |= dict(batch_size=8, train_for="1 step", evals=dict(test=()), techniques=("colour",))
    with pytest.raises(SettingsError, match="config.techniques: colour: saturation and hue need images of 3 channels"):
        pipelines.build(config | dict(colour=dict(hue=0.1)))


# ------------------------------------------------------------------------------------------------------------- mirrors
def test_flip_mirrors_a_share_of_the_rows() -> None:
    """Of 4,000 rows .3, within five standard errors of .0072. The same key twice: as it was, to the bit."""
    x = np.tile(np.asarray([[[[1.0], [2.0], [3.0]]]], np.float32), (4000, 2, 1, 1))
    out = passed(transforms.flip(probability=0.3), x)
    mirrored = out[:, 0, 0, 0] == 3
    np.testing.assert_array_equal(out, np.where(mirrored.reshape(-1, 1, 1, 1), x[:, :, ::-1], x))
    assert abs(mirrored.mean() - 0.3) < 5 * 0.0072
    assert bits(passed(transforms.flip(probability=0.3), out), x)


def test_alternating_flip_shows_both_sides_in_two_epochs() -> None:
    """Half of 4,000 ids begin mirrored (five standard errors of .0079), and every one is mirrored in one of two."""
    x, n = np.tile(np.asarray([[[[0.0], [1.0]]]], np.float32), (4000, 1, 1, 1)), np.arange(4000, dtype=np.int32)
    turns = [
        passed(transforms.alternating_flip(), x, id=jnp.asarray(n), epoch=jnp.full(4000, e))[:, 0, 0, 0]
        for e in range(3)
    ]
    assert abs(turns[0].mean() - 0.5) < 5 * 0.0079
    np.testing.assert_array_equal(turns[0] + turns[1], 1)
    np.testing.assert_array_equal(turns[0], turns[2])
    moved = np.random.default_rng(1).permutation(4000).astype(np.int32)  # by the id, not by the place
    again = passed(transforms.alternating_flip(), x, id=jnp.asarray(moved), epoch=jnp.zeros(4000, jnp.int32))
    np.testing.assert_array_equal(again[:, 0, 0, 0], turns[0][moved])
    assert bits(passed(transforms.alternating_flip(), x, id=jnp.asarray(n), epoch=jnp.zeros(4000, jnp.int32), seed=9)[
        :, 0, 0, 0
    ], turns[0].astype(np.float32))  # fmt: skip


def test_the_hash_is_murmurs() -> None:
    """In Python's integers; and no two of 10,000 share a value."""

    def by_hand(v: int) -> int:
        v = ((v ^ (v >> 16)) * 0x85EBCA6B) % 2**32
        v = ((v ^ (v >> 13)) * 0xC2B2AE35) % 2**32
        return v ^ (v >> 16)

    got = np.asarray(mixed(jnp.arange(10_000, dtype=jnp.uint32)))
    assert got.tolist() == [by_hand(i) for i in range(10_000)]


def test_alternating_flip_needs_to_know_the_examples() -> None:
    with pytest.raises(ValueError, match="no columns 'id' and 'epoch': make its stream named=True"):
        passed(transforms.alternating_flip(), MANY)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_named_stream_says_which_examples(lazy: bool) -> None:
    """x is its own row, so id must be x; position q of a set of 10 is in epoch q // 10; the batches are the same."""
    source = data.Arrays({"x": np.arange(10)})
    streamed = lambda **k: data.streaming(source, 4, workers=0, **k)  # noqa: E731
    make = streamed if lazy else lambda **k: data.in_memory(source, 4, **k)
    named, plain = make(named=True), make()
    for step in range(6):
        batch = named.fetch(named.resident, named.slot(3, step))
        np.testing.assert_array_equal(batch["id"], batch["x"])
        np.testing.assert_array_equal(batch["epoch"], (4 * step + np.arange(4)) // 10)
        assert batch["id"].dtype == batch["epoch"].dtype == np.int32
        np.testing.assert_array_equal(batch["x"], plain.fetch(plain.resident, plain.slot(3, step))["x"])
        assert set(plain.slot(3, step)) == ({"x"} if lazy else {"idx"})


def test_a_pipeline_names_the_examples_when_a_technique_asks() -> None:
    """Also under another name; and not when none does."""
    config = dict(pipeline="vision", data=dict(name="digits"), model=dict(name="mlp"), optimizer=dict(name="adam"))
    config |= dict(batch_size=8, train_for="1 step", evals=dict(test=()))
    for techniques, named in (((), False), (("flip",), False), (("other",), True), (("alternating_flip",), True)):
        ex = pipelines.build(config | dict(techniques=techniques, other=dict(technique="alternating_flip")))
        batch = gather(ex.train_data.resident, ex.train_data.slot(0, 0))
        assert set(batch) == {"x", "y"} | ({"id", "epoch"} if named else set())


# ---------------------------------------------------------------------------------------------------------------- crop
@pytest.mark.parametrize("mode", ["reflect", "zero"])
def test_crop_is_a_window_of_the_padded_image(mode: Any) -> None:
    """Every one of 25 windows, and nothing else, by NumPy."""
    wide = np.pad(PHOTO, ((2, 2), (2, 2), (0, 0)), mode="reflect" if mode == "reflect" else "constant")
    windows = {wide[i : i + 9, j : j + 12].tobytes(): (i, j) for i in range(5) for j in range(5)}
    out = passed(transforms.crop(pad=2, mode=mode), np.repeat(PHOTO[None], 1000, 0))
    found = [windows[image.tobytes()] for image in out]
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 25
    assert stats.chisquare(counts).pvalue > 1e-3


# -------------------------------------------------------------------------------------------------------------- warping
@pytest.mark.parametrize("degrees", [0.0, 17.0, -90.0])
@pytest.mark.parametrize("scale", [1.0, 0.7, 1.4])
@pytest.mark.parametrize("shear", [0.0, 20.0])
def test_affined_is_scipys(degrees: float, scale: float, shear: float) -> None:
    """Forward in (row, column): scale R [[1, 0], [tan(shear), 1]], with R from the axes that it turns; SciPy wants the
    inverse, and the offset that keeps the centre, moved by (1.5, -2)."""
    a, t = np.deg2rad(degrees), np.tan(np.deg2rad(shear))
    turn = np.asarray([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    forward = scale * turn @ np.asarray([[1, 0], [t, 1]])
    back, centre, shift = np.linalg.inv(forward), np.asarray([4.0, 5.5]), np.asarray([1.5, -2.0])
    wanted = np.stack(
        [
            ndimage.affine_transform(
                PHOTO[..., c].astype(np.float64),
                back,
                centre - back @ (centre + shift),
                order=1,
                mode="grid-constant",
            )
            for c in range(3)
        ],
        -1,
    )
    got = affined(jnp.asarray(PHOTO), degrees=degrees, scale=scale, shear=shear, shift=(1.5, -2.0))
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_a_quarter_turn_is_numpys() -> None:
    """Counter-clockwise, as np.rot90 has it; a square, so that nothing leaves."""
    square = PHOTO[:, :9]
    np.testing.assert_allclose(affined(jnp.asarray(square), degrees=90.0), np.rot90(square), atol=1e-5)


def test_slopes_shear_both_ways() -> None:
    """Pixel (i, j) from the centre goes to (i + y j, j + x i): by SciPy with the inverse of [[1, y], [x, 1]]."""
    y, x = 0.3, -0.2
    back, centre = np.linalg.inv(np.asarray([[1, y], [x, 1]])), np.asarray([4.0, 5.5])
    wanted = ndimage.affine_transform(
        PHOTO[..., 0].astype(np.float64), back, centre - back @ centre, order=1, mode="grid-constant"
    )
    np.testing.assert_allclose(affined(jnp.asarray(PHOTO), slopes=(y, x))[..., 0], wanted, atol=2e-5)


def test_nothing_to_do_is_nothing_to_the_bit() -> None:
    assert bits(affined(jnp.asarray(PHOTO)), jnp.asarray(PHOTO))
    assert bits(displaced(jnp.asarray(PHOTO), jnp.zeros((9, 12)), jnp.zeros((9, 12))), jnp.asarray(PHOTO))


def test_displaced_is_scipys() -> None:
    moves = R.normal(0, 3, (2, 9, 12)).astype(np.float32)
    places = np.meshgrid(np.arange(9), np.arange(12), indexing="ij") + moves.astype(np.float64)
    wanted = np.stack(
        [
            ndimage.map_coordinates(PHOTO[..., c].astype(np.float64), places, order=1, mode="grid-constant")
            for c in range(3)
        ],
        -1,
    )
    np.testing.assert_allclose(displaced(jnp.asarray(PHOTO), *jnp.asarray(moves)), wanted, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.8, 2.0, 5.0])
def test_smoothed_is_scipys_gaussian(sigma: float) -> None:
    fields = R.normal(size=(2, 9, 14)).astype(np.float32)
    wanted = [ndimage.gaussian_filter(f.astype(np.float64), sigma, mode="constant", truncate=4) for f in fields]
    np.testing.assert_allclose(smoothed(jnp.asarray(fields), sigma), wanted, atol=1e-6)


@cache
def ramps(rows: int = 2000, side: int = 21, mid: float = 10.0) -> np.ndarray:
    """Images whose two channels are the row and the column, counted from the centre: what a warp makes of one says
    where its pixels came from."""
    i, j = np.meshgrid(np.arange(side) - mid, np.arange(side) - mid, indexing="ij")
    return np.repeat(np.stack([i, j], -1).astype(np.float32)[None], rows, 0)


def came_from(transform: Transform) -> np.ndarray:
    """The matrices [N, 2, 3] of where each image's middle pixels came from, by least squares."""
    out = passed(transform, ramps())[:, 9:12, 9:12].reshape(2000, 9, 2)
    here = np.concatenate([ramps()[0, 9:12, 9:12].reshape(9, 2), np.ones((9, 1))], 1)
    return np.stack([np.linalg.lstsq(here, o, rcond=None)[0].T for o in out])


def test_affine_draws_uniformly_from_its_ranges() -> None:
    """Angles from the inverse matrix R' / s, its determinant 1 / s^2, and the shift -s R of its last column."""
    back = came_from(transforms.affine(rotate=20.0, translate=0.1, scale=(0.8, 1.2)))
    angle = np.rad2deg(np.arctan2(back[:, 0, 1], back[:, 0, 0]))
    scale = np.linalg.det(back[:, :, :2]) ** -0.5
    shift = -np.linalg.solve(back[:, :, :2], back[:, :, 2:])[..., 0]
    for got, low, high in (
        (angle, -20, 20),
        (scale, 0.8, 1.2),
        (shift[:, 0], -2.1, 2.1),
        (shift[:, 1], -2.1, 2.1),
    ):
        assert stats.kstest(got, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    drawn = np.stack([angle, scale, *shift.T])
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 5 / np.sqrt(2000)


def test_affine_shears_along_x() -> None:
    """Rows come from their own row; columns from tan(shear) times the row to the left."""
    back = came_from(transforms.affine(rotate=0.0, translate=0.0, scale=(1.0, 1.0), shear=25.0))
    np.testing.assert_allclose(back[:, 0], [[1, 0, 0]] * 2000, atol=1e-4)
    lean = np.rad2deg(np.arctan(-back[:, 1, 0]))
    assert stats.kstest(lean, stats.uniform(-25, 50).cdf).pvalue > 1e-3


def test_affine_refuses() -> None:
    with pytest.raises(ValueError, match="from the smaller factor to the larger"):
        transforms.affine(scale=(1.2, 0.8))
    with pytest.raises(ValueError, match="below 90 degrees"):
        transforms.affine(shear=90.0)


def test_elastic_is_blurred_noise() -> None:
    """SciPy's blur of the same noise, through SciPy's interpolation."""
    x, key = MANY[:2], jax.random.fold_in(context().rng("elastic"), 1)
    noise = np.asarray(jax.random.uniform(key, (2, 9, 12), minval=-1.0, maxval=1.0), np.float64)
    moves = 30 * np.stack([ndimage.gaussian_filter(f, 2.5, mode="constant") for f in noise])
    places = np.meshgrid(np.arange(9), np.arange(12), indexing="ij") + moves
    wanted = ndimage.map_coordinates(x[1, ..., 2].astype(np.float64), places, order=1, mode="grid-constant")
    got = passed(transforms.elastic(alpha=30.0, sigma=2.5), x)
    np.testing.assert_allclose(got[1, ..., 2], wanted, atol=1e-5)


def test_elastic_moves_by_what_its_docstring_says() -> None:
    """Uniform noise has sd 1 / sqrt 3; a Gaussian blur leaves 1 / (2 sqrt(pi) sigma) of it: .163 alpha / sigma."""
    moved = (passed(transforms.elastic(alpha=12.0, sigma=2.0), ramps(rows=2000)) - ramps(rows=2000))[:, 10, 10]
    assert round(1 / np.sqrt(12 * np.pi), 3) == 0.163
    np.testing.assert_allclose(moved.std(0), 0.163 * 6, rtol=5 / np.sqrt(4000) + 0.002)


# -------------------------------------------------------------------------------------------------------------- cutout
@pytest.mark.parametrize("size", [3, 4, 20])
def test_cutout_covers_a_square_around_any_pixel(size: int) -> None:
    """Exactly one of the 9 x 12 squares, cut at the borders; all centres alike likely; size^2 pixels when inside."""
    squares: dict[bytes, int] = {}
    for i in range(9):
        for j in range(12):
            covered = np.zeros((9, 12), bool)
            covered[max(i - size // 2, 0) : i - size // 2 + size, max(j - size // 2, 0) : j - size // 2 + size] = True
            squares[covered.tobytes()] = squares.get(covered.tobytes(), 0) + 1
    x = np.repeat(PHOTO[None], 3000, 0) / 2
    out = passed(transforms.cutout(size=size, fill=0.75), x)
    covered = (out == 0.75).all(-1)
    np.testing.assert_array_equal(out, np.where(covered[..., None], np.float32(0.75), x))
    keys, counts = np.unique(covered.reshape(3000, -1), axis=0, return_counts=True)
    chances = np.asarray([squares[k.tobytes()] for k in keys]) / (9 * 12)
    assert len(keys) == len(squares)
    assert stats.chisquare(counts, 3000 * chances).pvalue > 1e-3
    assert covered.sum((1, 2)).max() == min(size, 9) * min(size, 12)


# -------------------------------------------------------------------------------------------------------------- colour
def test_colour_by_hand() -> None:
    """Luma of (.2, .6, .4): .0598 + .3522 + .0456 = .4576. Twice as far from it: (-.0576 -> 0, .7424, .3424)."""
    pixel = jnp.asarray([[[0.2, 0.6, 0.4]]])
    np.testing.assert_allclose(grey(pixel), [[[0.4576]]], rtol=1e-6)
    np.testing.assert_allclose(augment.away(pixel, grey(pixel), jnp.float32(2)), [[[0, 0.7424, 0.3424]]], atol=1e-6)
    np.testing.assert_allclose(grey(pixel[..., :2]), [[[0.4]]], rtol=1e-6)


def test_a_turn_of_colours() -> None:
    """A third of a turn hands red to green, green to blue; a half keeps the mean of the channels; a whole one does
    nothing; what leaves [0, 1] is clipped."""
    np.testing.assert_allclose(turned(jnp.asarray(PHOTO), jnp.float32(1 / 3)), np.roll(PHOTO, 1, -1), atol=1e-6)
    np.testing.assert_allclose(turned(jnp.asarray(PHOTO), jnp.float32(1)), PHOTO, atol=1e-6)
    pale = 0.4 + 0.2 * PHOTO
    half = turned(jnp.asarray(pale), jnp.float32(0.5))
    np.testing.assert_allclose(half, 2 * pale.mean(-1, keepdims=True) - pale, atol=1e-6)  # mirrored at its grey
    assert float(turned(jnp.asarray([[[1.0, 0.0, 0.0]]]), jnp.float32(0.5)).min()) == 0


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
def test_factors_are_uniform(kind: str) -> None:
    """Read off a pale image: (out - base) / (x - base), in 1 +- .4 by Kolmogorov and Smirnov."""
    pale = (0.45 + 0.1 * PHOTO).astype(np.float32)
    luma = pale @ np.asarray([0.299, 0.587, 0.114], np.float32)
    base = {"brightness": 0.0, "contrast": luma.mean(), "saturation": luma[..., None]}[kind]
    settings: dict[str, float] = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, kind: 0.4}
    out = passed(transforms.colour(**settings), np.repeat(pale[None], 2000, 0))
    far = (pale - base).ravel()
    place = np.abs(far).argmax()
    factor = (out - base).reshape(2000, -1)[:, place] / far[place]
    assert stats.kstest(factor, stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    np.testing.assert_allclose(out, base + factor.reshape(-1, 1, 1, 1) * (pale - base), atol=1e-5)


def test_brightness_and_contrast_of_grey_images() -> None:
    x = MANY[..., :1]
    out = passed(transforms.colour(), x)
    assert not bits(out, x)
    with pytest.raises(ValueError, match="need images of 3 channels, these have 1"):
        passed(transforms.colour(saturation=0.1), x)


# --------------------------------------------------------------------------------------------------------- randaugment
BYTES = np.random.default_rng(2).integers(20, 230, (9, 12, 3), np.uint8)


def pil(name: str, sign: float) -> np.ndarray:
    """What Pillow makes of BYTES at magnitude 15."""
    image, factor = Image.fromarray(BYTES), 1 + sign * 0.45
    made = {
        "identity": lambda: image,
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "saturation": lambda: ImageEnhance.Color(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "posterize": lambda: ImageOps.posterize(image, 6),
        "solarize": lambda: ImageOps.solarize(image, 128),
        "autocontrast": lambda: ImageOps.autocontrast(image),
    }[name]()
    return np.asarray(made, np.float32) / 255


def operate(name: str, sign: float, strength: float) -> np.ndarray:
    x = jnp.asarray(BYTES, jnp.float32) / 255
    return np.asarray(operated(x, jnp.int32(OPERATIONS.index(name)), jnp.float32(sign), strength))


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", ["identity", *OPERATIONS[6:]])
def test_operations_of_colour_are_pillows(name: str, sign: float) -> None:
    """Within one and a half of 255 levels: Pillow rounds grey, mean and result to bytes."""
    assert np.abs(operate(name, sign, 0.5) - pil(name, sign)).max() * 255 < 1.6


GEOMETRY = {
    "shear_x": dict(slopes=(0.0, 0.15)),
    "shear_y": dict(slopes=(0.15, 0.0)),
    "translate_x": dict(shift=(0.0, 12 * 75 / 331)),
    "translate_y": dict(shift=(9 * 75 / 331, 0.0)),
    "rotate": dict(degrees=15.0),
}


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", GEOMETRY)
def test_operations_of_geometry_are_warps(name: str, sign: float) -> None:
    (key, value), x = next(iter(GEOMETRY[name].items())), jnp.asarray(BYTES, jnp.float32) / 255
    value = tuple(sign * v for v in value) if isinstance(value, tuple) else sign * value
    np.testing.assert_allclose(operate(name, sign, 0.5), affined(x, **{key: value}), atol=1e-6)


def test_every_operation_has_a_test() -> None:
    assert {"identity", *OPERATIONS[6:], *GEOMETRY} == set(OPERATIONS)


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast"}))
def test_no_magnitude_is_no_operation(name: str) -> None:
    """Also on pixels that are black or white."""
    x = np.concatenate([BYTES, np.zeros_like(BYTES), np.full_like(BYTES, 255)]).astype(np.float32) / 255
    got = operated(jnp.asarray(x), jnp.int32(OPERATIONS.index(name)), jnp.float32(1.0), 0.0)
    np.testing.assert_allclose(got, x, atol=1e-6)


def test_randaugment_draws_every_operation_alike() -> None:
    """2,600 images and one operation: each of the outcomes, two for those with a sign, as often as it should."""
    x = np.asarray(BYTES, np.float32) / 255
    out = passed(transforms.randaugment(operations=1, magnitude=15.0), np.repeat(x[None], 2600, 0))
    wanted = np.stack([operate(n, s, 0.5) for n in OPERATIONS for s in (-1.0, 1.0)])
    distance = np.abs(out[:, None] - wanted[None]).max((2, 3, 4))
    assert distance.min(1).max() < 1e-5
    counts = np.bincount(distance.argmin(1), minlength=26).reshape(13, 2)
    assert stats.chisquare(counts.sum(1)).pvalue > 1e-3
    signed = counts[1:10]  # identity, posterize, solarize, autocontrast have none: argmin takes the first
    assert stats.chisquare(signed.ravel(), np.repeat(signed.sum(1) / 2, 2)).pvalue > 1e-3
    twice = passed(transforms.randaugment(operations=2, magnitude=15.0), np.repeat(x[None], 200, 0))
    assert (np.abs(twice[:, None] - wanted[None]).max((2, 3, 4)).min(1) > 1e-5).mean() > 0.5


# -------------------------------------------------------------------------------------------------------------- cutmix
@cache
def pasted(draws: int = 400) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Many draws of cutmix on rows of one colour each, so that what was pasted where can be read off."""
    batch = {
        "x": jnp.broadcast_to(jnp.arange(8.0).reshape(8, 1, 1, 1), (8, 10, 14, 2)),
        "y": jnp.arange(8, dtype=jnp.int32),
        "mask": jnp.asarray(np.arange(8) < 6, jnp.float32),
        "weight": jnp.arange(1.0, 9),
    }
    o = transforms.cutmix(8, alpha=1.0)(looking())
    keys = jax.random.split(jax.random.key(0), draws)
    out = jax.jit(jax.vmap(lambda k: o.apply({}, {}, batch, context().replace(key=k))[1].outputs))(keys)
    return jax.device_get(out), batch


def test_cutmix_labels_are_the_shares_of_pixels() -> None:
    """The share of each label is the share of the pixels of its colour, to the rounding of one division."""
    out, batch = pasted()
    shares = np.stack([(out["x"][..., 0] == k).mean((2, 3)) for k in range(8)], -1)
    np.testing.assert_allclose(out["y"], shares, atol=1e-6)
    np.testing.assert_array_equal(out["weight"], np.broadcast_to(batch["weight"], (400, 8)))
    assert ((shares.max(-1) < 1).any(1)).mean() > 0.8


def test_cutmix_pastes_one_rectangle_of_a_permutation() -> None:
    out, _ = pasted()
    for image in out["x"][..., 0]:
        foreign = image != np.arange(8).reshape(8, 1, 1)
        if not foreign.any():
            continue
        box = foreign.any(0)
        rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
        assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # a rectangle, the same for all
        partners = image[:, rows[0], columns[0]]
        assert sorted(partners) == list(range(8))
        np.testing.assert_array_equal(foreign, box[None] & (partners != np.arange(8)).reshape(8, 1, 1))


def test_cutmix_with_a_padded_row_is_padding() -> None:
    """Rows 6 and 7 are: a row with a pixel of theirs, or that is one of them, counts no more. Where the rectangle is
    empty the partners cannot be seen."""
    out, _ = pasted()
    image = out["x"][..., 0]
    shown = (image != np.arange(8).reshape(1, 8, 1, 1)).any((1, 2, 3))
    padded = (image >= 6).any((2, 3)) | (np.arange(8) >= 6)
    assert shown.mean() > 0.8
    np.testing.assert_array_equal(out["mask"][shown], ~padded[shown])


def test_cutmix_covers_the_share_of_a_beta() -> None:
    """Whole rectangles alone have the drawn share: where none is cut at a border, sides are as the image's."""
    out, _ = pasted()
    box = (out["x"][..., 0] != np.arange(8).reshape(1, 8, 1, 1)).any(1)
    high, wide = box.any(2).sum(1), box.any(1).sum(1)
    inner = box.any((1, 2)) & ~(box[:, 0].any(1) | box[:, -1].any(1) | box[:, :, 0].any(1) | box[:, :, -1].any(1))
    assert inner.sum() > 20
    assert (np.abs(high[inner] / 10 - wide[inner] / 14) <= 1 / 10 + 1 / 14).all()  # each side rounded
