from .blocks import cut_axis as cut_axis, find_nonfinite as find_nonfinite
from .info import (
    PARTIAL as PARTIAL,
    StoredImage as StoredImage,
    describe_missing_numbers as describe_missing_numbers,
    describe_volume as describe_volume,
    fingerprint as fingerprint,
    missing_slice_numbers as missing_slice_numbers,
    modified as modified,
    refuse_repeated as refuse_repeated,
    stored_image as stored_image,
)
from .labels import (
    IGNORED as IGNORED,
    ClassIndex as ClassIndex,
    LabelledVolume as LabelledVolume,
    check_classes as check_classes,
    check_place as check_place,
    index_classes as index_classes,
    open_labels as open_labels,
    open_several_labels as open_several_labels,
)
from .opening import (
    VolumeLike as VolumeLike,
    mni152 as mni152,
    mni152_path as mni152_path,
    open_complete as open_complete,
    open_filled as open_filled,
    open_several as open_several,
    open_volume as open_volume,
    stated_axes as stated_axes,
)
from .read.source import is_address as is_address
from .reading import (
    LabelValues as LabelValues,
    Reading as Reading,
    each_reading as each_reading,
    fit_scalings as fit_scalings,
    refuse_without_labels as refuse_without_labels,
)
from .volume import (
    Volume as Volume,
    hold_small as hold_small,
    in_plane as in_plane,
    read_in_runs as read_in_runs,
    reslice as reslice,
    take_slices as take_slices,
)
from .windows import (
    PERCENTILES as PERCENTILES,
    Edge as Edge,
    Scaling as Scaling,
    WindowGrid as WindowGrid,
    check_tile as check_tile,
    check_window as check_window,
    fit_scaling as fit_scaling,
    fit_tile as fit_tile,
    inner_margin as inner_margin,
    slice_indices as slice_indices,
    spread_index as spread_index,
    tile_origins as tile_origins,
)
from .write.writer import (
    check_destination as check_destination,
    output_location as output_location,
    write_channels as write_channels,
    write_volume as write_volume,
)
