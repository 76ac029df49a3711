"""Sites: what of a layer a closed form can set."""
