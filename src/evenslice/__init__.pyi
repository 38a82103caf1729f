__version__: str

from ._core import (
    ConfigError as ConfigError,
)
from ._core import (
    EvensliceError as EvensliceError,
)
from ._core import (
    MissingExtraError as MissingExtraError,
)
from ._core import (
    ModelError as ModelError,
)
from ._core import (
    OutputError as OutputError,
)
from ._core import (
    VolumeError as VolumeError,
)
from .auditing import (
    Audit as Audit,
)
from .auditing import (
    Survey as Survey,
)
from .auditing import (
    audit as audit,
)
from .auditing import (
    load_audits as load_audits,
)
from .auditing import (
    survey as survey,
)
from .inference import (
    load_onnx as load_onnx,
)
from .inference import (
    segment as segment,
)
from .neutralizing import (
    Record as Record,
)
from .neutralizing import (
    load_network as load_network,
)
from .neutralizing import (
    neutralize as neutralize,
)
from .neutralizing import (
    record_of as record_of,
)
from .neutralizing import (
    save_network as save_network,
)
from .neutralizing import (
    untie as untie,
)
from .studying import (
    study as study,
)
from .training import (
    AsymmetryMonitor as AsymmetryMonitor,
)
from .training import (
    train as train,
)
from .volumes import (
    Scaling as Scaling,
)
from .volumes import (
    Volume as Volume,
)
from .volumes import (
    open_volume as open_volume,
)
