from .attribution import (
    parse_target as parse_target,
    slice_shares as slice_shares,
)
from .auditor import audit as audit
from .options import METHODS as METHODS, Sampling as Sampling
from .programs import Program as Program
from .whole_volumes import VolumeAnswers as VolumeAnswers
