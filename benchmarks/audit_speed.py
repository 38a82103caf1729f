"""Speed of an audit compared with the bare passes of the network, and with Captum used as in its documentation.

All results are ratios of alternating measurements within one run, on the network of the demonstration:

    python benchmarks/audit_speed.py [--volume PATH] [--windows 40] [--rounds 5] [--device cuda] [--dtype bfloat16]

- bare: forward pass and gradient of each window and of its mirror, weights frozen, channels-last; random windows that are in
  memory, as many at a time as the audit takes.
- captum: `captum.attr.Saliency` on the network as it was built, with a wrapper that sums the logits of the predicted
  class, as Captum's tutorial on segmentation does; the same windows and mirrors.
- audit: `evenslice.audit` of as many windows, everything included: opening, scaling, reading, all four questions.

Times are those of the clock; on one thread (`OMP_NUM_THREADS=1`) of the processor, which other programs disturb less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from captum.attr import Saliency
from shared import compare, fast_copy, load, make_parser, open_middle

import evenslice

if TYPE_CHECKING:
    from torch import Tensor


def predicted(output: Tensor) -> Tensor:
    """Sum each window's logits of the class predicted at each pixel: (batch,)."""
    return output.gather(1, output.argmax(1, keepdim=True)).float().sum(dim=(1, 2, 3))


def main() -> None:
    """Print the ratios."""
    parser = make_parser(__doc__)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--volume", help="another volume than the MNI152 template")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    model, volume = load(), open_middle(options.volume)

    def audit() -> evenslice.Audit:
        return evenslice.audit(
            model,
            volume,
            sampling=evenslice.Sampling(min_windows=options.windows, max_windows=options.windows),
            compute=evenslice.Compute(device=options.device, dtype=options.dtype, progress=False),
        )

    run = audit().run
    assert run.tile is not None  # noqa: S101  # it has run
    windows = torch.rand(options.windows, 3, *run.tile, device=options.device)
    frozen, as_built = fast_copy(model, options.device), fast_copy(model, options.device).requires_grad_()
    half = getattr(torch, options.dtype)
    saliency = Saliency(lambda pixels: predicted(as_built(pixels)))

    def bare() -> None:
        for batch in torch.split(torch.cat([windows, windows.flip(1)]), run.batch or 4):
            pixels = batch.contiguous(memory_format=torch.channels_last).requires_grad_()
            with torch.autocast(options.device, half, enabled=half != torch.float32):
                explained = predicted(frozen(pixels)).sum()
            torch.autograd.grad(explained, pixels)

    def captum() -> None:
        for batch in torch.split(torch.cat([windows, windows.flip(1)]), run.batch or 4):
            saliency.attribute(batch.requires_grad_())

    compare("audit / bare", audit, bare, options.rounds)
    compare("audit / captum", audit, captum, options.rounds)


if __name__ == "__main__":
    main()
