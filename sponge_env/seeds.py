"""Which seeds are for what, so that no result is one on episodes that something was fitted to."""

EVALUATION_SEEDS = 1000
"""Seeds below this are for evaluation; training and tuning use those from here on."""
SEED_LIMIT = 2**31
"""Seeds of training episodes are drawn below this; what judges a policy while it is trained
uses those from here on."""
