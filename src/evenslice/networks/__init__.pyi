from .builders import parse_specification as parse_specification
from .dry_runs import (
    MIXER_HELPS as MIXER_HELPS,
)
from .dry_runs import (
    as_tensors as as_tensors,
)
from .dry_runs import (
    call as call,
)
from .dry_runs import (
    describe as describe,
)
from .dry_runs import (
    first_tensor as first_tensor,
)
from .dry_runs import (
    label as label,
)
from .dry_runs import (
    on_meta as on_meta,
)
from .dry_runs import (
    random_image as random_image,
)
from .dry_runs import (
    undisturbed as undisturbed,
)
from .dry_runs import (
    where as where,
)
from .inputs import input_multiple as input_multiple
from .inputs import input_size as input_size
from .inputs import normalization as normalization
from .models import ModelSource as ModelSource
from .models import build_model as build_model
from .outputs import logits as logits
from .outputs import predicted_classes as predicted_classes
from .reductions import (
    find_function as find_function,
)
from .reductions import (
    function_name as function_name,
)
from .reductions import (
    reduce_output as reduce_output,
)
from .weights import (
    METADATA_KEY as METADATA_KEY,
)
from .weights import (
    fill as fill,
)
from .weights import (
    read_metadata as read_metadata,
)
from .weights import (
    read_weights as read_weights,
)
