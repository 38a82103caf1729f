from .checkpoints import check_archive as check_archive
from .config import (
    AugmentationConfig as AugmentationConfig,
    ModelConfig as ModelConfig,
    TrainConfig as TrainConfig,
    TrainingConfig as TrainingConfig,
    check_boundaries as check_boundaries,
    check_missing_slices as check_missing_slices,
    default_yaml as default_yaml,
)
from .data import fingerprints as fingerprints, open_data as open_data
from .data_config import (
    DataConfig as DataConfig,
    LabelledFiles as LabelledFiles,
    VolumeFile as VolumeFile,
)
from .documents import data_of_result as data_of_result
from .logs import is_first_process as is_first_process
from .monitor import AsymmetryMonitor as AsymmetryMonitor
from .option_types import (
    SlicesOption as SlicesOption,
    StrategyOption as StrategyOption,
    TieOption as TieOption,
    WeightsOption as WeightsOption,
    check_added_symmetry as check_added_symmetry,
    check_strategy as check_strategy,
    saved_record as saved_record,
)
from .preflight import check_data as check_data
from .retesting import retest as retest
from .run_folder import MOVABLE as MOVABLE, RunFolder as RunFolder, flat_options as flat_options
from .segmenter import (
    Segmenter as Segmenter,
    asked_size as asked_size,
    find_reading as find_reading,
    load_segmenter as load_segmenter,
    locate_network as locate_network,
    reading_of as reading_of,
)
from .slice_windows import SliceWindows as SliceWindows
from .trainer import train as train
