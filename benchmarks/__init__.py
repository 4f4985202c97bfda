"""The benchmark: tasks x agents x seeds -> stored cells -> leaderboard.

``llmqueue-bench`` is the command; ``suite`` reads what is run, ``runner`` plays one cell.
"""
