"""Trains runs: `build` makes the parts, `loop` trains one run, `serial` and `process` execute many."""
