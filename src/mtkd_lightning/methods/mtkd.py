"""Stage 2 of MTKD: the student learns from the picture that the aggregator made of the teachers'.

Paper: Jiang, Feng, Zhang, Bull, "MTKD: Multi-Teacher Knowledge Distillation for Image Super-Resolution", ECCV 2024,
arXiv 2404.09571. Written from the paper. The paper's response term is a wavelet loss, the released configuration
uses plain L1: both are this class, ``method=mtkd`` and ``method=mtkd_released``.
"""

from mtkd_lightning.methods.kd import KD


class MTKD(KD):
    """Response of an `Ensemble`, and a little of the ground truth (its weight is the paper's alpha)."""
