from .attribution import (
    METHODS as METHODS,
    Mirrored as Mirrored,
    attribute as attribute,
)
from .auditor import audit as audit
from .documents import Audit as Audit, Survey as Survey, load_audits as load_audits
from .explanation import Explanation as Explanation, explain as explain
from .options import Sampling as Sampling
from .surveyor import survey as survey
from .targets import Score as Score, Target as Target, parse_target as parse_target
