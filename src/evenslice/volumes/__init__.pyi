from .info import (
    describe_volume as describe_volume,
    fingerprint as fingerprint,
    missing_slices as missing_slices,
    modified as modified,
    refuse_repeated as refuse_repeated,
    stored_image as stored_image,
)
from .labels import (
    LabelledVolume as LabelledVolume,
    index_classes as index_classes,
    open_labels as open_labels,
)
from .opening import (
    VolumeLike as VolumeLike,
    mni152 as mni152,
    open_volume as open_volume,
    stated_axes as stated_axes,
)
from .reading import (
    LabelValues as LabelValues,
    Reading as Reading,
    open_volumes as open_volumes,
    refuse_without_labels as refuse_without_labels,
)
from .volume import (
    Volume as Volume,
    hold_small as hold_small,
    read_in_runs as read_in_runs,
)
from .windows import (
    Scaling as Scaling,
    WindowGrid as WindowGrid,
    check_tile as check_tile,
)
from .write.writer import (
    Destination as Destination,
    write_volume as write_volume,
)
