"""From a configuration to records on the disk: grids of pruners, budgets, models and tasks."""
