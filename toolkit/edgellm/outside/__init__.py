"""Programs for another interpreter: one that has torch and transformers. Nothing of edgellm imports them."""
