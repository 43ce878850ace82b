"""retbench measures RetNet against Transformers and regenerates the paper's tables and figures."""

__version__ = "0.1.0"
