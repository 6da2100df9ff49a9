"""What the matrix of models, plans and export targets is made of: frozen, typed data."""

import dataclasses

from experiments.config import FLOAT, Method
from experiments.story import Story


@dataclasses.dataclass(frozen=True)
class Variant:
    """One plan of a model.

    Attributes:
        method: rules, and how it is trained under them; its name is the plan's.
        is_integer: whether the plan is full-integer: exported with integer codes at both ends.
        rounding: of a full-integer plan.
    """

    method: Method
    is_integer: bool = True
    rounding: str = "exact"

    @property
    def name(self) -> str:
        """The plan's name."""
        return self.method.name


@dataclasses.dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        title: what the table calls it.
        story: data, network, float training, metric. Its own methods and device are not used.
        variants: plans of it.
        batch: test samples in a call; outputs of all of them are compared.
    """

    title: str
    story: Story
    variants: tuple[Variant, ...]
    batch: int = 1

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.story.name


@dataclasses.dataclass(frozen=True)
class Matrix:
    """All of them.

    Attributes:
        name: of the run's folder.
        cases: models and their plans.
        seeds: the one seed that everything is drawn from.
    """

    name: str
    cases: tuple[Case, ...]
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self):
        names = [case.name for case in self.cases]
        if len(set(names)) != len(names):
            raise ValueError(f"cases: names of stories must differ, got {', '.join(names)}")
        for case in self.cases:
            plans = [FLOAT, *(variant.name for variant in case.variants)]
            if len(set(plans)) != len(plans):
                raise ValueError(
                    f"{case.name}: names of plans must differ, and from {FLOAT!r}, got {', '.join(plans[1:])}"
                )
            if case.batch < 1:
                raise ValueError(f"{case.name}: batch must be at least 1, got {case.batch}")
        if len(self.seeds) != 1:
            raise ValueError(f"seeds: the matrix is of one seed, got {self.seeds}")
