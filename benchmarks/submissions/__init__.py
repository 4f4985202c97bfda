"""The door: how a stranger's agent gets onto the board, and what is checked of it.

`entry` is the file that is handed in, `folder` all of them with their marks.
"""
