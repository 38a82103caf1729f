from .inputs import (
    StemKernels as StemKernels,
    check_scaling as check_scaling,
    input_sizes as input_sizes,
    normalization as normalization,
)
from .models import (
    ModelSource as ModelSource,
    build_model as build_model,
    parse_specification as parse_specification,
)
from .outputs import (
    detections as detections,
    final_activation as final_activation,
    function_name as function_name,
    logits as logits,
    predicted_classes as predicted_classes,
    reduce_output as reduce_output,
)
from .running import (
    answers_alone as answers_alone,
    full_precision as full_precision,
    keep_convolutions_exact as keep_convolutions_exact,
    keep_generators as keep_generators,
    require_network as require_network,
)
from .weights import (
    AVERAGED as AVERAGED,
    METADATA_KEY as METADATA_KEY,
    read_metadata as read_metadata,
    read_weights as read_weights,
)
