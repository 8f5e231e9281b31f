"""From records to effects: `frame` reads, `select` finds the arms, `stats` computes on plain arrays."""
