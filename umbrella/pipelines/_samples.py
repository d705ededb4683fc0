"""What samples of images are worth beside real ones and beside other samplers, in numbers and pictures. Floor 5."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from umbrella import data, frechet
from umbrella.artifacts import Images, Table
from umbrella.baselines import LARGE, part
from umbrella.data import Dataset
from umbrella.experiment import Review
from umbrella.objective import Array, View
from umbrella.pipelines import _judge

MOST = 10_000  # rows on each side of a comparison
LOOKED_AT = 1_000  # rows whose nearest training images are sought
HELD = 0.95  # of the variance, in the components of the PCA that draws images
SHOWN = 100

Draw = Callable[[View, Any], Array]  # (the view of a seed, codes f32[B, latent]) -> images f32[B, H, W, C] in [0, 1]


class Told(NamedTuple):
    """What is said of images beside as many of the test split. The names are those of the metrics."""

    frechet: float
    class_entropy: float
    precision: float
    recall: float


class Contest:
    """Real images, and samplers that play no game, as one classifier sees them: made on demand, each once, so that
    nothing is trained before something is asked.

    Args:
      scale: of the stored images.
      of: the settings of the data set.
      judge, rival: the configs of the classifier and of the autoencoder, but for their data.
    """

    def __init__(
        self, dataset: Dataset, scale: float, of: Mapping[str, Any], judge: Mapping[str, Any], rival: Mapping[str, Any]
    ):
        self.dataset, self.scale = dataset, scale
        self._of, self._judge, self._rival = of, judge, rival
        self.size = min(MOST, len(dataset.test), len(dataset.train))  # rows on each side
        # A classifier needs labels, and those of test to say how good it is; a point of a manifold its neighbours.
        told = bool(dataset.info["classes"]) and not {"train", "test"} & set(dataset.info["hidden"])
        self.judges = told and self.size > frechet.NEIGHBOURS

    @functools.cached_property
    def judge(self) -> _judge.Judge:
        return _judge.judge(self._judge, self._of)

    @functools.cached_property
    def train(self) -> np.ndarray:
        """u8[N, H, W, C]: all of the training images when they lie in memory, else a part."""
        return np.asarray(part(self.dataset.train)["x"])

    def rows(self, split: str, count: int) -> np.ndarray:
        """u8[n, H, W, C]: at most so many images of a split, always the same."""
        source = getattr(self.dataset, split)
        return np.asarray(source.__getitems__(data.sample(len(source), count))["x"])

    def stored(self, images: np.ndarray) -> np.ndarray:
        """f32 in [0, 1] -> u8, rounded to the grey values that the set is stored in."""
        return np.round(np.clip(images, 0, 1) * self.scale).astype(np.uint8)

    def told(self, images: np.ndarray) -> Told:
        """Of u8[N, H, W, C], as many as `size`."""
        features, labels = self.judge.look(images)
        seen = self._test
        return Told(
            frechet.frechet_distance(frechet.gaussian(features), frechet.gaussian(seen.points)),
            frechet.class_entropy(labels, self.judge.classes),
            *frechet.precision_recall(seen, frechet.manifold(features)),
        )

    @functools.cached_property
    def _test(self) -> frechet.Manifold:
        return frechet.manifold(self.judge.look(self.rows("test", self.size))[0])

    def on_validation(self, images: np.ndarray) -> float:
        """The Frechet distance to as many images of the validation split: to choose settings by."""
        held = self.judge.look(self.rows("validation", len(images)))[0]
        features = self.judge.look(images[: len(held)])[0]
        return frechet.frechet_distance(frechet.gaussian(features), frechet.gaussian(held))

    @functools.cached_property
    def real(self) -> Told:
        """Training images beside test images: what as many perfect samples would be told."""
        return self.told(self.rows("train", self.size))

    @functools.cached_property
    def rivals(self) -> dict[str, Told]:
        few = self.train[data.sample(len(self.train), LARGE)]
        gauss = pca_gaussian(few / np.float32(self.scale), self.size)
        draw = _judge.vae_sampler(self._rival, self._of)
        return {
            "training images": self.real,
            "PCA and a Gaussian": self.told(self.stored(gauss)),
            "VAE": self.told(self.stored(draw(self.size))),
        }

    @functools.cached_property
    def held_out(self) -> np.ndarray:
        """f64[N]: distances of test images to the nearest training image, of stored pixels."""
        return frechet.nearest(self.rows("test", LOOKED_AT), self.train)[0]


def pca_gaussian(images: np.ndarray, count: int, *, held: float = HELD, seed: int = 0) -> np.ndarray:
    """f32[count, ...] in [0, 1]: draws from a Gaussian in the principal components that hold `held` of the variance.

    The codes of a PCA are uncorrelated, so a variance for each is the maximum likelihood; what is drawn is clipped.

    Args:
      images: f32[N, ...] in [0, 1].
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    k = 1 + int(np.searchsorted(np.cumsum(values) / values.sum(), held))
    codes = np.random.default_rng(seed).standard_normal((count, k)) * np.sqrt(values[:k])
    drawn = np.clip(flat.mean(0) + codes @ vectors[:, :k].T, 0, 1)
    return drawn.astype(np.float32).reshape(count, *images.shape[1:])


# --------------------------------------------------------------------------------------------------------------- review
def reviewer(draw: Draw, latent: int, contest: Contest, rivals: bool) -> Callable[[View, Array], Review]:
    """Numbers of every seed's samples, and pictures of the first one's. All seeds draw from the same codes.

    Args:
      rivals: whether the other samplers stand in the table, too.
    """

    def review(views: View, key: Array) -> Review:
        codes = np.asarray(jax.random.normal(key, (max(contest.size, LOOKED_AT), latent)))
        seeds = len(jax.tree.leaves(views.params)[0])
        drawn = [_judge.in_chunks(_of(draw, views.lane(k)), codes)[0] for k in range(seeds)]
        finite = np.array([np.isfinite(images).all() for images in drawn])
        drawn = [contest.stored(np.nan_to_num(images)) for images in drawn]
        metrics, found = numbers(drawn, finite, contest)
        first = views.lane(0)

        def made() -> Iterable[tuple[str, Any]]:
            shown = drawn[0][:SHOWN] / np.float32(contest.scale)
            yield "samples", Images(shown, 10, "Images that the generator draws from normal codes; not chosen.")
            yield "interpolation", interpolation(lambda z: np.asarray(draw(first, z)), codes)
            yield "nearest", neighbours(drawn[0][:10], contest)
            if found:
                yield "samplers", table(found, contest, rivals)

        return Review({k: {n: v if seeds > 1 else v[0] for n, v in m.items()} for k, m in metrics.items()}, made())

    return review


def _of(draw: Draw, view: View) -> Callable[[Any], tuple[Array, ...]]:
    return lambda z: (draw(view, z),)


def numbers(
    drawn: list[np.ndarray], finite: np.ndarray, contest: Contest
) -> tuple[dict[str, dict[str, np.ndarray]], list[Told]]:
    """({evaluation: {metric: f64[K]}}, what is said of each seed's samples) of u8[N, H, W, C] of K seeds; NaN for a
    seed whose images were not `finite` bool[K].

    "copied" is the share of samples that are nearer to a training image than all but 1 % of test images are;
    "nearest_ratio" the median distance of samples to the nearest training image over that of test images. Without
    a classifier these two are all there is.
    """
    out: dict[str, dict[str, list[float]]] = {"test": {}}
    found = [contest.told(images[: contest.size]) for images in drawn] if contest.judges else []
    found = [told if ok else Told(*[float("nan")] * 4) for told, ok in zip(found, finite if found else (), strict=True)]
    for name in Told._fields if found else ():
        out["test"][name] = [getattr(f, name) for f in found]
    near = [frechet.nearest(images[:LOOKED_AT], contest.train)[0] for images in drawn]
    out["test"]["copied"] = [frechet.copied(n, contest.held_out) for n in near]
    typical = max(1e-12, float(np.median(contest.held_out)))
    out["test"]["nearest_ratio"] = [float(np.median(n)) / typical for n in near]
    if found and len(contest.dataset.validation) > 1:
        out["validation"] = {"frechet": [contest.on_validation(images[: contest.size]) for images in drawn]}
    return {k: {n: np.where(finite, v, np.nan) for n, v in m.items()} for k, m in out.items()}, found


def interpolation(
    draw: Callable[[np.ndarray], np.ndarray], codes: np.ndarray, ways: int = 8, steps: int = 10
) -> Images:
    """Ways from one code to another along an arc, which keeps a code as long as codes are (White 2016, section 2.1)."""
    rows = []
    for a, b in zip(codes[:ways], codes[ways : 2 * ways], strict=True):
        angle = np.arccos(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))
        for t in np.linspace(0, 1, steps):
            straight = abs(np.sin(angle)) < 1e-6
            rows.append(a if straight else (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle))
    caption = "Each row goes from one code to another along an arc; leaps on the way are modes with nothing in between."
    return Images(draw(np.asarray(rows, np.float32)), steps, caption)


def neighbours(samples: np.ndarray, contest: Contest) -> Images:
    """Samples u8[N, H, W, C] above the training images that are nearest to them."""
    away, found = frechet.nearest(samples, contest.train)
    both = np.concatenate([samples, contest.train[found]]) / np.float32(contest.scale)
    told = ", ".join(f"{d / contest.scale:.2f}" for d in away)
    typical = float(np.median(contest.held_out)) / contest.scale
    caption = (
        "Samples, and below each the training image that is nearest to it by its pixels (in [0, 1]), at a distance of "
        f"{told}; half of the test images have one within {typical:.2f}."
    )
    return Images(both, len(samples), caption, ("sample", "nearest"))


def table(found: list[Told], contest: Contest, rivals: bool) -> Table:
    """The samples of every seed beside real images and, if asked for, the other samplers."""
    named = [("this run" if len(found) == 1 else f"this run, lane {k}", told) for k, told in enumerate(found)]
    if len(found) > 1:
        named.append(("this run, mean", Told(*np.mean(found, 0).tolist())))
    named += (contest.rivals if rivals else {"training images": contest.real}).items()
    judge, classes = contest.judge, contest.judge.classes
    caption = (
        f"{contest.size:,} images each, beside as many of the test split. Frechet distance, precision and recall are "
        f"of the features of a classifier trained here on the training split (fingerprint {judge.fingerprint}, "
        f"accuracy on test {judge.accuracy:.4f}). The entropy, in nats, is of the classes that it sees: "
        f"{np.log(classes):.3f} for {classes} equal ones. Training images are told what perfect samples would be."
    )
    rows = tuple((name, *(f"{v:.3f}" for v in told)) for name, told in named)
    return Table(("images of", "Frechet distance", "class entropy", "precision", "recall"), rows, caption)
