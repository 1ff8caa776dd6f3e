"""Every name of Flower's insides that is used or replaced; see README.md. No other room imports one of them."""
