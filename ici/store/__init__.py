"""The labelled record of an experiment, on disk."""
