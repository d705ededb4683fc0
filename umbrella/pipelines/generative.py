"""Models with latent variables, of images or of tables. Floor 5."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import baselines, losses, models, settings
from umbrella.data import Dataset, scaling
from umbrella.experiment import Experiment
from umbrella.metrics import Mean, mask_of
from umbrella.objective import Array, Batch, Transform, View, chain, map_batch, measure, supervised
from umbrella.pipelines import _latent
from umbrella.pipelines._standard import Problem, Resolve, assemble, scale_of
from umbrella.settings import SettingsError
from umbrella.transforms import binarise, pixels, reconstruct

# Not what turns an image whose target was made before it, nor what needs labels.
FITTING = (
    "adversarial",
    "awp",
    "corruption",
    "cutout",
    "fgsm",
    "importance_weighted",
    "kl",
    "l1",
    "l2",
    "lora",
    "noise",
    "sam",
)


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment.

    Raises:
      SettingsError: whatever in the config does not fit.
    """
    made = assemble(config, problem)
    kinds = {n: made.settings[n].get("technique", n) for n in made.settings["techniques"]}
    by_kind = {kind: name for name, kind in kinds.items()}
    if {"kl", "importance_weighted"} <= set(by_kind):  # in evals it is a measure, whatever was trained on
        raise SettingsError(
            f"config.techniques: {by_kind['importance_weighted']!r} has no KL term that {by_kind['kl']!r} could weigh; "
            "leave one of them out"
        )
    for name in {*kinds, *(n for names in made.settings["evals"].values() for n in names)}:
        if made.settings[name].get("gradient") == "dreg" and made.settings["model"]["above"]:
            raise SettingsError(
                f"config.{name}.gradient: 'dreg' is for one layer of latent variables; set model.above to 0"
            )
    for name in kinds if "lora" in by_kind else ():
        if made.settings[name].get("gradient") == "dreg":
            raise SettingsError(
                f"config.{name}.gradient: 'dreg' cannot tell whose the parameters of {by_kind['lora']!r} are, the "
                "encoder's or the decoder's; set it to 'standard'"
            )
    return made


def problem(
    dataset: Dataset,
    log: dict[str, Any],
    *,
    model: dict,
    likelihood: models.Likelihood = "bernoulli",
    conditional: bool = False,
    clean: dict | None = None,
) -> Problem:
    """The negative ELBO in nats per row.

    Args:
      likelihood: "bernoulli": pixels are drawn anew from their grey values at every step (dynamic binarisation);
        "logistic": the 256 grey values themselves, under a discretised logistic, which also gives bits per dimension;
        "gaussian": a density of a table's features on the scale of train (mean 0, deviation 1), or of pixels in [0, 1],
        whose levels are discrete: there a density has no rival, and "mse" is what compares.
      conditional: whether encoder and decoder are told the label.
      clean: how rows are told that are strange, see `umbrella.pipelines._latent.plan`.
    """
    asked = settings.call(_latent.plan, clean or {}, "clean.")
    log["clean"] = asked._asdict()
    kind, classes = dataset.info["kind"], dataset.info["classes"] or 0
    if kind not in ("image", "tabular"):
        raise SettingsError(f"config.data.name: {dataset.name!r} holds neither images nor a table of numbers")
    if kind == "tabular" and likelihood != "gaussian":
        raise SettingsError(f"config.likelihood: {likelihood!r} is of pixels; for a table set it to 'gaussian'")
    if conditional and (not classes or dataset.info["hidden"]):
        raise SettingsError(f"config.conditional: the rows of {dataset.name!r} have no labels to be told")
    if kind == "tabular" and model.get("widths"):
        raise SettingsError("config.model.widths: convolutions are for images; for a table set it to ()")
    prepare, read, shown = _inputs(dataset, likelihood)
    given = {"classes": classes} if conditional else {}
    if not conditional and model.get("classes"):  # a resolved config says classes=0
        raise SettingsError("config.model.classes: the data decides this; set conditional=True")
    net = models.build(
        model, only=("vae",), log=log, shape=tuple(dataset.info["shape"]), likelihood=likelihood, **given
    )
    base = measure(**_measures(int(np.prod(net.shape)), likelihood))(supervised(net, losses.negative_elbo))
    outer = chain(_keep_label, prepare, _tell_label) if conditional else prepare
    names = tuple(dataset.info["class_names"] or (str(i) for i in range(classes)))

    def seen(resolve: Resolve) -> _latent.Model:
        return _latent.Model(net, resolve, outer, base, read, shown, conditional)

    def predict(resolve: Resolve) -> Callable[[View, Batch, Array], dict[str, Array]]:
        m = seen(resolve)

        def run(view: View, batch: Batch, key: Array) -> dict[str, Array]:
            mean, log_var = m.encode(view, batch)
            label = batch["y"] if conditional else None
            return {"mean": mean, "log_var": log_var, "reconstruction": m.decode(view, mean, label)}

        return run

    def rivals(train: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        if likelihood == "logistic":
            return baselines.byte_images(train["x"], test["x"])
        x, x_test = (np.asarray(read(part["x"])) for part in (train, test))
        if likelihood == "bernoulli":
            return baselines.binary_images(x, x_test)
        return baselines.gaussians(x, x_test) if kind == "tabular" else {}

    def all_rivals() -> dict[str, dict[str, float]]:
        told = baselines.on_parts(rivals, dataset.train, dataset.test)
        rows = _latent.some(dataset.test, _latent.ROWS)["x"]
        m = seen(lambda params, state: params)
        components = _latent.of_components(m, dataset, rows, net.latent)
        return {**told, **{f"{name}, {size} components": {"mse": error} for name, size, error in components}}

    return Problem(
        columns=("x", "y") if conditional else ("x",),
        outer=outer,
        base=base,
        context={
            "log_weight": losses.log_importance_weight,
            "posterior": net.POSTERIOR,
            "kl_of_each": losses.kl_of_each,
            "bounds": (0.0, 1.0) if kind == "image" else None,
            "on": "x/image" if conditional else "x",
            "where": None,
        },
        review=lambda resolve: _latent.review(seen(resolve), dataset, names, asked),
        predict=predict,
        baselines=all_rivals,
        scorer=lambda resolve: _latent.scorer(seen(resolve), dataset.train, asked),
        strange=asked.rate,
        fitting=FITTING,
        asks=("x", "y") if conditional else ("x",),
    )


def _keep_label(o: Any) -> Any:
    return map_batch(lambda b, key: {**b, "label": b["y"]}, name="keep_label", eval=True)(o)


def _tell_label(o: Any) -> Any:
    def tell(batch: Batch, key: Array) -> Batch:
        rest = {k: v for k, v in batch.items() if k != "label"}
        return {**rest, "x": {"image": batch["x"], "label": batch["label"]}}

    return map_batch(tell, name="tell_label", eval=True)(o)


def _inputs(
    dataset: Dataset, likelihood: models.Likelihood
) -> tuple[Transform, Callable[[Any], Array], Callable[[Array], Array]]:
    """(the task of a batch, x as in the set -> as the model sees it without noise, decoded -> on that scale)."""
    if dataset.info["kind"] == "image":
        scale = scale_of(dataset)
        if likelihood == "logistic" and scale != 255:
            raise SettingsError(
                f"config.likelihood: 'logistic' needs images of 256 levels, {dataset.name!r} has {scale + 1:g}"
            )
        task = chain(pixels(scale), binarise() if likelihood == "bernoulli" else reconstruct())

        def grey(x: Any) -> Array:
            return jnp.asarray(x).astype(jnp.float32) * (1 / scale)

        return task, grey, (lambda out: out) if likelihood == "gaussian" else jax.nn.sigmoid
    shift, spread = scaling.fit("zscore", dataset.train)

    def scaled(x: Any) -> Array:
        return (jnp.asarray(x) - shift[None]) / spread[None]

    on_scale = map_batch(lambda b, key: {**b, "x": scaled(b["x"])}, name="on_scale", eval=True)
    return chain(on_scale, reconstruct()), scaled, lambda out: out


def _measures(numbers: int, likelihood: models.Likelihood) -> dict[str, Any]:
    def mean(values: Any) -> Any:
        def fn(out: Any, batch: Batch) -> Mean:
            v = values(out, batch)
            return Mean.of(v, mask_of(batch, v))

        return fn

    told = {
        "negative_elbo": mean(lambda out, b: losses.negative_elbo(out, b["y"])),
        "reconstruction": mean(lambda out, b: losses.reconstruction(out, b["y"])),
        "kl": mean(lambda out, b: losses.kl_of_each(out).sum(-1)),
    }
    if likelihood == "logistic":
        per_dim = 1 / (numbers * np.log(2.0))
        told["bits_per_dim"] = mean(lambda out, b: losses.negative_elbo(out, b["y"]) * np.float32(per_dim))
    return told
