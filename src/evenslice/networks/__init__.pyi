from .builders import check_stated_in_file as check_stated_in_file, parse_specification as parse_specification
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
    missing_parts as missing_parts,
    sketched_size as sketched_size,
    untrained_parts as untrained_parts,
)
from .outputs import (
    PROBABILITY as PROBABILITY,
    detections as detections,
    ends_in_sigmoid as ends_in_sigmoid,
    ends_in_softmax as ends_in_softmax,
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
    exact_evaluation as exact_evaluation,
    failing_layer as failing_layer,
    first_tensor as first_tensor,
    full_precision as full_precision,
    is_on_meta as is_on_meta,
    keep_generators as keep_generators,
    layer_label as layer_label,
    random_image as random_image,
    refuse_torchscript as refuse_torchscript,
    reporting_own_errors as reporting_own_errors,
    require_network as require_network,
    require_values as require_values,
    run_network as run_network,
    seed_generators as seed_generators,
    tensors_in as tensors_in,
    with_gradients as with_gradients,
)
from .state_matching import (
    AVERAGED as AVERAGED,
    TIED as TIED,
    fill_network as fill_network,
    is_mark as is_mark,
    mark_average as mark_average,
)
from .weight_files import (
    METADATA_KEY as METADATA_KEY,
    NO_FILES as NO_FILES,
    read_metadata as read_metadata,
    read_weights as read_weights,
)
