"""The runtime: a loaded model that turns prompts into text."""
