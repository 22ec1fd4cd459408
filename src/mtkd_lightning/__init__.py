"""Multi-teacher knowledge distillation of image super-resolution networks."""

__version__ = "0.1.0"
