"""Analysis: from the labelled record of an experiment to answers. NumPy and xarray."""
