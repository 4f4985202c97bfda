"""From stored cells to a board: intervals, ranks, fairness."""
