"""Dashboards that an experiment feeds while it runs: TensorBoard, Weights & Biases, one's own."""

from ici.sinks.sink import About, Series, Sink
from ici.sinks.tensorboard import TensorBoardSink
from ici.sinks.weights_and_biases import WandbSink

__all__ = ["About", "Series", "Sink", "TensorBoardSink", "WandbSink"]
