from .averages import copy_average as copy_average, without_mirror as without_mirror
from .folding import effective_kernels as effective_kernels, find_scaling as find_scaling
from .input_path import probe as probe
from .network_files import (
    find_in_folder as find_in_folder,
    load_network as load_network,
    neutralize_file as neutralize_file,
    read_saved as read_saved,
    save_network as save_network,
)
from .neutralization import neutralize as neutralize, untie as untie
from .record import (
    Record as Record,
    record_of as record_of,
    record_with_names as record_with_names,
    recorded_on as recorded_on,
    symmetrized_at as symmetrized_at,
    uncompiled as uncompiled,
)
from .stems import find_stems as find_stems
from .strategies import (
    STRATEGIES as STRATEGIES,
    find_strategy as find_strategy,
    profile_weights as profile_weights,
)
from .symmetrization import restore_average as restore_average, symmetrize as symmetrize
from .ties import TIES as TIES
from .verification import in_float64 as in_float64
