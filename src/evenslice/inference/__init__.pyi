from .batch_sizes import BatchSizes as BatchSizes
from .black_boxes import (
    BlackBox as BlackBox,
    choose_slices as choose_slices,
    keep_sides as keep_sides,
    make_ready as make_ready,
)
from .compute import Compute as Compute
from .depthwise import keep_depthwise_exact as keep_depthwise_exact
from .device_errors import (
    SMALLER as SMALLER,
    is_device_error as is_device_error,
    memory_error_of as memory_error_of,
    out_of_memory as out_of_memory,
    reporting_device_errors as reporting_device_errors,
    shortage as shortage,
)
from .devices import (
    choose_device as choose_device,
    choose_dtype as choose_dtype,
    to_device as to_device,
)
from .disturbances import Disturbances as Disturbances
from .evaluation import evaluate as evaluate
from .evaluation_result import RESULT_FILES as RESULT_FILES, Evaluation as Evaluation
from .exporting.description import ModelCard as ModelCard
from .exporting.export import (
    Exported as Exported,
    check_export_format as check_export_format,
    export as export,
)
from .exporting.onnx_symmetrizing import symmetrize_onnx as symmetrize_onnx
from .exporting.stated_reading import stated_crop as stated_crop, stated_reading as stated_reading
from .logit_maps import class_logits as class_logits
from .onnx_networks import ONNX as ONNX, OnnxNetwork as OnnxNetwork, load_onnx as load_onnx
from .prediction import choose_tile as choose_tile, even_slices as even_slices, predict as predict
from .probabilities import holds_probabilities as holds_probabilities
from .ready_network import ReadyNetwork as ReadyNetwork, trial_windows as trial_windows
from .scoring import LARGEST_SURFACE as LARGEST_SURFACE, evaluate_parts as evaluate_parts
from .segmentation import segment as segment
from .segmenter import (
    Segmenter as Segmenter,
    open_segmenter as open_segmenter,
    reading_of_network as reading_of_network,
)
from .stressing import StressedVolume as StressedVolume, stress as stress
from .unfinished import unfinished_folder as unfinished_folder
