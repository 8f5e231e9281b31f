"""The simulations behind results/reference/verdict-error-rates, which scripts/error_rates.py runs."""
