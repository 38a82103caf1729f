from .config import (
    AugmentationConfig as AugmentationConfig,
    ModelConfig as ModelConfig,
    SlicesOption as SlicesOption,
    StrategyOption as StrategyOption,
    TieOption as TieOption,
    TrainConfig as TrainConfig,
    TrainingConfig as TrainingConfig,
    WeightsOption as WeightsOption,
    check_added_symmetry as check_added_symmetry,
    check_boundaries as check_boundaries,
    check_missing_slices as check_missing_slices,
    check_strategy as check_strategy,
    default_yaml as default_yaml,
    saved_record as saved_record,
)
from .data import fingerprints as fingerprints, open_data as open_data
from .data_config import (
    DataConfig as DataConfig,
    LabelledFiles as LabelledFiles,
    VolumeFile as VolumeFile,
)
from .monitor import AsymmetryMonitor as AsymmetryMonitor
from .plan import check_data as check_data
from .run_folder import (
    MOVABLE as MOVABLE,
    RunFolder as RunFolder,
    data_of_result as data_of_result,
    flat_options as flat_options,
)
from .run_network import (
    find_network as find_network,
    load_segmenter as load_segmenter,
    reading_of as reading_of,
)
from .slice_windows import SliceWindows as SliceWindows
from .trainer import retest as retest, train as train
from .training_files import check_archive as check_archive, is_first_process as is_first_process
