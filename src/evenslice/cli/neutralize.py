"""evenslice neutralize: make a pretrained network fair."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from evenslice.cli import options
from evenslice.cli.option_groups import grouped
from evenslice.cli.printing import quiet, show, tell_random


@grouped
def neutralize(
    *,
    network: options.Network,
    strategy: Annotated[
        Any, options.strategy("; uniform is symmetric only until training begins, twin stays symmetric")
    ] = "uniform",
    seed: options.Seed = 0,
    out: Annotated[Path, options.output("File for the fair network (.safetensors).", metavar="FILE")],
    output: options.Output,
) -> None:
    """Rewrite the first layer of a pretrained network before training, so that it favours neither side of a window.

    For a trained network, use symmetrize.
    """
    from evenslice.cli.tables import record_table
    from evenslice.inference import stated_reading
    from evenslice.neutralizing import neutralize_file

    given = {**asdict(network), "strategy": strategy, "seed": seed}
    with quiet(output.json):
        record = neutralize_file(
            given.pop("spec"),
            given.pop("weights"),
            out,
            given,
            reading=stated_reading(network.spec, network.weights)[0],
            force=output.force,
        )
    show(record.to_dict(), record_table(record, out), json=output.json)
    tell_random(out, network.weights)
