"""The dynamics of both problems in pure NumPy, batched over independent copies ("lanes").

Environments, vector environments, games and oracles all step these classes.
"""
