"""DICOM files made for tests, written by pydicom."""

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = (1, 0, 0, 0, 1, 0)


def dataset(pixels, *, storage=CTImageStorage, **fields):
    """Return a file with one image or several frames."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = storage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    file.Modality = "CT"
    file.SamplesPerPixel = 1
    file.PhotometricInterpretation = "MONOCHROME2"
    file.Rows, file.Columns = pixels.shape[-2:]
    file.BitsAllocated = file.BitsStored = pixels.dtype.itemsize * 8
    file.HighBit = file.BitsStored - 1
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        file.NumberOfFrames = len(pixels)
    file.PixelData = pixels.tobytes()
    for name, value in fields.items():
        setattr(file, name, value)
    return file


def save(file, path):
    file.save_as(path, enforce_file_format=True)


def change(path, **fields):
    """Change elements of a file; None removes one."""
    file = dcmread(path)
    for name, value in fields.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    save(file, path)


def write_series(
    folder, stack, *, gap=3.0, pixel=(0.7, 0.5), origin=(-10, 20, 30), orientation=AXIAL, order=None, **fields
):
    """Write a stack, one file per slice, named against the order in space.

    Returns:
        The paths in the order in space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fields.setdefault("SeriesInstanceUID", generate_uid())
    normal = np.cross(orientation[:3], orientation[3:])
    paths = []
    for z, pixels in enumerate(stack):
        position = (np.array(origin) + z * gap * normal).tolist()
        place = {
            "ImagePositionPatient": position,
            "ImageOrientationPatient": list(orientation),
            "PixelSpacing": list(pixel),
            "InstanceNumber": len(stack) - z,
        }
        paths.append(folder / f"IM{len(stack) - z:04d}")
        save(dataset(pixels, **(place | fields)), paths[-1])
    return paths


def enhanced(stack, *, gap=3.0, pixel=(0.7, 0.5), slopes=None):
    """Return a file with a stack of frames, each with its own position."""
    file = dataset(stack, storage=EnhancedMRImageStorage, SeriesInstanceUID=generate_uid(), Modality="MR")
    shared, measures, tilt = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = list(pixel)
    measures.SpacingBetweenSlices = gap
    tilt.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([tilt])
    file.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for z in range(len(stack)):
        frame, plane, values = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, (len(stack) - 1 - z) * gap]
        frame.PlanePositionSequence = Sequence([plane])
        if slopes:
            values.RescaleSlope, values.RescaleIntercept = slopes[z], 0
            frame.PixelValueTransformationSequence = Sequence([values])
        frames.append(frame)
    file.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return file
