"""Generation, documents and vectors over HTTP: a Ray Serve application, thin over `hsokv_ray`."""
