"""eplb for Python: load balancing of Mixture-of-Experts inference. `python -m eplb.convert` converts recorder dumps."""
