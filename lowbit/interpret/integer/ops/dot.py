"""A dot: with a weight, on the left or the right of it, or of two tensors."""

from lowbit.interpret.integer.contraction import Contraction


class Dot(Contraction):
    """A dot."""

    name = "dot"
    after = ("index",)
    primitive = "dot_general"


KIND = Dot()
