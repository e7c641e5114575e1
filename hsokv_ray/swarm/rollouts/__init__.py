"""Policies for CartPole trained by distributed rollouts, and what the distribution is worth.

`distributed.run_distributed` measures; `training.Training` runs one training on a backend. Only `ray_actors` imports
Ray. Nothing is imported here, so that a worker starts with little more than NumPy and gymnasium.
"""
