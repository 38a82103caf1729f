from .config import (
    AugmentationConfig as AugmentationConfig,
    DataConfig as DataConfig,
    LabelledFiles as LabelledFiles,
    ModelConfig as ModelConfig,
    SlicesOption as SlicesOption,
    StrategyOption as StrategyOption,
    SymmetrizeOption as SymmetrizeOption,
    TieOption as TieOption,
    TrainConfig as TrainConfig,
    TrainingConfig as TrainingConfig,
    VolumeFile as VolumeFile,
    WeightsOption as WeightsOption,
    default_yaml as default_yaml,
    saved_record as saved_record,
)
from .crops import SliceWindows as SliceWindows
from .data import fingerprints as fingerprints, open_data as open_data
from .lightning_parts import AsymmetryMonitor as AsymmetryMonitor, is_first_process as is_first_process
from .run_folder import RunFolder as RunFolder, flat_options as flat_options
from .run_network import (
    find_network as find_network,
    load_segmenter as load_segmenter,
    reading_of as reading_of,
)
from .trainer import retest as retest, train as train
