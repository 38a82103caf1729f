from .config import (
    AugmentationConfig as AugmentationConfig,
    DataConfig as DataConfig,
    LabelledFiles as LabelledFiles,
    TrainConfig as TrainConfig,
    TrainingConfig as TrainingConfig,
    WeightsOption as WeightsOption,
)
from .data import open_data as open_data
from .run_folder import RunFolder as RunFolder
from .run_network import find_network as find_network
from .trainer import retest as retest, train as train
