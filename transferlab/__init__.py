"""Transfer learning for image classification on tiny datasets: frozen features, kept under
augmentation."""

__version__ = "0.1.0"
