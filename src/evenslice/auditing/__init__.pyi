from .attribution import (
    METHODS as METHODS,
    parse_target as parse_target,
    slice_shares as slice_shares,
)
from .auditor import audit as audit
from .options import Sampling as Sampling
