"""The help texts of the commands."""

from typing import Any

USAGE = """\
usage: gradpath COMMAND …

  gradpath run [KEY=VALUE …]          train one network and record it in MLflow
  gradpath run seed=0..15 …           the same with 16 seeds at once, side by side
  gradpath run -m KEY=V1,V2 …         the same for every combination: a sweep
  gradpath run -m +experiment=NAME    the sweep of a study in conf/experiment/
  gradpath report [KEY=VALUE …]       draw the figures of the newest sweep
  gradpath check [KEY=VALUE …]        check the gradient of any configuration
  gradpath ui [--port N]              open the MLflow UI
  gradpath rerun RUN_ID               make a run again, and say whether the bits agree
  gradpath send                       send what was left here while a server was away
  gradpath new KIND NAME              write the files of a cell, task, … of your own

  gradpath COMMAND --help             what can be set
  gradpath --version                  the version
  gradpath -sc install=bash           completion; also zsh and fish: eval "$(gradpath -sc install=bash)"

  --plugin PATH                       with any of them: a folder with cells/, tasks/, conf/ … of your own

Results go to mlruns/, reports/, unsent/ and spool/: in $GRADPATH_HOME if set, else in the checkout that gradpath runs
from, else in the working folder.
"""

RUN_HELP = """\
usage: gradpath run [-m] [KEY=VALUE …]

  gradpath run arm=lstm task=temporal_order task.length=50 seed=3
  gradpath run arm=lstm seed=0..15                           16 networks side by side, each a run of its own in MLflow
  gradpath run -m arm=rnn,clipped_rnn,lstm seed=0,1,2        a sweep: every combination, on every core
  gradpath run -m arm=rnn,clipped_rnn,lstm seed=0..15        … with the seeds of each arm side by side
  gradpath run -m +experiment=vanishing                      the sweep of a study

The same command again skips the runs that have finished with the same code (resume=false does not). jobs=1 runs them
one after another. train.checkpoint_every=1000 lets a run that is killed go on where it was. hydra/launcher=ray or
submitit_slurm runs a sweep on other machines, hydra/sweeper=optuna searches in place of every combination.

--cfg job prints the configuration without running; --hydra-help lists Hydra's own options.
"""

CHECK_HELP = """\
usage: gradpath check [KEY=VALUE …]

  gradpath check arm=lstm cell.layers=2 task=copy            the overrides of a run

Checks every number that an instrument stores or the optimiser sees: by central differences on untied copies and by a
second backward pass that is written as a textbook would; at a small size, at the layers, H, B and type asked for, and
where the adjoint leaves floating point's middle. Says from which timestep and layer back a gradient is wrong. Exit
status 1 where an error exceeds its tolerance.
"""

REPORT_HELP = """\
usage: gradpath report [KEY=VALUE …]

  gradpath report                                            all figures of the newest sweep
  gradpath report study=vanishing                            … of the newest sweep of a study
  gradpath report figures=[norm_by_lag] sweep=SWEEP_ID       one figure of a given sweep
  gradpath report formats=[pdf]                              as PDF; png, svg and pdf in any combination
  gradpath report partial=true                               also where points are missing or double

Exit status 0 where all is drawn that the runs hold the numbers for; 1 where a figure failed, a named one could not be
drawn or a damaged run was left out; 2 where the sweep is refused because points are missing or double.
"""


def print_help(usage: str, name: str, groups: dict[str, Any], excluded: str = "", extra: tuple[str, ...] = ()) -> None:
    """Prints the available settings: the units to choose from, then every key with its value, its
    allowed values and its meaning.
    """
    from gradpath.commands import compose

    print(usage)
    print("Units to choose (GROUP=NAME):")
    for group in (*extra, *(g for g in groups if g != excluded)):
        print(f"  {'+' if group == 'experiment' else ''}{group + '=':<13} {', '.join(compose.options(group))}")
    print("\nKeys (the value they have, what they take); those of another unit show with --cfg job after choosing it:")
    for key, value, takes, meaning in compose.settable(compose.load(name, [])):
        print(f"  {key + '=' + str(value):<52} {takes}{'. ' + meaning if meaning else ''}")
