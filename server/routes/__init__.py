"""What the service answers to, one module per noun."""
