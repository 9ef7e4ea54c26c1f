"""What `ici` costs and how fast it trains, measured against the alternatives.

``python -m benchmarks`` prints the table; README.md holds the rules of timing.
"""
