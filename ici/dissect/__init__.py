"""Taking one update apart: which block's change did what to gradients, inputs and loss."""
