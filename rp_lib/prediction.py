"""Put a trained method to use: class, probability, OOD score and decision for new pictures; a program to serve."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rp_lib.benchmark import ImageSet
from rp_lib.data.image_folders import image_files
from rp_lib.data.pixel_cache import BrokenImage, BrokenImages, decode, quiet_pillow, to_square
from rp_lib.detectors import Threshold, build_detector
from rp_lib.methods import Method
from rp_lib.outputs import Outputs, head_of
from rp_lib.utils.arguments import checked
from rp_lib.utils.device import evaluating
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import StorageError, write_atomically
from rp_lib.utils.preparation import Preparation

if TYPE_CHECKING:
    import pandas as pd

Picture = Path | str | Image.Image
COLUMNS = ("picture", "class", "probability", "score", "accepted", "error")


@dataclass(frozen=True)
class MethodThreshold:
    """A threshold on the OOD scores of one trained method; a picture is accepted if its score is at least that.

    Attributes:
        threshold: Value, TPR aimed at and number of pictures, see :class:`rp_lib.Threshold`.
        detector: What the scores are, such as ``"msp"``.
        method: Fingerprint of the method that the scores are of.
        data: Name of the ID pictures that it was fitted on.
        data_sha256: Fingerprint of their pixels.

    Example:
        >>> gate = fit_threshold(rrp, data.val, tpr=0.95)  # doctest: +SKIP
        >>> gate.save("rrp.threshold.json")  # doctest: +SKIP
        >>> predict(rrp, ["holiday/1.jpg"], MethodThreshold.load("rrp.threshold.json"))  # doctest: +SKIP
    """

    threshold: Threshold
    detector: str
    method: str
    data: str
    data_sha256: str

    def save(self, path: Path | str) -> None:
        """Write it as JSON."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        write_atomically(Path(path), lambda partial: partial.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            StorageError: The file cannot be read.
            RPLibError: It holds no threshold of a method.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            threshold = Threshold.from_json(json.dumps(fields.pop("threshold")))
            build_detector(fields["detector"])
            return cls(threshold, **{name: str(fields[name]) for name in ("detector", "method", "data", "data_sha256")})
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
        except (RPLibError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RPLibError(f"{path} holds no threshold of a method: make one with `rp-lib threshold`") from error


@checked
def fit_threshold(
    method: Method, known: ImageSet | Sequence[Picture], *, tpr: float = 0.95, detector: str = "msp"
) -> MethodThreshold:
    """Fit a threshold that accepts at least ``tpr`` of pictures that show the classes.

    Args:
        method: A fitted method.
        known: ID validation pictures, not those that the method was trained on: an image set, or files or PIL images.
        tpr: Share of them to accept, in (0, 1].
        detector: Name of an OOD detector that reads nothing but the method's outputs.

    Raises:
        BrokenImages: Files that show no image.
        RPLibError: The method is not fitted, or the detector needs more than outputs.
    """
    _check_fitted(method)
    if isinstance(known, ImageSet):
        if known.labels is None:
            raise RPLibError(f"{known.name!r} is OOD: a threshold is fitted on pictures that show the classes")
        known = known.for_classes(method.class_names)
        if known.fingerprint == method.trained_on:
            raise RPLibError(f"{known.name!r} is what the method was trained on: its scores are too high; take others")
        images, name, sha256 = known.images, known.name, known.fingerprint
    else:
        images, broken = _read(known, method.preparation)
        if broken:
            raise BrokenImages({Path(str(known[i])): reason for i, reason in broken.items()}, len(known))
        sha256 = hashlib.sha256(images.numpy().tobytes()).hexdigest()
        name = f"{len(images)} pictures"
    scores = _scores(method, detector, *_outputs(method, images))
    return MethodThreshold(Threshold.fit(scores, tpr), detector, method.fingerprint, name, sha256)


@checked
def predict(
    method: Method, pictures: Sequence[Picture], threshold: MethodThreshold | None = None, *, batch_size: int = 256
) -> pd.DataFrame:
    """Classify new pictures.

    They are prepared as the training pictures were: turned as their EXIF data say, laid onto white, the shorter side
    resized and the centre cut out, at the side that the method was trained at.

    Args:
        method: A fitted method, such as :func:`rp_lib.load_method` returns.
        pictures: n files or PIL images.
        threshold: Decides which pictures are accepted as one of the classes.
        batch_size: Pictures that are in memory at once.

    Returns:
        n rows: ``picture`` (the file, or the position), ``class``, ``probability`` (its softmax probability),
        ``score`` (of the threshold's detector, else MSP; higher is more ID), ``accepted`` (None without a threshold)
        and ``error``, which says why a file shows no image and is empty otherwise.

    Raises:
        RPLibError: The method is not fitted, or the threshold belongs to another one.
    """
    import pandas as pd

    _check_fitted(method)
    if threshold is not None and threshold.method != method.fingerprint:
        raise RPLibError("the threshold belongs to another method or another training: fit one with `rp-lib threshold`")
    detector = "msp" if threshold is None else threshold.detector
    rows: list[dict[str, Any]] = []
    for start in range(0, len(pictures), batch_size):
        part = pictures[start : start + batch_size]
        images, broken = _read(part, method.preparation)
        found = iter(())
        if len(images):
            features, logits = _outputs(method, images)
            scores = _scores(method, detector, features, logits)
            accepted = [None] * len(images) if threshold is None else threshold.threshold.accept(scores).tolist()
            best = logits.double().softmax(1).max(1)
            names = [method.class_names[c] for c in best.indices.tolist()]
            found = zip(names, best.values.tolist(), scores.tolist(), accepted, strict=True)
        for i, picture in enumerate(part):
            name = f"picture {start + i}" if isinstance(picture, Image.Image) else str(picture)
            answer = ("", float("nan"), float("nan"), None) if i in broken else next(found)
            rows.append(dict(zip(COLUMNS, (name, *answer, broken.get(i, "")), strict=True)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


class _Program(torch.nn.Module):
    def __init__(self, method: Method) -> None:
        super().__init__()
        self._method = method

    def forward(self, images: Tensor) -> Tensor:
        method = self._method
        return method.head(method.mix_features(*(encoder.encode(images) for encoder in method.encoders)))


@torch.no_grad()
@evaluating()
def export(method: Method, path: Path | str) -> float:
    """Write a method as a program of ``torch.export``, which is served without rp_lib.

    ``torch.export.load(path).module()`` takes uint8 pictures (n, 3, size, size), cut as ``preparation`` says, and gives
    float32 logits (n, C), whose softmax is the probability of :func:`predict`. The program's file ``about.json`` has
    the metadata of the method, with ``class_names`` and ``preparation``.

    Args:
        method: A fitted method, on the CPU.
        path: Ends in ``.pt2``.

    Returns:
        The largest difference between the logits of the written program and of the method, on random pictures.

    Raises:
        RPLibError: The method is not fitted or not on the CPU, ``torch.export`` cannot follow it, or the program says
            something else than the method; nothing is written then.
        StorageError: The file cannot be written.
    """
    _check_fitted(method)
    if method.device.type != "cpu":
        raise RPLibError("a program is written on the CPU: load the method with load_method(path)")
    if Path(path).suffix != ".pt2":
        raise RPLibError(f"programs of torch.export end in .pt2, {path} does not")
    shape, draw = (3, 3, *method.preparation.shape), torch.Generator().manual_seed(0)
    images, file = torch.randint(256, shape, generator=draw, dtype=torch.uint8), io.BytesIO()
    expected = method.logits(images)  # also encodes the class prompts, which are constants of the program
    batch = ({0: torch.export.Dim("n")},)
    try:
        program = torch.export.export(_Program(method), (images[:2],), dynamic_shapes=batch, strict=False)
        torch.export.save(program, file, extra_files={"about.json": json.dumps(method.metadata())})
        file.seek(0)
        found = torch.export.load(file).module()(images)
    except Exception as error:  # of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RPLibError(f"torch.export cannot follow {method.name!r} on {method.clip.name}: {reason}") from error
    difference = float((found - expected).abs().max())
    if not difference <= 1e-3 * float(expected.abs().max()):
        raise RPLibError(f"the program's logits differ from those of {method.name!r} by up to {difference:.3g}")
    write_atomically(Path(path), lambda partial: partial.write_bytes(file.getvalue()))
    return difference


def find_pictures(places: Iterable[Path | str]) -> list[Path]:
    """List picture files: files as they are named, what patterns such as ``*.jpg`` match, and all images below folders.

    Pictures of kinds that cannot be read are listed too: :func:`predict` names them and answers the others.

    Raises:
        FolderError: A folder without an image.
        RPLibError: A path that does not exist.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            found += image_files(place, all_kinds=True)
        elif place.exists():
            found.append(place)
        elif matched := sorted(Path(place.anchor).glob(str(place.relative_to(place.anchor)))):
            found += matched  # a shell that leaves patterns to the program
        else:
            raise RPLibError(f"{place} does not exist")
    return found


def _check_fitted(method: Method) -> None:
    if not method.is_fitted:
        raise RPLibError(f"this {method.name!r} was never fitted: call fit, or load a trained one with load_method")


def _read(pictures: Sequence[Picture], preparation: Preparation) -> tuple[Tensor, dict[int, str]]:
    """Read pictures: uint8 (m, 3, size, size) of those that show an image, and what is wrong with the others."""

    def read(picture: Picture) -> np.ndarray | str:
        try:
            if isinstance(picture, Image.Image):
                return to_square(picture.copy(), preparation)
            path = Path(picture)
            if not path.is_file():
                return "no regular file" if path.exists() else "does not exist"
            return decode(path.read_bytes(), preparation).pixels
        except BrokenImage as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)

    with quiet_pillow(), ThreadPoolExecutor() as pool:
        read_all = list(pool.map(read, pictures))
    whole = [p for p in read_all if not isinstance(p, str)]
    none = torch.zeros(0, 3, *preparation.shape, dtype=torch.uint8)
    images = torch.from_numpy(np.stack(whole)) if whole else none
    return images, {i: p for i, p in enumerate(read_all) if isinstance(p, str)}


def _outputs(method: Method, images: Tensor) -> tuple[Tensor, Tensor]:
    features = method.features(images)
    return features, method.head(features)


def _scores(method: Method, detector: str, features: Tensor, logits: Tensor) -> np.ndarray:
    """OOD scores float64 (n,), higher is more ID."""
    built, index = build_detector(detector), torch.arange(len(features))
    if built.needs:
        raise RPLibError(f"the detector {detector!r} also needs {', '.join(sorted(built.needs))}: choose msp or energy")
    head = head_of(method, features, logits)
    return built.score(Outputs("new", "far-ood", features, logits, None, index, index, head))
