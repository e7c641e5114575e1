"""A swarm of agents searching over training recipes: pure algorithm first, Ray at the edge.

`swarm.Swarm` decides and never trains: `ask` and `tell` exchange orders and outcomes. Its parts (space, messages,
ledger, managers) import neither torch nor ray.
"""
