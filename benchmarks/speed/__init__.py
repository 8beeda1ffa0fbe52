"""How fast the program is, beside plain counterparts and what the machine can do at most."""
