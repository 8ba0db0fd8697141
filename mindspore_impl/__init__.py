"""Post-training for openPangu-Embedded on MindSpore: curriculum SFT and offline on-policy top-k distillation."""

__version__ = "0.1.0"
