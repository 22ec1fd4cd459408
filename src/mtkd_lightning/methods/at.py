"""AT: the student's features are to be strong where the teacher's are.

Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017, https://arxiv.org/abs/1612.03928; for
super-resolution with L1 of the maps, the positions and the two image terms of FAKD (see fakd.py, its deviations too),
whose code has it as an alternative. Written from the definitions. What weight it takes there is not published.
"""

from mtkd_lightning.losses.attention import attention_distance
from mtkd_lightning.methods.feature import FeatureMethod


class AT(FeatureMethod):
    """Distance of attention maps."""

    distance = staticmethod(attention_distance)
