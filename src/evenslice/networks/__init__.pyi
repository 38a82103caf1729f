from .inputs import (
    StemKernels as StemKernels,
    check_mean as check_mean,
    input_multiple as input_multiple,
    input_size as input_size,
    normalization as normalization,
)
from .models import (
    ModelSource as ModelSource,
    build_model as build_model,
    check_stated_in_file as check_stated_in_file,
    missing_parts as missing_parts,
    parse_specification as parse_specification,
    sketched_size as sketched_size,
    untrained_parts as untrained_parts,
)
from .outputs import (
    PROBABILITY as PROBABILITY,
    detections as detections,
    final_activation as final_activation,
    find_function as find_function,
    function_name as function_name,
    logits as logits,
    predicted_classes as predicted_classes,
    reduce_output as reduce_output,
)
from .running import (
    ABOUT_INPUT as ABOUT_INPUT,
    answers_alone as answers_alone,
    as_float64 as as_float64,
    full_precision as full_precision,
    keep_generators as keep_generators,
    layer_label as layer_label,
    reporting_own_errors as reporting_own_errors,
    require_network as require_network,
    require_values as require_values,
    seed_generators as seed_generators,
    with_gradients as with_gradients,
)
from .weights import (
    AVERAGED as AVERAGED,
    METADATA_KEY as METADATA_KEY,
    NO_FILES as NO_FILES,
    TIED as TIED,
    fill_network as fill_network,
    is_mark as is_mark,
    mark_average as mark_average,
    read_metadata as read_metadata,
    read_weights as read_weights,
)
