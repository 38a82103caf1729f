"""evenslice demo: the main job on real weights and real data."""

from pathlib import Path
from typing import Annotated

from evenslice.cli import options
from evenslice.cli.option_groups import grouped
from evenslice.cli.printing import command_line, quiet, show, show_audits

SEEDS = 2**32  # as many as a training takes, fewer than an audit


@grouped
def demo(
    *,
    seed: options.Seed = 0,
    out: Annotated[Path, options.output("Folder for results and reports.", metavar="DIR")] = Path(
        "evenslice-demo"
    ),
    output: options.Output,
) -> None:
    """Audit a pretrained U-Net on real MRI before and after making it fair, then train it; works offline."""
    from evenslice._core import ConfigError, option, staged_folder
    from evenslice.cli.comparison import AUDITS, write_results
    from evenslice.cli.demonstration import check_training, need_demo_extras, run_demo, train_demo
    from evenslice.cli.study_tables import course_table
    from evenslice.report import AUDIT_FILES

    if seed >= SEEDS:
        raise ConfigError(f"{option('seed', seed)}: the training takes seeds up to {SEEDS - 1}")
    need_demo_extras()
    training = out / "training"
    check_training(training, force=output.force)
    staged = staged_folder(out, AUDITS + AUDIT_FILES, documents=AUDITS, force=output.force)
    with quiet(output.json):
        with staged as folder:
            audits = list(run_demo(seed=seed, command=command_line()))
            write_results(audits, folder)
        if not output.json:
            show_audits(audits, out, json=False)
        trained = train_demo(training, seed=seed, force=output.force)
    show(
        {"audits": [audit.to_dict() for audit in audits], "training": trained.summary},
        course_table(trained.runs),
        f"report: {training / 'report.html'}",
        json=output.json,
    )
