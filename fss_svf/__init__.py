"""Few-shot segmentation research framework around Singular Value Fine-tuning (SVF, NeurIPS 2022)."""

__version__ = "0.1.0"
