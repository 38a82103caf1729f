"""A survey made up for the tests of its page: a biased network, a fair one with five channels, and one that failed."""

from evenslice import Survey
from evenslice.results import Interval


def network(spec, bias, energy=(0.2, 0.7, 0.1), shares=(0.3, 0.5, 0.2), **values):
    known = Interval(bias, bias - 0.02, bias + 0.02)
    return Survey.Network(
        **{
            "spec": spec,
            "weights": "imagenet",
            "origin": "a-package 0.1.0",
            "random": ("decoder", "segmentation_head"),
            "stems": ("encoder.model.conv_stem",),
            "energy": energy,
            "chromatic": 0.49,
            "verdict": "biased" if abs(bias) > 0.05 else "symmetric",
            "shares": tuple(Interval(share, share, share) for share in shares),
            "pairs": (known,) * (len(shares) // 2),
            "directional_bias": known,
            "mirror_error": Interval(0.7, 0.6, 0.8),
            "windows": 32,
            **values,
        }
    )


def make_survey():
    networks = (
        network("smp:Unet/tu-tf_efficientnet_lite0", -0.21),
        network("timm:mobilenetv1_100?pad_type=same&bn_eps=1e-3", 0.08, energy=(0.4, 0.35, 0.25)),
        network("package.module:five_slices", 0.0, energy=(0.2,) * 5, shares=(0.2,) * 5),
        Survey.Network("timm:nix", "imagenet", error="timm has no network 'nix'"),
    )
    return Survey(networks, Survey.Run(windows=32, command="evenslice survey timm:nix"))
