"""All internals of Flower that are used or replaced; see README.md. No other package imports them."""
