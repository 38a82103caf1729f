"""Processes that do not have to import PyTorch and the rest, which takes seconds: forked from a server that has."""

import multiprocessing
import os
from unittest import mock

# What commands and readers import, but for evenslice: its own modules see the environment of each process.
LIBRARIES = (
    *("captum.attr", "distributed", "h5py", "imagecodecs", "jinja2", "lightning.pytorch", "monai.inferers"),
    *("monai.losses", "monai.metrics", "monai.transforms", "nibabel", "onnxruntime", "pydantic"),
    *("pydicom.encaps", "pydicom.pixels.decoders", "rich.console", "scipy.stats"),
    *("segmentation_models_pytorch", "tifffile", "timm", "torch", "torchvision", "typer", "zarr"),
)

# Read when libraries are imported: several processes with several threads each would wait for each other.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def forked(target, *arguments):
    """Start a function in a process of its own, with the environment of this one, and return the process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    process = context.Process(target=_alone, args=(dict(os.environ), target, arguments))
    with mock.patch.dict(os.environ, dict.fromkeys(THREADS, "1")):
        process.start()  # and the server, if this is the first
    return process


def _alone(environment, target, arguments):
    multiprocessing.set_start_method(None, force=True)  # that of a Python of its own
    os.environ.clear()
    os.environ.update(environment)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    target(*arguments)
