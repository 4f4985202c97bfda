"""The serving problem: busy replicas, returning users, deployment windows."""
