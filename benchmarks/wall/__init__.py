"""The wall: an agent plays in a process of its own and is given bytes, never the world.

`judge` is the side of the environment, `agent` the other one, `wire` what goes between them and
`fence` what keeps the agent's process in.
"""
