from .attribution import (
    parse_target as parse_target,
    slice_shares as slice_shares,
)
from .auditor import Audit as Audit, audit as audit, load_audits as load_audits
from .explanation import Explanation as Explanation, explain as explain
from .options import METHODS as METHODS, Sampling as Sampling
from .surveyor import Survey as Survey, survey as survey
