from .config_files import (
    Section as Section,
    load_config as load_config,
    to_yaml as to_yaml,
)
from .errors import (
    UNREADABLE as UNREADABLE,
    ConfigError as ConfigError,
    EvensliceError as EvensliceError,
    MissingExtraError as MissingExtraError,
    ModelError as ModelError,
    OutputError as OutputError,
    VolumeError as VolumeError,
    check_known as check_known,
    did_you_mean as did_you_mean,
    errors_at as errors_at,
    needs_extra as needs_extra,
    option as option,
    printable as printable,
    reason as reason,
    reporting_errors as reporting_errors,
    spelled_in_configuration as spelled_in_configuration,
    spelled_on_command_line as spelled_on_command_line,
    whole_number as whole_number,
    without_secrets as without_secrets,
)
from .files import (
    json_text as json_text,
    local_path as local_path,
    open_regular as open_regular,
    path_text as path_text,
    read_bounded as read_bounded,
    read_json as read_json,
    read_log as read_log,
    reading as reading,
)
from .import_paths import (
    import_object as import_object,
    importable_here as importable_here,
    is_installed as is_installed,
    module_file as module_file,
)
from .machine import (
    keep_freed_memory as keep_freed_memory,
    limit_memory as limit_memory,
    map_ahead as map_ahead,
    package_versions as package_versions,
)
from .progress import (
    progress_bar as progress_bar,
    progress_to as progress_to,
)
from .staging import (
    is_locked as is_locked,
    locked_folder as locked_folder,
    remove_leftovers as remove_leftovers,
    reporting_write_errors as reporting_write_errors,
    staged_file as staged_file,
    staged_folder as staged_folder,
)
from .workers import (
    map_tasks as map_tasks,
    open_workers as open_workers,
)
