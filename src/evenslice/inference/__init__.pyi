from .compute import (
    Compute as Compute,
)
from .evaluation import (
    count_ways as count_ways,
    evaluate_parts as evaluate_parts,
    measure_stress as measure_stress,
    surface_scores as surface_scores,
)
from .onnx_files import (
    ONNX as ONNX,
    symmetrize_onnx as symmetrize_onnx,
)
from .prediction import (
    Predictor as Predictor,
    class_logits as class_logits,
)
from .ready_networks import (
    BlackBox as BlackBox,
    ReadyNetwork as ReadyNetwork,
    device_error as device_error,
    make_ready as make_ready,
    to_device as to_device,
)
from .segmenter import (
    Segmenter as Segmenter,
    as_segmenter as as_segmenter,
    stated_reading as stated_reading,
)
