"""The experiment engine: from one typed config to trained, packed, measured and reported models. ``import lowbit`` has none of it.

::

    config ---> pieces ----------------------> evals ----------> results ---> report
    (frozen,    (one method, one seed:         (functions of a   (numbers,    (tables, figures)
     typed)      train, calibrate, pack,        finished piece)   by row)
                 known by content, locked)

Walls: a config says what, never how (`experiment`); a method is all that is done to a float model, in one place; only `pieces`
turns a method into packed parameters, by the public calls of lowbit; an eval (`evals`, one file each) sees a finished piece and
returns numbers, and a loop over targets is nowhere else; a report sees `results` and files, and computes no model; `folder` alone
knows files, locks and keys, `identity` alone what a key is of; `engine` alone decides what runs. Sweeps call the command line,
so a cluster needs nothing but that.
"""

from .engine import run as run
from .engine import run_suite as run_suite
from .evals.beside_float import beside_float as beside_float
from .evals.column import Column as Column
from .evals.column import Eval as Eval
from .evals.device import device as device
from .evals.device_time import device_time as device_time
from .evals.export_cost import export_cost as export_cost
from .evals.grids import grids as grids
from .evals.iree import iree as iree
from .evals.latency import iree_latency as iree_latency
from .evals.latency import latency as latency
from .evals.peers import peers as peers
from .evals.scores import bootstrap as bootstrap
from .evals.scores import scores as scores
from .evals.verify import verify as verify
from .evals.weight_error import weight_error as weight_error
from .experiment import Allocation as Allocation
from .experiment import Experiment as Experiment
from .experiment import Fit as Fit
from .experiment import Method as Method
from .experiment import Model as Model
from .experiment import Settled as Settled
from .experiment import Suite as Suite
from .metric import ACCURACY as ACCURACY
from .metric import Metric as Metric
from .metric import absolute_error as absolute_error
from .metric import cross_entropy as cross_entropy
from .models import from_linen as from_linen
from .models import from_nnx as from_nnx
from .samples import Dataset as Dataset
from .samples import Split as Split
from .samples import from_grain as from_grain
from .samples import unlabelled as unlabelled
from .timings import timed as timed
from .timings import times as times
from .writers import tensorboard as tensorboard
from .writers import wandb as wandb
