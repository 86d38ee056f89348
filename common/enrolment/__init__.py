"""How a phone enrols itself by a token: the messages, and the proof that it has the key that it names."""
