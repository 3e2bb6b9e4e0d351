"""TD-MPC2 (Hansen et al. 2024, arXiv 2310.16828), with and without ERA (arXiv 2510.08549).

`values`: two-hot bins and the running scale. `model`: networks and the world model. `planner`: MPPI. `agent`:
losses, state, updates, and how it acts.
"""
