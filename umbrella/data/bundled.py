"""The sets that come with scikit-learn: real data without a network. Floor 4."""

import hashlib

import numpy as np

from umbrella.data.sources import Arrays, Found, info, narrow

NAMES = ("breast_cancer", "diabetes", "digits", "iris", "wine")


def read(name: str) -> Found:
    """A bundled set; digits as images u8[1797, 8, 8, 1] with values 0 to 16, the others as f32[N, F].

    Raises:
      KeyError: `name` is not in NAMES.
    """
    from sklearn import datasets

    if name not in NAMES:
        raise KeyError(name)
    bunch = getattr(datasets, f"load_{name}")()
    y = narrow(np.asarray(bunch.target))
    if name == "digits":
        x = bunch.images.astype(np.uint8)[..., None]
        about = info("image", x.shape[1:], scale=16, classes=10, class_names=tuple("0123456789"))
    else:
        x = narrow(bunch.data)
        names = None if name == "diabetes" else tuple(str(n) for n in bunch.target_names)
        features = tuple(str(n) for n in bunch.feature_names)
        about = info("tabular", x.shape[1:], classes=names and len(names), class_names=names, features=features)
    digest = hashlib.blake2b(x.tobytes() + y.tobytes(), digest_size=16).hexdigest()
    return Found(f"scikit-learn {name}", digest, {"train": Arrays({"x": x, "y": y})}, about)
