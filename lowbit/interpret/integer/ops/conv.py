"""A convolution: with a weight, or with a kernel that is computed."""

from lowbit.interpret.integer.contraction import Contraction


class Conv(Contraction):
    """A convolution."""

    name = "conv"
    after = ("index",)
    primitive = "conv_general_dilated"


KIND = Conv()
