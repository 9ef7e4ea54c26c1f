"""What the processes that do not write have in place of a writer."""

from __future__ import annotations

import numpy as np

from ici.store.manifest import GroupEntry
from ici.store.writer import Layout


class SilentWriter:
    """Counts the rows that another process writes."""

    def __init__(self, entry: GroupEntry, layout: Layout):
        self.entry = entry
        self.layout = layout
        self.entry.rows = dict(entry.rows or dict.fromkeys(layout.nodes, 0))

    def write(self, node: str, rows: dict[str, np.ndarray], first: int | None = None) -> None:
        """Takes the rows as written: see `GroupWriter.write`."""
        first = self.entry.rows[node] if first is None else first
        n_rows = next((values.shape[1] for values in rows.values()), 0)
        self.entry.rows[node] = first + n_rows

    def commit(self) -> None:
        """Leaves it to the process that writes."""

    def finish(self) -> None:
        """Marks the group as done, here."""
        self.entry.rows = {name: len(node.steps) for name, node in self.layout.nodes.items()}
        self.entry.done = True
