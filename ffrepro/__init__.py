"""Reproduce The Trifecta (arXiv 2311.18130), Forward-Forward training of deep networks, and prove it."""

__version__ = "0.1.0"
