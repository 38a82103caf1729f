from .attribution import (
    METHODS as METHODS,
)
from .attribution import (
    Mirrored as Mirrored,
)
from .attribution import (
    Target as Target,
)
from .attribution import (
    attribute as attribute,
)
from .attribution import (
    check_method as check_method,
)
from .attribution import (
    parse_target as parse_target,
)
from .auditor import VolumeLike as VolumeLike
from .auditor import audit as audit
from .documents import Audit as Audit
from .documents import Survey as Survey
from .documents import load_audits as load_audits
from .surveyor import survey as survey
