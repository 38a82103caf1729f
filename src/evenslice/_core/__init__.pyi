from .cluster import (
    check_sendable as check_sendable,
)
from .cluster import (
    finished as finished,
)
from .cluster import (
    in_order as in_order,
)
from .cluster import (
    open_cluster as open_cluster,
)
from .config_files import Section as Section
from .config_files import load_config as load_config
from .config_files import to_yaml as to_yaml
from .errors import (
    ConfigError as ConfigError,
)
from .errors import (
    EvensliceError as EvensliceError,
)
from .errors import (
    MissingExtraError as MissingExtraError,
)
from .errors import (
    ModelError as ModelError,
)
from .errors import (
    OutputError as OutputError,
)
from .errors import (
    VolumeError as VolumeError,
)
from .errors import (
    nearest as nearest,
)
from .errors import (
    needs_extra as needs_extra,
)
from .errors import (
    option as option,
)
from .errors import (
    spelled_on_command_line as spelled_on_command_line,
)
from .importing import find_member as find_member
from .importing import importable_here as importable_here
from .progress import progress_bar as progress_bar
from .staging import json_text as json_text
from .staging import staged_file as staged_file
from .staging import staged_folder as staged_folder
from .trees import staged_tree as staged_tree
from .trees import writing as writing
