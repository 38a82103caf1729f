"""Processes that do not have to import PyTorch and the rest, which takes seconds: forked from a server that has."""

import multiprocessing

# What commands and readers import, but for evenslice: its own modules see the environment of each process.
LIBRARIES = (
    "captum.attr",
    "distributed",
    "h5py",
    "imagecodecs",
    "jinja2",
    "lightning.pytorch",
    "monai.inferers",
    "monai.losses",
    "monai.metrics",
    "monai.transforms",
    "nibabel",
    "onnxruntime",
    "pydantic",
    "pydicom.encaps",
    "pydicom.pixels.decoders",
    "rich.console",
    "scipy.stats",
    "segmentation_models_pytorch",
    "tifffile",
    "timm",
    "torch",
    "torchvision",
    "typer",
    "zarr",
)


def forked(target, *arguments):
    """Start a function in a process of its own, and return the process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    process = context.Process(target=_alone, args=(target, arguments))
    process.start()
    return process


def _alone(target, arguments):
    multiprocessing.set_start_method(None, force=True)  # that of a Python of its own
    target(*arguments)
