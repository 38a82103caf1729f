"""From a specification to a network, one library each.

A specification names a library and a network, or a function of the user's:

    smp:Unet/resnet34                       segmentation_models_pytorch, DECODER/ENCODER
    smp:Unet/tu-tf_efficientnet_lite0       the same with one of timm's networks as encoder
    timm:convnext_tiny                      timm
    torchvision:deeplabv3_resnet50          torchvision, classification, segmentation and detection
    monai:SegResNet                         MONAI, in two dimensions
    monai:FlexibleUNet/efficientnet-b0      the same with one of its encoders
    transformers:nvidia/mit-b0              transformers: a network on the hub,
    transformers:path/to/folder             a folder with its config.json, or that file,
    transformers:segformer                  or a model type, with the library's own configuration
    package.module:function                 a function that returns a module; the current directory is importable

Keyword arguments of the builder, or of the configuration, may follow as Python or JSON literals:
``smp:Unet/resnet34?encoder_depth=4`` or ``timm:mobilenetv1_100?pad_type=same&bn_eps=1e-3``. ``task`` is one that
evenslice adds for transformers, to choose among the heads of a model type: ``transformers:dpt?task=depth-estimation``.
"""

from evenslice.libraries.library import HALF, IMAGENET, PLAIN
from evenslice.libraries.plans import Plan

__all__ = ["HALF", "IMAGENET", "PLAIN", "Plan"]
