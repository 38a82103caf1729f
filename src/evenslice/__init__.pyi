__version__: str

from ._core import (
    ConfigError as ConfigError,
    EvensliceError as EvensliceError,
    MissingExtraError as MissingExtraError,
    ModelError as ModelError,
    OutputError as OutputError,
    VolumeError as VolumeError,
    load_config as load_config,
)
from .auditing import (
    Audit as Audit,
    Explanation as Explanation,
    Sampling as Sampling,
    Survey as Survey,
    audit as audit,
    explain as explain,
    load_audits as load_audits,
    survey as survey,
)
from .inference import (
    Compute as Compute,
    ModelCard as ModelCard,
    Segmenter as Segmenter,
    evaluate as evaluate,
    export as export,
    load_onnx as load_onnx,
    open_segmenter as open_segmenter,
    segment as segment,
)
from .neutralizing import (
    Record as Record,
    load_network as load_network,
    neutralize as neutralize,
    profile_weights as profile_weights,
    record_of as record_of,
    save_network as save_network,
    symmetrize as symmetrize,
    untie as untie,
)
from .results import (
    Tolerances as Tolerances,
)
from .studying import (
    StudyConfig as StudyConfig,
    study as study,
)
from .training import (
    AsymmetryMonitor as AsymmetryMonitor,
    AugmentationConfig as AugmentationConfig,
    SliceWindows as SliceWindows,
    TrainConfig as TrainConfig,
    train as train,
)
from .volumes import (
    Reading as Reading,
    Scaling as Scaling,
    Volume as Volume,
    open_volume as open_volume,
)
