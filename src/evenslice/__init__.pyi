__version__: str

from ._core.config_files import load_config as load_config
from ._core.errors import (
    ConfigError as ConfigError,
    EvensliceError as EvensliceError,
    MissingExtraError as MissingExtraError,
    ModelError as ModelError,
    OutputError as OutputError,
    VolumeError as VolumeError,
)
from .auditing.auditor import (
    Audit as Audit,
    audit as audit,
    load_audits as load_audits,
)
from .auditing.explanation import (
    Explanation as Explanation,
    explain as explain,
)
from .auditing.options import Sampling as Sampling
from .auditing.surveyor import (
    Survey as Survey,
    survey as survey,
)
from .auditing.whole_volumes import (
    VolumeAudit as VolumeAudit,
    audit_volume as audit_volume,
    symmetrize_volume as symmetrize_volume,
)
from .inference.compute import Compute as Compute
from .inference.evaluation import evaluate as evaluate
from .inference.exporting import (
    ModelCard as ModelCard,
    export as export,
)
from .inference.onnx_files import load_onnx as load_onnx
from .inference.segmentation import segment as segment
from .inference.segmenter import (
    Segmenter as Segmenter,
    open_segmenter as open_segmenter,
)
from .neutralizing.network_files import (
    load_network as load_network,
    save_network as save_network,
)
from .neutralizing.neutralization import neutralize as neutralize
from .neutralizing.record import (
    Record as Record,
    record_of as record_of,
)
from .neutralizing.rewriting import untie as untie
from .neutralizing.strategies import profile_weights as profile_weights
from .neutralizing.symmetrization import symmetrize as symmetrize
from .results.tolerances import Tolerances as Tolerances
from .studying.config import StudyConfig as StudyConfig
from .studying.study_runner import study as study
from .training.config import (
    AugmentationConfig as AugmentationConfig,
    TrainConfig as TrainConfig,
)
from .training.crops import SliceWindows as SliceWindows
from .training.lightning_parts import AsymmetryMonitor as AsymmetryMonitor
from .training.trainer import train as train
from .volumes.opening import open_volume as open_volume
from .volumes.reading import Reading as Reading
from .volumes.volume import Volume as Volume
from .volumes.windows import Scaling as Scaling
