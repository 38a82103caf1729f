from .attribution import (
    METHODS as METHODS,
    parse_target as parse_target,
    slice_shares as slice_shares,
)
from .auditor import audit as audit
from .documents import Audit as Audit, Survey as Survey, load_audits as load_audits
from .explanation import Explanation as Explanation, explain as explain
from .sampling import Sampling as Sampling
from .surveyor import survey as survey
