"""Methods that RP and RRP are compared with, beyond the paper's own baselines."""
