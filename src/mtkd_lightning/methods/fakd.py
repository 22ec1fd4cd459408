"""FAKD: pixels whose features are alike in the teacher are to be alike in the student.

He et al., FAKD: Feature-Affinity Based Knowledge Distillation for Efficient Image Super-Resolution, ICIP 2020,
https://doi.org/10.1109/ICIP40778.2020.9190917. Reference code: Vincent-Hoo/Knowledge-Distillation-for-Super-resolution
(no licence seen; none of it is used). Deviations:
* Its last position is the last convolution of the body, before the skip around it; our "deep" lies behind that skip.
  (The released networks add the skip in place to the very tensor that they have listed, so they compare "deep", too.)
* At the depths 0.33 and 0.67 we take the nearest block. The reference has the groups 3 and 7 of RCAN's 10, the same,
  and rounds down in EDSR: blocks 10 and 21 of 32 (here 11 and 21), 5 and 10 of 16 (here 5 and 11).
* One teacher; the reference can draw one of several for every batch.
"""

from mtkd_lightning.losses.affinity import affinity_distance
from mtkd_lightning.methods.feature import FeatureMethod


class FAKD(FeatureMethod):
    """Distance of spatial affinities."""

    distance = staticmethod(affinity_distance)
