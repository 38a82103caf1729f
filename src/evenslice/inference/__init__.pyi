from .black_boxes import BlackBox as BlackBox
from .depthwise import keep_depthwise_exact as keep_depthwise_exact
from .metrics import evaluate as evaluate
from .onnx_networks import OnnxNetwork as OnnxNetwork
from .onnx_networks import load_onnx as load_onnx
from .prediction import class_logits as class_logits
from .prediction import predict as predict
from .ready_network import (
    ReadyNetwork as ReadyNetwork,
)
from .ready_network import (
    choose_device as choose_device,
)
from .ready_network import (
    choose_dtype as choose_dtype,
)
from .segmentation import segment as segment
