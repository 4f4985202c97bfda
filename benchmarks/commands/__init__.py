"""Subcommands of ``llmqueue-bench``, a module each, and their exit codes."""

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = (
    "Exit codes: 0 all is well; 1 cells or trainings failed, an oracle was beaten, results do not "
    "verify, are damaged or could not be stored; 2 wrong usage, or the results folder is in use; "
    "130 interrupted."
)
