from .blocks import first_nonfinite as first_nonfinite
from .blocks import sample as sample
from .fingerprints import fingerprint as fingerprint
from .info import VolumeInfo as VolumeInfo
from .info import describe as describe
from .labels import (
    ClassIndex as ClassIndex,
)
from .labels import (
    LabelledVolume as LabelledVolume,
)
from .labels import (
    class_volume as class_volume,
)
from .labels import (
    index_classes as index_classes,
)
from .opening import open_volume as open_volume
from .read.places import is_address as is_address
from .samples import mni152 as mni152
from .samples import template_path as template_path
from .views import hold_in_memory as hold_in_memory
from .views import take_slices as take_slices
from .volume import Volume as Volume
from .windows import (
    Scaling as Scaling,
)
from .windows import (
    WindowGrid as WindowGrid,
)
from .windows import (
    fit_scaling as fit_scaling,
)
from .windows import (
    fit_tile as fit_tile,
)
from .windows import (
    slice_indices as slice_indices,
)
from .windows import (
    tile_origins as tile_origins,
)
from .write.targets import is_remote as is_remote
from .write.writer import (
    check_target as check_target,
)
from .write.writer import (
    write_channels as write_channels,
)
from .write.writer import (
    write_volume as write_volume,
)
