from .compute import Compute as Compute
from .devices import (
    SMALLER as SMALLER,
    BatchSizes as BatchSizes,
    choose_device as choose_device,
    choose_dtype as choose_dtype,
    is_device_error as is_device_error,
    memory_error_of as memory_error_of,
    out_of_memory as out_of_memory,
    reporting_device_errors as reporting_device_errors,
    shortage as shortage,
    to_device as to_device,
)
from .evaluation import RESULT_FILES as RESULT_FILES, Evaluation as Evaluation, evaluate as evaluate
from .exporting import Exported as Exported, export as export
from .model_card import ModelCard as ModelCard
from .onnx_files import symmetrize_onnx as symmetrize_onnx
from .onnx_networks import ONNX as ONNX, OnnxNetwork as OnnxNetwork, load_onnx as load_onnx
from .prediction import (
    choose_tile as choose_tile,
    class_logits as class_logits,
    holds_probabilities as holds_probabilities,
    predict as predict,
)
from .ready_networks import (
    BlackBox as BlackBox,
    ReadyNetwork as ReadyNetwork,
    keep_depthwise_exact as keep_depthwise_exact,
    keep_sides as keep_sides,
    make_ready as make_ready,
    trial_windows as trial_windows,
)
from .scoring import (
    Disturbances as Disturbances,
    StressedVolume as StressedVolume,
    evaluate_parts as evaluate_parts,
    stress as stress,
)
from .segmentation import segment as segment
from .segmentation_blocks import unfinished_folder as unfinished_folder
from .segmenter import (
    Segmenter as Segmenter,
    as_segmenter as as_segmenter,
    open_segmenter as open_segmenter,
    stated_reading as stated_reading,
)
