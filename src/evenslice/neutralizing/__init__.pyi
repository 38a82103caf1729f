from .averages import copy_average as copy_average
from .network_files import (
    find_in_folder as find_in_folder,
    load_network as load_network,
    neutralize_file as neutralize_file,
    read_saved as read_saved,
    save_network as save_network,
)
from .neutralization import current_kernels as current_kernels, neutralize as neutralize, untie as untie
from .record import (
    Record as Record,
    record_of as record_of,
    record_with_names as record_with_names,
    symmetrized_at as symmetrized_at,
    uncompiled as uncompiled,
)
from .strategies import (
    STRATEGIES as STRATEGIES,
    TIES as TIES,
    find_strategy as find_strategy,
    profile_weights as profile_weights,
)
from .symmetrization import restore_average as restore_average, symmetrize as symmetrize
from .verification import in_float64 as in_float64
