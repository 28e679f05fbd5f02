"""From scenarios to the memory that the core works on."""
