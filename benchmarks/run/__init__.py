"""Running: playing a cell, the engines that spread them, the store that keeps them."""
