"""Techniques. `TABLE` says which name in a config means which factory: an explicit table, nothing registers itself."""

from collections.abc import Callable, Mapping
from typing import Any

from umbrella import settings
from umbrella.objective import Transform
from umbrella.transforms.adversarial import (
    adversarial,
    apgd_adversarial,
    fgsm,
    fgsm_adversarial,
    noise_adversarial,
    pgd,
    pgd_adversarial,
    random_noise,
    searched,
)
from umbrella.transforms.augment import (
    affine,
    alternating_flip,
    colour,
    crop,
    cutout,
    elastic,
    flip,
)
from umbrella.transforms.batch import at_embedding, binarise, cutmix, label_smoothing, mixup, pixels, reconstruct
from umbrella.transforms.bound import importance_weighted, kl
from umbrella.transforms.certified import certified, certified_of
from umbrella.transforms.corrupt import corruption
from umbrella.transforms.diffaugment import diffaugment
from umbrella.transforms.hidden import hide, mask_tokens
from umbrella.transforms.penalty import l1, l2
from umbrella.transforms.randaugment import randaugment
from umbrella.transforms.reparam import lora
from umbrella.transforms.sam import awp, awp_of_trainable, sam, sam_of_trainable
from umbrella.transforms.smooth import trades, trades_of, vat, vat_of
from umbrella.transforms.sparse import sparse

__all__ = [
    "NAMED",
    "TABLE",
    "adversarial",
    "affine",
    "alternating_flip",
    "at_embedding",
    "awp",
    "binarise",
    "build",
    "certified",
    "check_sections",
    "colour",
    "corruption",
    "crop",
    "cutmix",
    "cutout",
    "diffaugment",
    "elastic",
    "fgsm",
    "flip",
    "importance_weighted",
    "kl",
    "l1",
    "l2",
    "label_smoothing",
    "lora",
    "hide",
    "mask_tokens",
    "mixup",
    "pgd",
    "pixels",
    "randaugment",
    "random_noise",
    "reconstruct",
    "sam",
    "searched",
    "sparse",
    "trades",
    "vat",
]

TABLE: dict[str, Callable[..., Transform]] = {
    "adversarial": pgd_adversarial,
    "affine": affine,
    "alternating_flip": alternating_flip,
    "apgd": apgd_adversarial,
    "awp": awp_of_trainable,
    "certified": certified_of,
    "colour": colour,
    "corruption": corruption,
    "crop": crop,
    "cutmix": cutmix,
    "cutout": cutout,
    "diffaugment": diffaugment,
    "elastic": elastic,
    "fgsm": fgsm_adversarial,
    "flip": flip,
    "importance_weighted": importance_weighted,
    "kl": kl,
    "l1": l1,
    "l2": l2,
    "label_smoothing": label_smoothing,
    "lora": lora,
    "mixup": mixup,
    "noise": noise_adversarial,
    "randaugment": randaugment,
    "sam": sam_of_trainable,
    "sparse": sparse,
    "trades": trades_of,
    "vat": vat_of,
}
# Those that draw for every row: twice in one list they would draw the same, which is not what anyone means.
DRAWING = (
    "affine",
    "alternating_flip",
    "colour",
    "crop",
    "cutmix",
    "cutout",
    "diffaugment",
    "elastic",
    "flip",
    "mixup",
    "randaugment",
)
TRAINING_ONLY = (
    *DRAWING,
    "awp",
    "kl",
    "l1",
    "l2",
    "label_smoothing",
    "sam",
    "sparse",
    "trades",
    "vat",
)  # which an evaluation would not notice
NAMED = ("alternating_flip",)  # those that read which example a row is: the stream is then made named=True


def build(
    names: tuple[str, ...],
    sections: Mapping[str, Mapping[str, Any]],
    *,
    log: dict[str, Any] | None = None,
    **context: Any,
) -> tuple[Transform, ...]:
    """The transforms that `names` name, in their order, each made from its section of the config.

    A section is named after its technique, or names it: pgd40 = dict(technique="adversarial", steps=40).

    Args:
      context: what the pipeline provides for the factories' positional parameters: base, classes, bounds,
        trainable...

    Raises:
      SettingsError: no such technique, or settings that do not fit it.
    """
    made = []
    for name in names:
        kind, rest = _kind_of(name, sections.get(name, {}))
        made.append(settings.call(TABLE[kind], rest, f"{name}.", context, log=log))
        if log is not None and kind != name:
            log[name] = {"technique": kind, **log[name]}
    return tuple(made)


def kinds(names: tuple[str, ...], sections: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Which techniques of TABLE the names of a config mean."""
    return tuple(_kind_of(name, sections.get(name, {}))[0] for name in names)


def check_sections(sections: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Checks every section, used or not: a typo in one that waits for its turn is a typo all the same.

    Raises:
      SettingsError: a section that is neither a technique nor one of the `known` keys, or settings that do not fit.
    """
    for name, section in sections.items():
        if name not in TABLE and not (isinstance(section, Mapping) and "technique" in section):
            raise settings.SettingsError(f"config.{name}: no such setting{settings.near(name, [*known, *TABLE])}")
        kind, rest = _kind_of(name, section)
        settings.check(TABLE[kind], rest, f"{name}.")


def _kind_of(name: str, section: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(section, Mapping):
        raise settings.SettingsError(f"config.{name}: {section!r} is no section of settings for a technique")
    rest = dict(section)
    kind = rest.pop("technique", name)
    if kind not in TABLE:
        where = f"config.{name}.technique" if kind != name else "config"
        raise settings.SettingsError(f"{where}: no technique {kind!r}{settings.near(str(kind), TABLE)}")
    return kind, rest
