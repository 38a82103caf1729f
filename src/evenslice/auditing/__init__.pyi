from .attribution import Mirrored as Mirrored, attribute as attribute
from .auditor import audit as audit
from .documents import Audit as Audit, Survey as Survey, load_audits as load_audits
from .methods import METHODS as METHODS, check_method as check_method
from .slice_maps import SliceMaps as SliceMaps, map_slice as map_slice
from .surveyor import survey as survey
from .targets import (
    Target as Target,
    classes_for_mirrors as classes_for_mirrors,
    parse_target as parse_target,
)
