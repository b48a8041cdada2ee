"""What all parts speak: tokens, selections, signals, stages, sizes, plans, budgets, samples, errors, registries."""
