from .config import (
    AugmentationConfig as AugmentationConfig,
)
from .config import (
    DataConfig as DataConfig,
)
from .config import (
    ModelConfig as ModelConfig,
)
from .config import (
    Slices as Slices,
)
from .config import (
    Source as Source,
)
from .config import (
    Strategy as Strategy,
)
from .config import (
    Tie as Tie,
)
from .config import (
    TrainConfig as TrainConfig,
)
from .config import (
    TrainingConfig as TrainingConfig,
)
from .config import (
    Weights as Weights,
)
from .config import (
    check_strategy as check_strategy,
)
from .config import (
    default_yaml as default_yaml,
)
from .data import fingerprints as fingerprints
from .data import open_data as open_data
from .monitor import AsymmetryMonitor as AsymmetryMonitor
from .run_folder import MOVABLE as MOVABLE
from .run_folder import RunFolder as RunFolder
from .run_folder import flat_options as flat_options
from .segmenter import load_segmenter as load_segmenter
from .trainer import train as train
