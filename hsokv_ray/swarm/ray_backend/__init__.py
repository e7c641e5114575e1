"""The swarm on Ray: a supervisor actor that drives the search, and agent actors that train."""
