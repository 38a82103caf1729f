from .folding import find_scaling as find_scaling
from .folding import kernels_as_met as kernels_as_met
from .network_files import (
    load_network as load_network,
)
from .network_files import (
    neutralize_file as neutralize_file,
)
from .network_files import (
    save_network as save_network,
)
from .neutralization import neutralize as neutralize
from .neutralization import untie as untie
from .probing import probe as probe
from .record import Record as Record
from .record import record_of as record_of
from .stems import find_stems as find_stems
from .strategies import STRATEGIES as STRATEGIES
from .strategies import find_strategy as find_strategy
from .ties import TIES as TIES
