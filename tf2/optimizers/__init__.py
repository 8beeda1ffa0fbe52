"""Update rules, and which variables they decay."""
