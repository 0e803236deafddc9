"""Update rules, a file for each family, and the registry that makes them by name."""
