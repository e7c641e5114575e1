"""What a search shows of itself: while it runs a live table, TensorBoard and gauges, afterwards plots.

All of it is drawn from the files of the run's folder (`record.py`) or from the status that the run reports; nothing
here decides anything. Only `gauges.py` imports ray.
"""
