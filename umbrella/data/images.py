"""Images to numpy, with Pillow. Floor 4."""

import io
import warnings
from typing import Any

import numpy as np

from umbrella.data.files import said
from umbrella.settings import SettingsError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
GREY = ("1", "L")
COLOUR = ("RGB", "RGBA", "P", "PA", "LA", "CMYK", "YCbCr")
MOST = 2**26  # pixels of one image


def decode(content: bytes, where: str, *, channels: int | None = None, size: int | None = None) -> np.ndarray:
    """One image.

    Args:
      content: the bytes of a PNG, JPEG, ...
      where: names the image in messages.
      channels: 1, 3 or 4; None takes 1 for a grey image and 3 for any other.
      size: resizes to size x size (bilinear, antialiased); the aspect ratio is not kept.

    Returns:
      u8[H, W, C].

    Raises:
      SettingsError: no image, cut short, more than 2^26 pixels, more than 8 bits per channel, colour for grey.
    """
    from PIL import Image

    if not content:
        raise SettingsError(f"{where}: an empty file, no image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Any = Image.open(io.BytesIO(content))
        if image.width * image.height > MOST:
            raise SettingsError(f"{where}: {image.width}x{image.height} pixels; more than {MOST} are refused")
        if image.mode not in GREY + COLOUR:
            raise SettingsError(f"{where}: pixels of kind {image.mode!r}; convert it to 8 bits per channel")
        wanted = channels or (1 if image.mode in GREY else 3)
        if wanted == 1 and image.mode not in GREY:
            raise SettingsError(f"{where}: an image in colour in a set of grey ones; convert one or the other")
        if image.mode != MODES[wanted]:
            image = image.convert(MODES[wanted])
        if size is not None and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    except SettingsError:
        raise
    except Exception as e:  # Pillow's decoders raise struct.error, zlib.error, DecompressionBombError and more
        raise SettingsError(f"{where}: no image that can be read ({said(e)}); delete or replace it") from None
    return pixels[..., None] if pixels.ndim == 2 else pixels


def stack(images: list[np.ndarray], where: list[str]) -> np.ndarray:
    """u8[B, H, W, C] of images of one size.

    Raises:
      SettingsError: one differs in size from the first.
    """
    for image, name in zip(images, where, strict=True):
        if image.shape != images[0].shape:
            raise SettingsError(
                f"{name}: {_words(image)}, but {where[0]} has {_words(images[0])}; "
                f"resize them all with data.size={max(images[0].shape[:2])} or another size=..."
            )
    return np.stack(images)


def _words(image: np.ndarray) -> str:
    h, w, c = image.shape
    return f"{w}x{h} pixels and {c} channel{'s' if c > 1 else ''}"
