from .blocks import cut_axis as cut_axis, find_nonfinite as find_nonfinite, run_end as run_end
from .boundaries import IGNORED as IGNORED
from .fingerprints import PARTIAL as PARTIAL, fingerprint as fingerprint, modified as modified
from .info import (
    VolumeInfo as VolumeInfo,
    describe_missing_numbers as describe_missing_numbers,
    describe_volume as describe_volume,
    missing_slice_numbers as missing_slice_numbers,
)
from .label_places import check_place as check_place
from .label_values import LabelValues as LabelValues, refuse_without_labels as refuse_without_labels
from .labels import (
    ClassIndex as ClassIndex,
    LabelledVolume as LabelledVolume,
    check_classes as check_classes,
    index_classes as index_classes,
)
from .opening import (
    VolumeLike as VolumeLike,
    open_complete as open_complete,
    open_filled as open_filled,
    open_labels as open_labels,
    open_volume as open_volume,
    stated_axes as stated_axes,
)
from .read.location import is_address as is_address
from .scaling import PERCENTILES as PERCENTILES, Scaling as Scaling, fit_scaling as fit_scaling
from .several import (
    fit_scalings as fit_scalings,
    open_several as open_several,
    open_several_labels as open_several_labels,
    refuse_repeated as refuse_repeated,
)
from .stored_images import StoredImage as StoredImage, stored_image as stored_image
from .templates import mni152 as mni152, mni152_path as mni152_path
from .views import (
    hold_small as hold_small,
    read_in_runs as read_in_runs,
    reslice as reslice,
    take_slices as take_slices,
)
from .volume import Plane as Plane, Volume as Volume
from .windows import (
    Edge as Edge,
    WindowGrid as WindowGrid,
    check_tile as check_tile,
    check_window as check_window,
    fit_tile as fit_tile,
    inner_margin as inner_margin,
    slice_indices as slice_indices,
    spread_index as spread_index,
    tile_origins as tile_origins,
)
from .write.destinations import output_location as output_location
from .write.writer import (
    check_destination as check_destination,
    write_channels as write_channels,
    write_volume as write_volume,
)
