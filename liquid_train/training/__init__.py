"""What a rank holds while it trains, and what it does between steps."""
