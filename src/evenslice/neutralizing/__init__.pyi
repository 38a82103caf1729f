from .network_files import (
    load_network as load_network,
    read_saved as read_saved,
    save_network as save_network,
)
from .neutralization import (
    current_kernels as current_kernels,
)
from .record import (
    Record as Record,
    record_of as record_of,
    uncompiled_record as uncompiled_record,
)
from .rewriting import untie as untie
from .strategies import (
    find_strategy as find_strategy,
)
from .symmetrization import (
    restore_average as restore_average,
    symmetrize as symmetrize,
)
