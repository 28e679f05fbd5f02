"""What is played: configuration, stages, profiles, and the specification made of them."""
