"""Real photographs as image sets: folders of files, decoded once into memory-mapped tensors.

Layers, from the bottom: decode, digests, mapped, cache; folders, checks, parts; assemble. For published data sets:
classes, cifar_files; cifar, imagenet.
"""

from __future__ import annotations

from rp_lib.photos.assemble import from_folders
from rp_lib.photos.cache import BrokenImages, default_cache, load_images
from rp_lib.photos.checks import SharedImages
from rp_lib.photos.cifar import cifar10_benchmark, cifar10_from_folders
from rp_lib.photos.folders import ClassFolder, FolderError, image_files, image_folder
from rp_lib.photos.imagenet import imagenet_benchmark
from rp_lib.photos.mapped import CachedImages

__all__ = [
    "BrokenImages", "CachedImages", "ClassFolder", "FolderError", "SharedImages", "cifar10_benchmark",
    "cifar10_from_folders", "default_cache", "from_folders", "image_files", "image_folder", "imagenet_benchmark",
    "load_images",
]  # fmt: skip
