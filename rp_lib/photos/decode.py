"""From the bytes of an image file to pixels as CLIP sees them.

The shorter side is resized to ``size`` (bicubic, antialiased) and the centre is cut out: CLIP's own preprocessing up
to the normalisation (Radford et al. 2021). Three things go beyond it. The EXIF orientation is respected. Files
of 16 bits per channel keep their upper 8. Conversion to RGB comes before the resize, so that palettes are interpolated.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

# Raise it when the same file would give other pixels: caches are made anew then.
DECODER_VERSION = 1
TRANSFORM = "EXIF orientation, RGB, shorter side bicubic antialiased, centre crop"
GREYSCALE_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImage(ValueError):
    """A file that shows no image; the message says what is wrong with it."""


class Decoded(NamedTuple):
    """``pixels``: uint8 (3, size, size). ``greyscale``: the file stores one channel. ``sha256``: of ``pixels``."""

    pixels: np.ndarray
    greyscale: bool
    sha256: bytes


def decode(data: bytes, size: int) -> Decoded:
    """Decode one image file; the first frame of several.

    Raises:
        BrokenImage: it is empty, truncated, no image, or larger than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    if not data:
        raise BrokenImage("an empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:  # Pillow itself raises at twice the limit
                raise BrokenImage(f"{image.width} x {image.height} pixels, too many (decompression bomb?)")
            greyscale = image.mode in GREYSCALE_MODES
            image.load()
            square = TF.center_crop(
                TF.resize(_rgb(_upright(image)), size, InterpolationMode.BICUBIC, antialias=True), size
            )
    except BrokenImage:
        raise
    except Image.DecompressionBombError as error:
        raise BrokenImage("too many pixels (decompression bomb?)") from error
    except Image.UnidentifiedImageError as error:
        raise BrokenImage("no image, or of a kind that Pillow does not know") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise BrokenImage(f"{error}" or type(error).__name__) from error
    pixels = np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))
    return Decoded(pixels, greyscale, hashlib.sha256(pixels).digest())


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings (odd EXIF data, large images): each is either harmless or an error in :func:`decode`.

    Warning filters belong to the process, not to a thread: enter it once around all workers.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # unreadable EXIF data says nothing about the pixels, which were read
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise BrokenImage("floating-point pixels, which have no defined range")
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255: nearly white
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BrokenImage("32-bit pixels, which have no defined range")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
