"""Where orders are carried out: in this process, or in several of this machine. Those of Ray are in `ray_backend`."""
