from .folding import effective_kernels as effective_kernels, find_scaling as find_scaling
from .mirror_average import copy_average as copy_average, without_mirror as without_mirror
from .network_files import (
    MANY_SLICES as MANY_SLICES,
    load_network as load_network,
    neutralize_file as neutralize_file,
    save_network as save_network,
)
from .network_metadata import find_in_folder as find_in_folder, read_saved as read_saved
from .neutralization import neutralize as neutralize, untie as untie
from .probing import probe as probe
from .record import (
    Record as Record,
    record_of as record_of,
    record_with_names as record_with_names,
    recorded_on as recorded_on,
    symmetrized_at as symmetrized_at,
    uncompiled as uncompiled,
)
from .restored_averages import restore_average as restore_average
from .stems import find_stems as find_stems
from .strategies import (
    STRATEGIES as STRATEGIES,
    find_strategy as find_strategy,
    profile_weights as profile_weights,
)
from .symmetrization import symmetrize as symmetrize
from .ties import TIES as TIES
from .verification import in_float64 as in_float64
